"""The objects of the catalogue and the subscription, as API version 2026-05-27.dahlia shows them.

Keys that begin with an underscore are ours and never leave the process (see ``render``). References are ids here;
expansion happens on the way out.
"""

from typing import Any

from .ids import ACCOUNT_ID, API_VERSION, new_id
from .store import Obj


def account() -> Obj:
    return {
        "id": ACCOUNT_ID,
        "object": "account",
        "business_profile": None,
        "business_type": "company",
        "capabilities": {"card_payments": "active", "transfers": "active"},
        "charges_enabled": True,
        "controller": {"type": "account"},
        "country": "DE",
        "created": 1_700_000_000,
        "default_currency": "eur",
        "details_submitted": True,
        "email": "billing@sandbox.test",
        "metadata": {},
        "payouts_enabled": True,
        "settings": None,
        "type": "standard",
    }


def customer(given: Obj, *, now: int) -> Obj:
    settings = given.get("invoice_settings", {})
    return {
        "id": new_id("customer"),
        "object": "customer",
        "address": address(given.get("address")),
        "balance": given.get("balance", 0),
        "created": now,
        "currency": None,
        "default_source": given.get("source"),
        "delinquent": False,
        "description": given.get("description"),
        "discount": None,
        "email": given.get("email"),
        "invoice_prefix": new_id("customer")[-8:].upper(),
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": settings.get("default_payment_method") or given.get("payment_method"),
            "footer": settings.get("footer"),
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": labels(given),
        "name": given.get("name"),
        "next_invoice_sequence": 1,
        "phone": given.get("phone"),
        "preferred_locales": given.get("preferred_locales", []),
        "shipping": None,
        "tax_exempt": given.get("tax_exempt") or "none",
        "test_clock": given.get("test_clock"),
    }


def address(given: Any) -> Obj | None:
    if not given:
        return None
    return {name: given.get(name) for name in ("city", "country", "line1", "line2", "postal_code", "state")}


def product(given: Obj, *, now: int) -> Obj:
    return {
        "id": given.get("id") or new_id("product"),
        "object": "product",
        "active": given.get("active", True),
        "created": now,
        "default_price": None,
        "description": given.get("description"),
        "images": given.get("images", []),
        "livemode": False,
        "marketing_features": given.get("marketing_features", []),
        "metadata": labels(given),
        "name": given["name"],
        "package_dimensions": None,
        "shippable": None,
        "statement_descriptor": given.get("statement_descriptor"),
        "tax_code": None,
        "unit_label": given.get("unit_label"),
        "updated": now,
        "url": given.get("url"),
    }


def price(given: Obj, *, product_id: str, now: int) -> Obj:
    recurring = given.get("recurring")
    return {
        "id": new_id("price"),
        "object": "price",
        "active": given.get("active", True),
        "billing_scheme": "per_unit",
        "created": now,
        "currency": given["currency"].lower(),
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": given.get("lookup_key"),
        "metadata": labels(given),
        "nickname": given.get("nickname"),
        "product": product_id,
        "recurring": recurring
        and {
            "interval": recurring["interval"],
            "interval_count": recurring.get("interval_count", 1),
            "meter": None,
            "usage_type": "licensed",
        },
        "tax_behavior": given.get("tax_behavior", "unspecified"),
        "tiers_mode": None,
        "transform_quantity": None,
        "type": "recurring" if recurring else "one_time",
        "unit_amount": given["unit_amount"],
        "unit_amount_decimal": str(given["unit_amount"]),
    }


def subscription_item(price_: Obj, given: Obj, *, subscription_id: str, start: int, end: int, now: int) -> Obj:
    return {
        "id": new_id("subscription_item"),
        "object": "subscription_item",
        "billing_thresholds": None,
        "created": now,
        "current_period_end": end,
        "current_period_start": start,
        "discounts": [],
        "metadata": labels(given),
        "price": price_,
        "quantity": given.get("quantity", 1),
        "subscription": subscription_id,
        "tax_rates": [],
    }


