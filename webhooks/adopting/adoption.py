"""An existing Stripe account moves in: its customers become tenants' customers, its prices sell our plans, and what was
bought there is served here. Safe to repeat and to be killed: what is here already stays as it is.

Whose customer is whose is said by a file, or by metadata["tenant"]; what a price sells by a file, or by its lookup key
or metadata["plan"]. Metadata is trusted here, and only here: it is the staff's own account, and nobody else writes it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from django.db import IntegrityError, transaction
from djstripe.models import Customer

from entitlements.models import SlotPack
from subscriptions.models import PlanPrice, Subscription, Tenant
from subscriptions.states import LIVE, Status, Type
from webhooks import inbox, stripe_api
from webhooks.adopting.adoption_files import Map, Prices, Sells
from webhooks.buying import newcomers
from webhooks.converge import NOTHING_NEW
from webhooks.models import StripeEvent, StripeLink, StripePrice
from webhooks.reconciling.comparing import By, ask_and_apply, read_state
from webhooks.reconciling.differences import Kind, Sold, differences
from webhooks.reconciling.here import Supposed, known_here
from webhooks.stripe_state import Unmappable, Wanted

# Why events about a customer or a price that was not known were parked: they can pass now.
CAN_PASS_NOW = ("unknown_customer", "unknown_price", "live_main_exists", "no_main_for_addon", "other_customer")


@dataclass(frozen=True)
class Line:
    """What became, or would become, of one object of the account."""

    kind: str  # customer, price, subscription, events
    object_id: str
    what: str  # matched, adopted, here, waits
    why: str = ""
    tenant: str = ""
    subscription: str = ""


@dataclass
class _Known:
    """What has been matched so far, for those who come after: a dry run has written none of it."""

    customers: dict[str, tuple[int, str]] = field(default_factory=dict)
    prices: dict[str, Sold] = field(default_factory=dict)
    packs: dict[str, str] = field(default_factory=dict)


def adopt(by: By, map: Map, prices: Prices) -> Iterator[Line]:
    """Match customers and prices, then bring every subscription here. Without `by.writes` nothing is written, and lines
    say what would be. Raises StripeUnavailable, StripeRefused.
    """
    known = _Known()
    seen: set[str] = set()
    for page in _pages(by, "/v1/customers"):
        seen |= {row["id"] for row in page}
        yield from _customers(page, map, known, by)
    for page in _pages(by, "/v1/prices"):
        seen |= {row["id"] for row in page}
        yield from _prices(page, prices, known, by)
    for kind, named in (("customer", map.tenants), ("price", prices.sells)):
        for object_id in sorted(named.keys() - seen):
            yield Line(kind, object_id, "waits", "the file names it, and Stripe does not know it")
    refused: list[str] = []
    served: list[str] = []
    for page in _pages(by, "/v1/subscriptions", status="all", expand=["data.latest_invoice", "data.schedule"]):
        for line in _subscriptions(page, map, known, by):
            if line.what == "waits" and by.writes:
                refused.append(line.object_id)  # an add-on whose MAIN comes on a later page: once more at the end
                continue
            served += [line.object_id]
            yield line
    for start in range(0, len(refused), 100):
        some = {sub: read_state(by.ask(stripe_api.fetch_subscription, sub)) for sub in refused[start : start + 100]}
        for line in _brought(some, map, known, by):
            served += [line.object_id]
            yield line
    if by.writes:
        yield from _replayed(served, by)


def _pages(by: By, path: str, **params: Any) -> Iterator[list[dict[str, Any]]]:
    after, more = "", True
    while more:
        rows, more = by.ask(stripe_api.list_page, path, after=after, **params)
        if rows:
            yield rows
            after = rows[-1]["id"]


# --- customers -------------------------------------------------------------------------------------------------------


def _customers(page: list[dict[str, Any]], map: Map, known: _Known, by: By) -> Iterator[Line]:
    here = {
        customer: (tenant, slug)
        for customer, tenant, slug in Customer.objects.filter(
            id__in=[row["id"] for row in page], subscriber__isnull=False
        ).values_list("id", "subscriber_id", "subscriber__slug")
    }
    named = {row["id"]: map.tenants.get(row["id"]) or _label(row, "tenant") for row in page}
    tenants = {tenant.slug: tenant for tenant in Tenant.objects.filter(slug__in={*named.values()} - {""})}
    having = dict(Customer.objects.filter(subscriber__in=tenants.values()).values_list("subscriber_id", "id"))
    for row in page:
        customer, slug = row["id"], named[row["id"]]
        tenant = tenants.get(slug)
        if customer in here:
            known.customers[customer] = here[customer]
            yield Line("customer", customer, "here", tenant=here[customer][1])
        elif not slug:
            yield Line("customer", customer, "waits", "no file and no metadata says whose it is")
        elif tenant is None:
            yield Line("customer", customer, "waits", "the file or its metadata names no tenant of ours", slug[:63])
        elif tenant.pk in having:
            yield Line("customer", customer, "waits", f"the tenant is {having[tenant.pk]} already", slug)
        elif not by.writes or _assigned(customer, tenant):
            known.customers[customer], having[tenant.pk] = (tenant.pk, slug), customer
            yield Line("customer", customer, "matched", tenant=slug)
        else:
            yield Line("customer", customer, "waits", "it became another tenant's just now", slug)


def _assigned(customer: str, tenant: Tenant) -> bool:
    try:
        with transaction.atomic():
            newcomers.assign(customer, tenant)
    except IntegrityError:
        return bool(Customer.objects.filter(id=customer, subscriber=tenant).exists())
    return True


def _label(row: Mapping[str, Any], name: str) -> str:
    labels = row.get("metadata")
    value = labels.get(name) if isinstance(labels, dict) else None
    return value.replace("\0", "") if isinstance(value, str) else ""


# --- prices ----------------------------------------------------------------------------------------------------------


def _prices(page: list[dict[str, Any]], prices: Prices, known: _Known, by: By) -> Iterator[Line]:
    ids = [row["id"] for row in page]
    here = set(StripePrice.objects.filter(pk__in=ids).values_list("pk", flat=True))
    ours = [*PlanPrice.objects.select_related("plan")]
    packs = {pack.code: pack for pack in SlotPack.objects.all()}
    for row in page:
        if row["id"] in here:
            continue
        sells = prices.sells.get(row["id"]) or _sold_by_labels(row, ours)
        pack = packs.get(sells.pack) if sells else None
        price = sells.of(ours) if sells else None
        if not pack and not price:
            why = "nothing says what it sells" if sells is None else f"we have no {sells}"
            yield Line("price", row["id"], "waits", why)
            continue
        if by.writes:
            StripePrice.objects.get_or_create(pk=row["id"], defaults={"plan_price": price, "slot_pack": pack})
        if price:
            known.prices[row["id"]] = Sold(price.pk, str(price), Type(price.plan.type))
        elif pack:
            known.packs[row["id"]] = pack.code
        yield Line("price", row["id"], "matched", _amounts(row, price or pack), subscription=str(price or pack))


def _sold_by_labels(row: Mapping[str, Any], ours: list[PlanPrice]) -> Sells | None:
    """By metadata, or by a lookup key that is a plan's code, alone or with its interval behind it."""
    if pack := _label(row, "slot_pack"):
        return Sells(pack=pack)
    recurring = row.get("recurring") or {}
    interval, count = str(recurring.get("interval", "")), recurring.get("interval_count", 1)
    key = row.get("lookup_key")
    codes = {price.plan.code for price in ours}
    named = [code for code in codes if key in (code, f"{code}-{interval}", f"{code}_{interval}")]
    plan = _label(row, "plan") or (named[0] if named else "")
    return Sells(plan, str(row.get("currency", "")).upper(), interval, count) if plan else None


