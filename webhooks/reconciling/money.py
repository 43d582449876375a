"""Refunds and disputes at Stripe: shown to staff, and changing nothing by themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from djstripe.models import Customer

from webhooks import stripe_api
from webhooks.models import Drift, StripeLink
from webhooks.reconciling.comparing import By, Found
from webhooks.reconciling.differences import Difference
from webhooks.stripe_api import StripeRefused
from webhooks.stripe_state import stripe_id

KINDS = (Drift.Kind.REFUND, Drift.Kind.DISPUTE)
FIRST = timedelta(days=90)  # how far the first run looks back
OVERLAP = timedelta(days=1)  # runs look back a little further than the last one began: Stripe's lists lag
DECIDED = ("won", "lost", "warning_closed", "prevented")  # Stripe's last words on one


@dataclass(frozen=True)
class _List:
    path: str
    kind: Drift.Kind


_LISTS = {"refunds": _List("/v1/refunds", Drift.Kind.REFUND), "disputes": _List("/v1/disputes", Drift.Kind.DISPUTE)}


def page(cursor: str, since: datetime, by: By) -> tuple[list[Found], str]:
    """What a page of a list brings, and where the next one begins; "" after the last one.

    Refunds come first, then disputes, then those that were open, which may be over now. Raises StripeUnavailable,
    StripeRefused.
    """
    name, _, after = (cursor or "refunds:").partition(":")
    if name == "open":
        return _over(by), ""
    these = _LISTS[name]
    created = {"gte": int(since.timestamp())}
    rows, more = by.ask(stripe_api.list_page, these.path, after=after, created=created, expand=["data.charge"])
    known = set(Drift.objects.filter(object_id__in=[row["id"] for row in rows]).values_list("object_id", flat=True))
    found = [_found(these.kind, row, by) for row in rows if row["id"] not in known and row.get("status") not in DECIDED]
    if more:
        return found, f"{name}:{rows[-1]['id']}"
    return found, {"refunds": "disputes:", "disputes": "open:"}[name]


def _found(kind: Drift.Kind, row: Mapping[str, Any], by: By) -> Found:
    charge = row.get("charge")
    customer = Customer.objects.filter(id=stripe_id(charge.get("customer")) if isinstance(charge, dict) else "")
    tenant = customer.values_list("subscriber_id", "subscriber__slug").first() or (None, "")
    link = StripeLink.objects.filter(pk=_paid(row, by)).select_related("subscription").first()
    ours = link.subscription if link else None
    return Found(
        row["id"], Difference(kind, {}, said(row), False), ours.pk if ours else None, ours.number if ours else "",
        ours.tenant_id if ours else tenant[0], tenant[1] or "",
    )  # fmt: skip


def said(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("amount", "currency", "status", "reason")
    return {name: row[name] for name in names if isinstance(row.get(name), str | int)}


def _paid(row: Mapping[str, Any], by: By) -> str:
    """The Stripe subscription whose invoice the money was for; empty if it was for none."""
    intent = stripe_id(row.get("payment_intent"))
    if not intent:
        return ""
    payment = {"type": "payment_intent", "payment_intent": intent}
    payments, _ = by.ask(stripe_api.list_page, "/v1/invoice_payments", payment=payment, expand=["data.invoice"])
    for paid in payments:
        invoice = paid.get("invoice")
        if isinstance(invoice, dict):
            details = (invoice.get("parent") or {}).get("subscription_details") or {}
            if found := stripe_id(details.get("subscription") or invoice.get("subscription")):
                return found
    return ""


def _over(by: By) -> list[Found]:
    """Disputes that staff were shown and that have ended since."""
    found = []
    for drift in Drift.objects.filter(kind=Drift.Kind.DISPUTE, resolved_at=None).order_by("pk"):
        try:
            now = by.ask(stripe_api.fetch_dispute, drift.object_id)
        except StripeRefused:  # it stays open for staff; the others are asked about all the same
            continue
        over = f"over: {now['status']}" if now.get("status") in DECIDED else ""
        difference = Difference(Drift.Kind.DISPUTE, {}, said(now), False)
        found.append(Found(drift.object_id, difference, drift.subscription_id, "", drift.tenant_id, "", over))
    return found