def subscription(given: Obj, *, customer_id: str, currency: str, now: int) -> Obj:
    """Without items, period or invoice yet: ``billing`` adds them."""
    settings = given.get("payment_settings", {})
    behaviour = given.get("trial_settings", {}).get("end_behavior", {}).get("missing_payment_method", "create_invoice")
    subscription_id = new_id("subscription")
    return {
        "id": subscription_id,
        "object": "subscription",
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": now,
        "billing_cycle_anchor_config": None,
        "billing_mode": {"flexible": {"proration_discounts": "included"}, "type": "flexible", "updated_at": now},
        "billing_schedules": [],
        "billing_thresholds": None,
        "cancel_at": None,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": given.get("collection_method", "charge_automatically"),
        "created": now,
        "currency": currency,
        "customer": customer_id,
        "customer_account": None,
        "days_until_due": given.get("days_until_due"),
        "default_payment_method": given.get("default_payment_method"),
        "default_source": None,
        "default_tax_rates": [],
        "description": given.get("description"),
        "discounts": [],
        "ended_at": None,
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "items": list_of([], f"/v1/subscription_items?subscription={subscription_id}"),
        "latest_invoice": None,
        "livemode": False,
        "managed_payments": {"enabled": False},
        "metadata": labels(given),
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": None,
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": settings.get("payment_method_types"),
            "save_default_payment_method": settings.get("save_default_payment_method", "off"),
        },
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "schedule": None,
        "start_date": now,
        "status": "incomplete",
        "test_clock": None,
        "transfer_data": None,
        "trial_end": None,
        "trial_settings": {"end_behavior": {"missing_payment_method": behaviour}},
        "trial_start": None,
    }


def webhook_endpoint(given: Obj, *, now: int) -> Obj:
    return {
        "id": new_id("webhook_endpoint"),
        "object": "webhook_endpoint",
        "api_version": given.get("api_version"),
        "application": None,
        "created": now,
        "description": given.get("description"),
        "enabled_events": given["enabled_events"],
        "livemode": False,
        "metadata": labels(given),
        "status": "enabled",
        "url": given["url"],
        "_secret": new_id("webhook_secret"),
    }


def event(kind: str, snapshot: Obj, *, previous: Obj | None, request: Obj, pending: int, now: int) -> Obj:
    return {
        "id": new_id("event"),
        "object": "event",
        "api_version": API_VERSION,
        "created": now,
        "data": {"object": snapshot} | ({"previous_attributes": previous} if previous else {}),
        "livemode": False,
        "pending_webhooks": pending,
        "request": request,
        "type": kind,
    }


def payment_method(method_id: str, customer_id: str | None) -> Obj:
    """The one card everybody has. Built when asked for: cards are not kept."""
    return {
        "id": method_id,
        "object": "payment_method",
        "allow_redisplay": "unspecified",
        "billing_details": {"address": None, "email": None, "name": None, "phone": None, "tax_id": None},
        "card": {
            "brand": "visa",
            "checks": None,
            "country": "DE",
            "display_brand": "visa",
            "exp_month": 12,
            "exp_year": 2040,
            "fingerprint": "SandboxFingerprn",
            "funding": "credit",
            "generated_from": None,
            "last4": "4242",
            "networks": None,
            "regulated_status": "unregulated",
            "three_d_secure_usage": None,
            "wallet": None,
        },
        "created": 1_700_000_000,
        "customer": customer_id,
        "livemode": False,
        "metadata": {},
        "type": "card",
    }


def list_of(objects: list[Obj], url: str, *, has_more: bool = False) -> Obj:
    return {"object": "list", "data": objects, "has_more": has_more, "url": url}


def labels(given: Obj) -> Obj:
    """Metadata of a new object: empty values are keys that were never there."""
    return {key: value for key, value in (given.get("metadata") or {}).items() if value != ""}


def relabel(old: Obj, change: Obj | str) -> Obj:
    """Metadata after an update: keys merge, an empty value removes one, an empty string removes all."""
    if isinstance(change, str):
        return {}
    return {key: value for key, value in (old | change).items() if value != ""}
