"""What the billing pages show: a tenant's subscriptions in words, what may be pressed, and what can be bought."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from django.conf import settings
from django.db.models import Prefetch

from billing_site.api.billing import plans_sold
from billing_site.api.customer import subscriptions_of
from billing_site.banner import Line, banner
from entitlements.models import SlotPack, TierAllocation
from subscriptions.models import PlanPrice, Subscription, Tenant
from subscriptions.money import money
from subscriptions.states import Status, Type
from webhooks.buying import checkout
from webhooks.changing import Preview
from webhooks.models import StripeLink

PACK: Final = "pack-"  # a form's field for the units of a pack: this, and the pack's code
WISH: Final = ("price", "quantity", "when")
OWED: Final = frozenset({Status.GRACE, Status.SUSPENDED})

Typed = Mapping[str, str]


# --- words ------------------------------------------------------------------------------------------------------------


def day(at: datetime | None) -> str:
    return f"{at:%-d %B %Y}" if at else ""


def per(priced: PlanPrice | SlotPack) -> str:
    """`49.00 EUR per month`."""
    count = f"{priced.interval_count} {priced.interval}s" if priced.interval_count > 1 else priced.interval
    return f"{priced.money} per {count}"


def units(name: object, quantity: int) -> str:
    return f"{quantity} × {name}" if quantity > 1 else str(name)


def renewal(s: Subscription) -> str:
    """What a term costs, with the packs beside it; by list, without tax."""
    if s.price is None:
        return ""
    of_packs = sum(held.pack.amount_minor * held.quantity for held in s.packs.all())
    return money(s.price.amount_minor * s.quantity + of_packs, s.price.currency)


# --- what may be pressed ----------------------------------------------------------------------------------------------


def link_of(s: Subscription) -> StripeLink | None:
    found: StripeLink | None = getattr(s, "stripe_link", None)
    return found


def ends_with_main(s: Subscription) -> bool:
    return bool(s.parent and s.parent.cancel_at_term_end)


@dataclass(frozen=True)
class Button:
    """What a billing owner may press. The verb has the last word: a button says what is likely to be wanted."""

    verb: str
    label: str
    applies: Callable[[Subscription], bool]


BUTTONS: Final = (
    Button("renew", "Pay open invoice", lambda s: bool(link_of(s)) and s.status in OWED and not s.on_hold
           and not s.parent_id),
    Button("renew", "Renew", lambda s: not (link_of(s) or s.on_hold or s.parent_id or s.auto_renews)
           and s.price is not None and s.type != Type.TRIAL),
    Button("resume", "Undo cancellation", lambda s: s.cancel_at_term_end and not ends_with_main(s)),
    Button("resume", "Resume", lambda s: bool(link_of(s)) and s.status == Status.SUSPENDED
           and not (s.on_hold or s.parent_id or s.cancel_at_term_end)),
    Button("pause", "Pause", lambda s: bool(link_of(s)) and s.status in (Status.ACTIVE, Status.GRACE)
           and not s.parent_id),
    Button("cancel", "Cancel at term end", lambda s: not s.cancel_at_term_end and not ends_with_main(s)
           and s.status != Status.SUSPENDED),
)  # fmt: skip


# --- a subscription ---------------------------------------------------------------------------------------------------

# How it goes on where the banner says nothing more urgent: the first line that is so.
GOES_ON: Final[tuple[tuple[Callable[[Subscription], bool], str], ...]] = (
    (lambda s: s.status in OWED, ""),
    (lambda s: s.cancel_at_term_end or ends_with_main(s), "Ends on {end}."),
    (lambda s: s.status == Status.TRIAL and s.auto_renews, "Costs {renewal} from {end} on."),
    (lambda s: s.auto_renews and has_coming(s), "Renews on {end}."),
    (lambda s: s.auto_renews, "Renews on {end} for {renewal}."),
    (lambda s: True, "Runs until {end}."),
)


SAYS_WHEN: Final = ("ending", "renewal_due")  # codes of banner lines that name the end of the term


def has_coming(s: Subscription) -> bool:
    link = link_of(s)
    return bool(link and link.schedule_id)


@dataclass(frozen=True)
class Shown:
    """A subscription as the page has it."""

    it: Subscription
    title: str
    packs: list[str]
    says: Line | None  # the banner's line
    goes_on: str
    coming: str  # a change that is scheduled
    slots: list[TierAllocation]
    buttons: list[Button]
    may_change_plan: bool
    addons: list["Shown"] = field(default_factory=list)


def _shown(s: Subscription, lines: Mapping[str, Line]) -> Shown:
    says = lines.get(s.number)
    template = next(words for is_so, words in GOES_ON if is_so(s))
    is_said = says is not None and (says.code in SAYS_WHEN or (says.code == "trial_ending" and not s.auto_renews))
    return Shown(
        it=s,
        title=units(s.plan, s.quantity),
        packs=[units(held.pack, held.quantity) for held in s.packs.all()],
        says=says,
        goes_on="" if is_said else template.format(end=day(s.term_end), renewal=renewal(s)),
        coming=_coming(s),
        slots=list(s.allocations.all()),
        buttons=[button for button in BUTTONS if button.applies(s)],
        may_change_plan=link_of(s) is not None and s.status not in OWED,
    )


def _coming(s: Subscription) -> str:
    link = link_of(s)
    if link is None or not link.schedule_id:
        return ""
    at, price = f"From {day(link.scheduled_at)} on" if link.scheduled_at else "Later", link.scheduled_price
    if price is None:
        return f"{at}: something else, as was agreed."
    return f"{at}: {units(price.plan, link.scheduled_quantity or 1)}, a unit at {per(price)}."


# --- what can be bought -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    value: str
    label: str
    is_chosen: bool


@dataclass(frozen=True)
class PackField:
    name: str
    label: str
    units: str  # as typed


@dataclass(frozen=True)
class Offer:
    """A plan that can be bought now, as a form."""

    code: str
    name: str
    gives: str
    choices: list[Choice]
    packs: list[PackField]
    quantity: str
    trial_days: int | None
    parent: str = ""  # the number of the main subscription, of an add-on


def page(tenant: Tenant, *, may_buy: bool, typed: Typed, now: datetime) -> dict[str, Any]:
    """Everything on the billing page. Queries: those of the API's lists, and one for slots, packs and trials each."""
    allocations = TierAllocation.objects.filter(is_open=True).select_related("tier").order_by("tier__position", "tier")
    found = subscriptions_of(tenant).exclude(status=Status.EXPIRED)
    live = list(found.prefetch_related(Prefetch("allocations", allocations)))
    lines = {line.subscription: line for line in banner(live, now=now)}
    mains = {s.pk: _shown(s, lines) for s in live if not s.parent_id}
    for s in reversed(live):  # in the order that they were bought in
        if s.parent_id in mains:
            mains[s.parent_id].addons.append(_shown(s, lines))
    over = None if live else subscriptions_of(tenant).filter(status=Status.EXPIRED).order_by("-ended_at").first()
    is_open = may_buy and bool(settings.STRIPE_SECRET_KEY)
    return {
        "tenant": tenant,
        "may_buy": may_buy,
        "is_open": is_open,
        "subscriptions": [*mains.values()],
        "over": f"{units(over.plan, over.quantity)} ({over.number}) ended on {day(over.ended_at)}." if over else "",
        "offers": _offers(tenant, live, typed) if is_open else [],
    }