def _amounts(row: Mapping[str, Any], sold: PlanPrice | SlotPack | None) -> str:
    at_stripe = row.get("unit_amount")
    if sold is None or at_stripe == sold.amount_minor:
        return ""
    return f"costs {at_stripe} at Stripe and {sold.amount_minor} here; Stripe's is billed"


# --- subscriptions ---------------------------------------------------------------------------------------------------


def _subscriptions(page: list[dict[str, Any]], map: Map, known: _Known, by: By) -> Iterator[Line]:
    yield from _brought({row["id"]: read_state(row) for row in page}, map, known, by)


def _brought(said: dict[str, Wanted | Unmappable], map: Map, known: _Known, by: By) -> Iterator[Line]:
    """What differs from what is here is brought here, the oldest first; what does not is left alone."""
    supposed = Supposed(known.customers, known.prices, known.packs)
    heres = known_here(said, supposed)
    for stripe_sub, state in reversed(said.items()):
        here, about = heres[stripe_sub], {"tenant": heres[stripe_sub].tenant}
        if here.ours is None and isinstance(state, Wanted) and state.status in (None, Status.EXPIRED):
            continue
        found = differences(replace(here, rival="", awaits_event=False), state, now=by.now())
        if not found and here.ours:
            yield Line("subscription", stripe_sub, "here", subscription=here.ours.number, **about)
        elif not found:
            yield Line("subscription", stripe_sub, "waits", "nothing has been paid yet", **about)
        elif isinstance(state, Unmappable) or not any(d.converges for d in found):
            d = found[0]
            why = str(d.theirs.get("why") or (d.kind.label if d.kind != Kind.UNKNOWN_HERE else d.ours["tenant"]))
            yield Line("subscription", stripe_sub, "waits", why, **about)
        else:
            number = _goes_on_with(state, map, known)
            if not by.writes:
                does = f"would go on with {number}" if number else "would begin here"
                yield Line("subscription", stripe_sub, "adopted", does, subscription=number, **about)
                continue
            if number and here.ours is None:
                _link(stripe_sub, number)
            outcome, why, _ = ask_and_apply(stripe_sub, by)
            ours = Subscription.objects.filter(stripe_link=stripe_sub).first()
            if why or ours is None:
                if number and here.ours is None:
                    StripeLink.objects.filter(pk=stripe_sub, applied_ticket=0).update(subscription=None)
                yield Line("subscription", stripe_sub, "waits", why or outcome, **about)
            else:
                what = "here" if outcome == NOTHING_NEW else "adopted"
                yield Line("subscription", stripe_sub, what, outcome, subscription=ours.number, **about)


