"""An existing Stripe account moves in: customers, prices and subscriptions become ours, once, and again nothing."""

import json
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from djstripe.models import Customer

from subscriptions.models import AuditEntry, PlanPrice, Subscription, Tenant
from subscriptions.states import Status, Type
from tests.builders import PlanFactory, PlanPriceFactory, TenantFactory, selling, subscription
from tests.history import nothing_changes
from tests.stripe_cast import rings
from tests.stripe_sandbox.client import Sandbox
from webhooks import inbox
from webhooks.adopting import adoption
from webhooks.models import StripeEvent, StripeLink, StripePrice

pytestmark = pytest.mark.django_db


def customer(stripe: Sandbox, **metadata: str) -> str:
    made: dict[str, Any] = stripe.api("POST", "/v1/customers", email="a@b.example", metadata={"card": "ok", **metadata})
    return str(made["id"])


def price(stripe: Sandbox, ours: PlanPrice, **more: Any) -> str:
    made: dict[str, Any] = stripe.api(
        "POST", "/v1/prices", currency=ours.currency.lower(), unit_amount=ours.amount_minor,
        recurring={"interval": ours.interval}, product_data={"name": "Theirs"}, **more,
    )  # fmt: skip
    return str(made["id"])


def buys(stripe: Sandbox, customer: str, price: str) -> dict[str, Any]:
    made: dict[str, Any] = stripe.api("POST", "/v1/subscriptions", customer=customer, items=[{"price": price}])
    return made