def _offers(tenant: Tenant, live: Iterable[Subscription], typed: Typed) -> list[Offer]:
    main = next((s for s in live if s.type == Type.MAIN), None)
    held = {s.plan_id for s in live if s.type == Type.ADDON}
    may_have_trial = checkout.may_have_trial(tenant)
    packs = list(SlotPack.objects.filter(is_sold=True).order_by("name", "pk"))
    offers = []
    for plan in plans_sold():
        is_addon, prices, parent = plan.type == Type.ADDON, list(plan.prices.all()), ""
        if is_addon:
            if main is None or main.status not in checkout.RUNNING or plan.pk in held:
                continue
            rhythm = main.price and (main.price.interval, main.price.interval_count)
            prices = [p for p in prices if rhythm in (None, (p.interval, p.interval_count))]
            parent = main.number
        elif plan.type == Type.MAIN and main is not None:
            continue
        if not prices:
            continue
        said = typed if typed.get("plan") == plan.code else {}
        rhythms = {(p.interval, p.interval_count, p.currency) for p in prices}
        offers.append(
            Offer(
                code=plan.code,
                name=plan.name,
                gives=", ".join(f"{row.slots} {row.tier.name}" for row in plan.slots.all()),
                choices=_choices(((":".join(map(str, _terms(p))), per(p)) for p in prices), said.get("price", "")),
                packs=[] if is_addon else [_field(p, said) for p in packs if _terms(p) in rhythms],
                quantity=said.get("quantity", "1"),
                trial_days=plan.trial_days if may_have_trial and not is_addon else None,
                parent=parent,
            )
        )
    return offers


