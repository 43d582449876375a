"""The files that say how a Stripe account moves in: whose customers are whose, and what prices sell.

CSV in UTF-8 with a header. What is wrong is told line by line, and with any line that is wrong nothing is done.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from djstripe.models import Customer

from entitlements.models import SlotPack
from subscriptions.models import Plan, PlanPrice, Subscription, Tenant
from subscriptions.states import LIVE, Type

MAP = (("customer", "tenant"), ("subscription",))  # the columns that there must be, and may be
PRICES = (("stripe_price",), ("plan", "currency", "interval", "interval_count", "slot_pack"))
MOST_BYTES = 20_000_000
CUSTOMER, PRICE = re.compile(r"cus_[A-Za-z0-9]{1,250}", re.ASCII), re.compile(r"[A-Za-z0-9_]{1,255}", re.ASCII)


@dataclass(frozen=True)
class Wrong:
    """A line that cannot be; 1 is the header."""

    line: int
    detail: str


@dataclass
class Map:
    tenants: dict[str, str] = field(default_factory=dict)  # slugs by Stripe customer
    subscriptions: dict[str, str] = field(default_factory=dict)  # numbers of ours that go on, by Stripe customer
    wrong: list[Wrong] = field(default_factory=list)


@dataclass(frozen=True)
class Sells:
    """What a Stripe price sells, as somebody said it."""

    plan: str = ""
    currency: str = ""
    interval: str = ""
    interval_count: int = 1
    pack: str = ""

    def __str__(self) -> str:
        if self.pack:
            return f"slot pack {self.pack}"
        return f"price of {self.plan} in {self.currency} per {self.interval_count} {self.interval}"

    def of(self, prices: Iterable[PlanPrice]) -> PlanPrice | None:
        wanted = (self.plan, self.currency, self.interval, self.interval_count)
        found = (p for p in prices if (p.plan.code, p.currency, p.interval, p.interval_count) == wanted)
        return next(found, None)


@dataclass
class Prices:
    sells: dict[str, Sells] = field(default_factory=dict)
    wrong: list[Wrong] = field(default_factory=list)


def read_map(content: bytes) -> Map:
    """`customer,tenant`, and `subscription`: the number of one of ours that goes on with what Stripe bills."""
    found = Map()
    rows = [*_rows(content, *MAP, found.wrong)]
    slugs = dict(Tenant.objects.filter(slug__in={row["tenant"] for _, row in rows}).values_list("slug", "pk"))
    numbers = {row["subscription"] for _, row in rows} - {""}
    ours = {s.number: s for s in Subscription.objects.filter(number__in=numbers).select_related("stripe_link")}
    whose = dict(
        Customer.objects.filter(id__in={row["customer"] for _, row in rows}, subscriber__isnull=False).values_list(
            "id", "subscriber__slug"
        )
    )
    tenants: set[str] = set()
    for line, row in rows:
        customer, slug, number = row["customer"], row["tenant"], row["subscription"]
        if not CUSTOMER.fullmatch(customer):
            found.wrong.append(Wrong(line, f"{customer!r} is no Stripe customer: cus_…"))
        elif customer in found.tenants:
            found.wrong.append(Wrong(line, f"{customer} is in the file before."))
        elif slug not in slugs:
            found.wrong.append(Wrong(line, f"There is no tenant {slug!r}."))
        elif slug in tenants:
            found.wrong.append(Wrong(line, f"The tenant {slug} is in the file before: it has one Stripe customer."))
        elif whose.get(customer, slug) != slug:
            found.wrong.append(Wrong(line, f"{customer} is the tenant {whose[customer]} already."))
        elif number and (detail := _cannot_go_on(number, ours.get(number), slugs[slug])):
            found.wrong.append(Wrong(line, detail))
        else:
            tenants.add(slug)
            found.tenants[customer] = slug
            if number:
                found.subscriptions[customer] = number
    return found


def _cannot_go_on(number: str, ours: Subscription | None, tenant_id: int) -> str:
    if ours is None or ours.tenant_id != tenant_id:
        return f"The tenant has no subscription {number}."
    if ours.type != Type.MAIN or ours.status not in LIVE:
        return f"{number} is no main subscription that lives: it cannot go on."
    return ""


def read_prices(content: bytes) -> Prices:
    """`stripe_price,plan,currency,interval,interval_count`, or `stripe_price,slot_pack`: a line has one of the two."""
    found = Prices()
    rows = [*_rows(content, *PRICES, found.wrong)]
    plans = set(Plan.objects.values_list("code", flat=True))
    packs = set(SlotPack.objects.values_list("code", flat=True))
    prices = [*PlanPrice.objects.select_related("plan")]
    for line, row in rows:
        count = row["interval_count"] or "1"
        if not PRICE.fullmatch(row["stripe_price"]):
            found.wrong.append(Wrong(line, f"{row['stripe_price']!r} is no Stripe price."))
            continue
        if row["stripe_price"] in found.sells:
            found.wrong.append(Wrong(line, f"{row['stripe_price']} is in the file before."))
            continue
        if bool(row["plan"]) == bool(row["slot_pack"]):
            found.wrong.append(Wrong(line, "It names a plan or a slot pack, one of them."))
            continue
        if not (count.isascii() and count.isdigit() and 0 < int(count) < 1000):
            found.wrong.append(Wrong(line, f"{count!r} is no count of intervals."))
            continue
        sells = Sells(row["plan"], row["currency"].upper(), row["interval"], int(count), row["slot_pack"])
        if (sells.pack and sells.pack not in packs) or (sells.plan and sells.plan not in plans):
            missing = f"slot pack {sells.pack!r}" if sells.pack else f"plan {sells.plan!r}"
            found.wrong.append(Wrong(line, f"We have no {missing}."))
        elif sells.plan and sells.of(prices) is None:
            found.wrong.append(Wrong(line, f"We have no {sells}."))
        else:
            found.sells[row["stripe_price"]] = sells
    return found


def _rows(
    content: bytes, must: tuple[str, ...], may: tuple[str, ...], wrong: list[Wrong]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Every line with something on it, with all columns, stripped."""
    if len(content) > MOST_BYTES:
        wrong.append(Wrong(1, f"It is larger than {MOST_BYTES:,} bytes."))
        return
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong.append(Wrong(content[: error.start].count(b"\n") + 1, "This is not UTF-8."))
        return
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not set(must) <= set(header) or len(set(header)) < len(header) or set(header) - {*must, *may}:
            wrong.append(Wrong(1, f"The header names {', '.join(must)}, and may name {', '.join(may)}."))
            return
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header) or any("\0" in cell for cell in cells):
                wrong.append(Wrong(reader.line_num, f"It has {len(cells)} cells, the header {len(header)}."))
                continue
            row = dict.fromkeys((*must, *may), "")
            row |= {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
            yield reader.line_num, row
    except csv.Error as error:
        wrong.append(Wrong(reader.line_num, f"This is no CSV: {error}."))