def _goes_on_with(state: Wanted, map: Map, known: _Known) -> str:
    """The number of the subscription of ours that this one goes on with, if the file names one and it is no add-on."""
    number = map.subscriptions.get(state.customer_id, "")
    if not number:
        return ""
    sold = {row.pk: row for row in StripePrice.objects.filter(pk__in={i.price_id for i in state.items}).select_related(
        "plan_price__plan")}  # fmt: skip
    types = {row.plan_price.plan.type for row in sold.values() if row.plan_price}
    types |= {known.prices[i.price_id].type for i in state.items if i.price_id in known.prices}
    return number if Type.MAIN in types else ""


def _link(stripe_sub: str, number: str) -> None:
    """Before it is asked about: what was paid otherwise goes on, and Stripe bills it from now on."""
    subscription = Subscription.objects.filter(number=number, status__in=sorted(LIVE), stripe_link=None).first()
    if subscription:
        link, _ = StripeLink.objects.get_or_create(pk=stripe_sub)
        StripeLink.objects.filter(pk=link.pk, subscription=None).update(subscription=subscription)


def _replayed(served: list[str], by: By) -> Iterator[Line]:
    """Events that were parked for what was not known then."""
    parked = StripeEvent.objects.filter(
        state=StripeEvent.State.PARKED, error_code__in=CAN_PASS_NOW, stripe_subscription_id__in=served
    )
    events = [*parked.values_list("pk", flat=True)]
    if events:
        count = inbox.replay(events, now=by.now())
        yield Line("events", "", "adopted", f"{count} parked {'event is' if count == 1 else 'events are'} tried again")