def _terms(priced: PlanPrice | SlotPack) -> tuple[str, int, str]:
    return priced.interval, priced.interval_count, priced.currency


def _field(pack: SlotPack, typed: Typed, held: int = 0) -> PackField:
    name = f"{PACK}{pack.code}"
    return PackField(name, f"{pack.name}, {per(pack)}", typed.get(name, str(held)))


def _choices(known: Iterable[tuple[str, str]], chosen: str) -> list[Choice]:
    return [Choice(value, label, value == chosen) for value, label in known]


# --- changing ---------------------------------------------------------------------------------------------------------


def is_wish(name: str) -> bool:
    """Whether a field of the form says what is wanted."""
    return name in WISH or name.startswith(PACK)


def change_form(s: Subscription, typed: Typed) -> dict[str, Any]:
    """The fields as they were typed, else as it is. Three queries, those of the packs that are held included."""
    currency = s.price.currency if s.price else ""
    known = PlanPrice.objects.filter(plan__type=s.type, currency=currency).select_related("plan")
    known = known.order_by("plan__name", "interval", "interval_count")
    prices = [p for p in known if p.plan.is_sold or p.plan_id == s.plan_id]
    present = f"{s.plan.code}:{s.price.interval}:{s.price.interval_count}" if s.price else ""
    held = {row.pack_id: row.quantity for row in s.packs.all()}
    packs = SlotPack.objects.filter(currency=currency).order_by("name", "pk")
    labels = ((f"{p.plan.code}:{p.interval}:{p.interval_count}", f"{p.plan.name}, {per(p)}") for p in prices)
    return {
        "title": units(s.plan, s.quantity),
        "choices": _choices(labels, typed.get("price", present)),
        "quantity": typed.get("quantity", str(s.quantity)),
        "packs": [_field(p, typed, held.get(p.pk, 0)) for p in packs if p.is_sold or p.pk in held],
        "when": typed.get("when", "now"),
        "term_end": day(s.term_end),
    }


def previewed(s: Subscription, found: Preview) -> dict[str, Any]:
    prorated = sum(line.amount_minor for line in found.lines if line.proration)
    return {
        "title": units(s.plan, s.quantity),
        "lines": [(line.description, money(line.amount_minor, found.currency)) for line in found.lines],
        "due_now": money(found.due_now_minor, found.currency),
        "credit": money(-prorated, found.currency) if prorated < 0 and not found.due_now_minor else "",
        "from_then_on": money(found.next_minor, found.currency),
        "at": day(found.at),
    }