def adopt(*arguments: str, fails: bool = False) -> list[dict[str, Any]]:
    out = StringIO()
    if fails:
        with pytest.raises(CommandError):
            call_command("adopt_stripe", "--json", *arguments, stdout=out, stderr=StringIO())
    else:
        call_command("adopt_stripe", "--json", *arguments, stdout=out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def file(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def acme(stripe: Sandbox) -> dict[str, Any]:
    """A customer whose metadata name the tenant, with a subscription at a price whose lookup key names the plan."""
    tenant, ours = TenantFactory.create(slug="acme"), PlanPriceFactory.create(plan=selling({"basic": 3}, code="pro"))
    who, what = customer(stripe, tenant="acme"), price(stripe, ours, lookup_key="pro_month")
    return {"tenant": tenant, "price": ours, "customer": who, "stripe_price": what, "sub": buys(stripe, who, what)}


def test_metadata_and_lookup_keys_say_whose_it_is_and_what_it_sells(stripe: Sandbox, acme: dict[str, Any]) -> None:
    adopt("--reason", "we moved")
    s = Subscription.objects.get(stripe_link=acme["sub"]["id"])
    assert (s.tenant, s.price, s.status, s.auto_renews) == (acme["tenant"], acme["price"], Status.ACTIVE, True)
    entry = s.audit.earliest("pk")
    assert (entry.action, entry.reason, entry.actor.partition(":")[0]) == ("started", "we moved", "operator")
    assert StripePrice.objects.get().plan_price == acme["price"]


def test_a_dry_run_says_what_would_be_and_writes_nothing(stripe: Sandbox, acme: dict[str, Any]) -> None:
    with nothing_changes():
        *lines, counts = adopt("--dry-run")
    assert [(line["kind"], line["what"]) for line in lines] == [
        ("customer", "matched"), ("price", "matched"), ("subscription", "adopted"),
    ]  # fmt: skip
    assert (lines[-1]["why"], counts["written"]) == ("would begin here", False)
    assert [table.objects.count() for table in (StripeLink, StripePrice, Customer)] == [0, 0, 0]


def test_a_second_run_has_nothing_to_do(stripe: Sandbox, acme: dict[str, Any]) -> None:
    adopt()
    with nothing_changes():
        *lines, counts = adopt()
    assert {line["what"] for line in lines} == {"here"}
    assert counts["reads"] == 3  # customers, prices, subscriptions


def test_one_that_was_killed_goes_on_and_ends_the_same(
    stripe: Sandbox, acme: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(adoption, "ask_and_apply", killed)
        with pytest.raises(Killed):
            adopt()
    adopt()
    assert Subscription.objects.get().stripe_link.pk == acme["sub"]["id"]


def test_a_main_subscription_that_the_file_names_goes_on_with_what_stripe_bills(
    stripe: Sandbox, tmp_path: Path
) -> None:
    ours = PlanPriceFactory.create(plan=selling({"basic": 3}))
    now = timezone.now()
    s = subscription(plan=ours.plan, price=ours, now=now, term=(now, now + timedelta(days=20)))
    who, what = customer(stripe), price(stripe, ours)
    sub = buys(stripe, who, what)
    map_ = file(tmp_path / "map.csv", "customer,tenant,subscription", f"{who},{s.tenant.slug},{s.number}")
    prices = file(
        tmp_path / "prices.csv",
        "stripe_price,plan,currency,interval,interval_count",
        f"{what},{ours.plan.code},EUR,month,1",
    )
    adopt("--map", map_, "--prices", prices)
    s.refresh_from_db()
    assert (s.stripe_link.pk, s.auto_renews, Subscription.objects.count()) == (sub["id"], True, 1)
    assert "billing_changed" in s.audit.values_list("action", flat=True)


def test_what_nothing_matches_is_reported_with_why_and_the_rest_is_done(
    stripe: Sandbox, acme: dict[str, Any], tmp_path: Path
) -> None:
    stranger = buys(stripe, customer(stripe), acme["stripe_price"])
    foreign = buys(
        stripe, customer(stripe, tenant=TenantFactory.create().slug), price(stripe, PlanPriceFactory.build(plan=None))
    )
    report = tmp_path / "report.csv"
    lines = adopt("--report", str(report), fails=True)
    why = {line["object_id"]: line["why"] for line in lines if line.get("what") == "waits"}
    assert "none has this customer" in why[stranger["id"]]
    assert "We sell nothing at the Stripe price" in why[foreign["id"]]
    assert Subscription.objects.get().tenant == acme["tenant"]
    assert stranger["id"] in report.read_text()


def test_an_addon_that_is_listed_before_its_main_is_adopted_too(stripe: Sandbox, acme: dict[str, Any]) -> None:
    addon = PlanPriceFactory.create(plan=selling({"basic": 1}, Type.ADDON, code="more"))
    more = price(stripe, addon, metadata={"plan": "more"})
    end = acme["sub"]["items"]["data"][0]["current_period_end"]
    stripe.api(
        "POST", "/v1/subscriptions", customer=acme["customer"], items=[{"price": more}], billing_cycle_anchor=end,
        proration_behavior="none",
    )  # fmt: skip
    adopt()
    assert sorted(Subscription.objects.values_list("type", flat=True)) == ["ADDON", "MAIN"]


def test_events_that_were_parked_for_an_unknown_customer_are_tried_again(stripe: Sandbox, acme: dict[str, Any]) -> None:
    StripePrice.objects.create(pk=acme["stripe_price"], plan_price=acme["price"])
    event = rings(acme["sub"]["id"])
    assert inbox.apply(event.pk, now=timezone.now()) == "parked: unknown_customer"
    adopt()
    assert StripeEvent.objects.get().state == "PENDING"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["customer;tenant"], "line 1: The header names customer, tenant"),
        (["customer,tenant", "cus_1,nobody"], "line 2: There is no tenant 'nobody'."),
        (["customer,tenant", "acme,acme"], "line 2: 'acme' is no Stripe customer"),
        (["customer,tenant", "cus_1,acme", "cus_1,acme"], "line 3: cus_1 is in the file before."),
        (["customer,tenant", "cus_1,acme", "", "cus_2,acme"], "line 4: The tenant acme is in the file before"),
        (["customer,tenant,subscription", "cus_1,acme,SUB-1"], "line 2: The tenant has no subscription SUB-1."),
        (["customer,tenant", "cus_1"], "line 2: It has 1 cells, the header 2."),
    ],
)
def test_a_file_with_a_wrong_line_does_nothing_and_names_the_line(
    stripe: Sandbox, tmp_path: Path, lines: list[str], said: str
) -> None:
    TenantFactory.create(slug="acme")
    told = StringIO()
    with pytest.raises(CommandError, match="nothing was done"):
        call_command("adopt_stripe", "--map", file(tmp_path / "map.csv", *lines), stderr=told)
    assert said in told.getvalue()
    assert stripe.requests() == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("price_1,pro,EUR,month,1,", ""),
        ("price_1,none,EUR,month,1,", "line 2: We have no plan 'none'."),
        ("price_1,pro,USD,month,1,", "line 2: We have no price of pro in USD per 1 month."),
        ("price_1,pro,EUR,month,x,", "line 2: 'x' is no count of intervals."),
        ("price_1,pro,EUR,month,1,pack", "line 2: It names a plan or a slot pack, one of them."),
        ("price_1,,,,,pack", "line 2: We have no slot pack 'pack'."),
    ],
)
def test_a_file_of_prices_is_checked_line_by_line(stripe: Sandbox, tmp_path: Path, line: str, said: str) -> None:
    PlanPriceFactory.create(plan=PlanFactory.create(code="pro"))
    told = StringIO()
    given = file(tmp_path / "p.csv", "stripe_price,plan,currency,interval,interval_count,slot_pack", line)
    if not said:
        call_command("adopt_stripe", "--prices", given, stdout=told, stderr=told)
        return
    with pytest.raises(CommandError, match="nothing was done"):
        call_command("adopt_stripe", "--prices", given, stderr=told)
    assert said in told.getvalue()


def test_a_tenant_whose_customer_is_another_already_is_left_as_it_is(stripe: Sandbox, acme: dict[str, Any]) -> None:
    adopt()
    second = customer(stripe, tenant="acme")
    lines = adopt()
    (line,) = [line for line in lines if line.get("object_id") == second]
    assert (line["what"], line["why"]) == ("waits", f"the tenant is {acme['customer']} already")
    assert AuditEntry.objects.filter(action="started").count() == 1
    assert Tenant.objects.count() == 1
