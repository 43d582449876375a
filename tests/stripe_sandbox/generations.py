"""The same objects in the shapes of 2024, before API version 2025-03-31 moved things (the table is in STRIPE.md)."""

import copy
from typing import Any

from .ids import OLD_API_VERSION
from .store import Obj

_FIRST_NEW = "2025-03-31"


def is_old(api_version: str | None) -> bool:
    return bool(api_version) and str(api_version)[:10] < _FIRST_NEW


def downgraded_event(event: Obj, api_version: str = OLD_API_VERSION) -> Obj:
    event["api_version"] = api_version
    event["data"]["object"] = downgraded(event["data"]["object"])
    return event


def downgraded(obj: Any) -> Any:
    """The old shape of an object, and of those expanded inside it. Changes and returns its argument."""
    if isinstance(obj, list):
        return [downgraded(inner) for inner in obj]
    if not isinstance(obj, dict):
        return obj
    for key, inner in obj.items():
        obj[key] = downgraded(inner)
    match obj.get("object"):
        case "subscription" if "items" in obj:
            _subscription(obj)
        case "invoice" if "lines" in obj:
            _invoice(obj)
        case "subscription_item":
            obj["plan"] = _plan(obj["price"])
        case "line_item" if "parent" in obj:
            _line(obj)
        case "checkout.session":
            obj["ui_mode"] = {"hosted_page": "hosted", "embedded_page": "embedded"}.get(obj["ui_mode"], "custom")
    return obj


def _subscription(obj: Obj) -> None:
    items = obj["items"]["data"]
    obj["current_period_start"] = min((item.pop("current_period_start") for item in items), default=None)
    obj["current_period_end"] = min((item.pop("current_period_end") for item in items), default=None)
    obj["plan"] = items[0]["plan"] if len(items) == 1 else None
    obj["quantity"] = items[0]["quantity"] if len(items) == 1 else None
    obj["discount"] = None
    for gone in ("billing_mode", "billing_schedules", "managed_payments", "customer_account"):
        obj.pop(gone, None)


def _invoice(obj: Obj) -> None:
    parent = obj.pop("parent", None) or {}
    details = parent.get("subscription_details") or {}
    payments = obj.pop("payments", {"data": []})["data"]
    obj["subscription"] = details.get("subscription")
    obj["subscription_details"] = {"metadata": details.get("metadata")}
    obj["paid"] = obj["status"] == "paid"
    obj["paid_out_of_band"] = obj["amount_paid_off_stripe"] > 0
    obj["payment_intent"] = payments[0]["payment"]["payment_intent"] if payments else None
    obj["charge"] = None
    obj["discount"] = None
    obj["quote"] = None
    obj["tax"] = None
    obj["total_tax_amounts"] = []
    for gone in ("amount_overpaid", "amount_paid_off_stripe", "customer_account", "total_taxes"):
        obj.pop(gone, None)


def _line(obj: Obj) -> None:
    details = (obj.pop("parent") or {}).get("subscription_item_details") or {}
    pricing = obj.pop("pricing")["price_details"]
    obj["type"] = "subscription"
    obj["subscription"] = details.get("subscription")
    obj["subscription_item"] = details.get("subscription_item")
    obj["proration"] = details.get("proration", False)
    obj["price"] = {"id": pricing["price"], "object": "price", "product": pricing["product"]}
    obj["plan"] = {"id": pricing["price"], "object": "plan", "product": pricing["product"]}


def _plan(price: Obj) -> Obj:
    recurring = price["recurring"] or {}
    return {
        "id": price["id"],
        "object": "plan",
        "active": price["active"],
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "billing_scheme": price["billing_scheme"],
        "created": price["created"],
        "currency": price["currency"],
        "interval": recurring.get("interval"),
        "interval_count": recurring.get("interval_count"),
        "livemode": False,
        "metadata": copy.deepcopy(price["metadata"]),
        "nickname": price["nickname"],
        "product": price["product"],
        "usage_type": recurring.get("usage_type"),
    }
