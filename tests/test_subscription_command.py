"""`manage.py subscription`: a thin slice over the verbs. What the verbs do: test_lifecycle, test_families."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from billing_site.management.commands.subscription import Command
from subscriptions import lifecycle
from subscriptions.lifecycle import CancelAt
from subscriptions.management.verbs import VERBS
from subscriptions.models import Plan, SetAside, Subscription
from subscriptions.states import Type
from tests.builders import APR_1, FEB_1, JAN_1, MAR_1, PlanFactory, PlanPriceFactory, TenantFactory, subscription
from tests.history import at_once, by, entries, in_state, nothing_changes, on, state, steps, stuck

pytestmark = pytest.mark.django_db
ROOT = Path(__file__).resolve().parent.parent
WHY = ("--reason", "as agreed", "--now", "2026-01-10")
NOBODY = "SUB-20260101-00000"


@dataclass(frozen=True)
class Ran:
    out: list[str]
    err: list[str]
    error: str = ""  # a shell would see a non-zero exit code


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def run(*words: str, stdin: bytes = b"", err: StringIO | None = None) -> Ran:
    out, err, error = StringIO(), err or StringIO(), ""
    try:
        call_command("subscription", *words, stdout=out, stderr=err, standard_input=BytesIO(stdin))
    except CommandError as refusal:
        error = str(refusal)
    return Ran(out.getvalue().splitlines(), err.getvalue().splitlines(), error)


def objects(ran: Ran) -> list[Any]:
    return [json.loads(line) for line in ran.out]


def priced(type: Type = Type.MAIN, **given: Any) -> Plan:
    plan: Plan = PlanFactory.create(type=type, **given)
    PlanPriceFactory.create(plan=plan)
    return plan


def family() -> tuple[Subscription, Subscription]:
    main = subscription(plan=PlanPriceFactory.create().plan)
    return main, subscription(Type.ADDON, parent=main)


# --- each verb -------------------------------------------------------------------------------------------------------

# What each verb is told, of a subscription in which status, and what that makes of it on the 10th of January.
VERBS_AT_WORK: list[tuple[str, list[str], str, str]] = [
    ("activate", [], "GRACE", "ACTIVE"),
    ("renew", ["--until", "2026-03-01"], "GRACE", "ACTIVE"),
    ("grace", [], "ACTIVE", "GRACE"),
    ("suspend", [], "ACTIVE", "SUSPENDED"),
    ("suspend", ["--hold"], "ACTIVE", "HOLD"),
    ("lift-hold", [], "HOLD", "ACTIVE"),
    ("cancel", [], "ACTIVE", "ACTIVE"),
    ("cancel", ["--at", "term-end"], "ACTIVE", "ACTIVE"),
    ("cancel", ["--at", "now"], "ACTIVE", "EXPIRED"),
    ("resume", [], "CANCELLED", "ACTIVE"),
    ("expire", [], "ACTIVE", "EXPIRED"),
    ("expire", ["--why", "never_paid"], "ACTIVE", "EXPIRED"),
    ("extend-grace", ["--until", "2026-04-01"], "GRACE", "GRACE"),
    ("amend-term", ["--term-end", "2026-04-01"], "ACTIVE", "ACTIVE"),
    ("change-plan", ["--plan", "other"], "ACTIVE", "ACTIVE"),
]


def test_every_verb_is_tried_here() -> None:
    assert {verb for verb, *_ in VERBS_AT_WORK} | {"start"} == set(VERBS)


@pytest.mark.parametrize(("verb", "told", "before", "after"), VERBS_AT_WORK)
def test_a_verb_changes_it_and_prints_the_change_and_the_count(
    verb: str, told: list[str], before: str, after: str
) -> None:
    PlanFactory.create(code="other")
    s = in_state(before)
    ran = run(verb, s.number, *told, *WHY, "--source", "ticket-1")
    assert (ran.error, ran.err, state(s)) == ("", [], after)
    entry = entries(s)[-1]
    assert (entry.actor, entry.reason, entry.source_id) == (f"operator:{os.getuid()}", "as agreed", "ticket-1")
    assert entry.effective_at == on(1, 10)
    assert len(ran.out) == 2
    assert ran.out[0].startswith(f"{s.number}  ")
    assert ran.out[1] == "1 changed, 0 with nothing to change, 0 failed."


@pytest.mark.parametrize(("verb", "told", "before", "after"), VERBS_AT_WORK)
def test_a_source_that_did_it_already_has_nothing_to_change(
    verb: str, told: list[str], before: str, after: str
) -> None:
    PlanFactory.create(code="other")
    s = in_state(before)
    run(verb, s.number, *told, *WHY, "--source", "ticket-1")
    with nothing_changes():
        ran = run(verb, s.number, *told, *WHY, "--source", "ticket-1")
    assert ran == Ran([f"{s.number}  nothing to change", "0 changed, 1 with nothing to change, 0 failed."], [], "")


@pytest.mark.parametrize(("verb", "told", "before", "after"), VERBS_AT_WORK)
def test_a_dry_run_prints_what_the_real_one_then_prints_and_changes_nothing(
    verb: str, told: list[str], before: str, after: str
) -> None:
    PlanFactory.create(code="other")
    s = in_state(before)
    with nothing_changes():
        dry = run(verb, s.number, *told, *WHY, "--dry-run")
    real = run(verb, s.number, *told, *WHY)
    assert (dry.out[:-1], dry.out[-1]) == (real.out[:-1], "1 would change, 0 with nothing to change, 0 failed.")


def test_renewing_without_a_date_continues_by_the_plans_interval() -> None:
    s = Subscription.objects.get(
        number=started(run("start", TenantFactory.create().slug, "--plan", priced().code, *WHY))
    )
    assert s.term_end == on(2, 10)
    run("renew", s.number, *WHY)
    s.refresh_from_db()
    assert s.term_end == on(3, 10)


def test_a_grace_period_is_extended_by_days_from_its_present_end() -> None:
    s = in_state("GRACE")  # until the 15th of February
    for _ in range(2):
        run("extend-grace", s.number, "--days", "7", *WHY)
    s.refresh_from_db()
    assert s.grace_end == on(3, 1)


def test_days_more_for_what_has_no_grace_period_are_refused() -> None:
    s = subscription()
    with nothing_changes():
        ran = run("extend-grace", s.number, "--days", "7", *WHY)
    assert ran.err == [f"{s.number}  illegal_transition  {s.number} is ACTIVE: it has no grace period."]


def test_a_trial_is_activated_as_the_plan_that_was_bought() -> None:
    trial = subscription(Type.TRIAL)
    run("activate", trial.number, "--plan", priced(code="fleet").code, "--interval", "month", *WHY)
    trial.refresh_from_db()
    assert (trial.type, trial.plan.code, trial.status) == ("MAIN", "fleet", "ACTIVE")
    assert (trial.term_start, trial.term_end) == (on(1, 10), on(2, 10))


def test_an_end_is_called_what_the_caller_says() -> None:
    s = subscription()
    run("expire", s.number, "--why", "never_paid", *WHY)
    s.refresh_from_db()
    assert s.end_reason == "never_paid"


# --- start -----------------------------------------------------------------------------------------------------------


def started(ran: Ran) -> str:
    """The number of the subscription that was started last."""
    assert ran.error == "", ran
    return ran.out[-2].split()[0]


def test_a_subscription_is_started_now_for_one_interval_of_its_price() -> None:
    acme = TenantFactory.create(slug="acme")
    plan = priced(code="fleet")
    PlanPriceFactory.create(plan=plan, interval="year")
    number = started(run("start", "acme", "--plan", "fleet", "--interval", "year", *WHY))
    s = Subscription.objects.get(number=number)
    assert (s.tenant, s.plan, s.status, s.price and s.price.interval) == (acme, plan, "ACTIVE", "year")
    assert (s.term_start, s.term_end) == (on(1, 10), on(1, 10).replace(year=2027))


def test_a_subscription_is_started_for_the_dates_that_are_said() -> None:
    tenant, plan = TenantFactory.create(), PlanFactory.create()
    term = ("--term-start", "2026-02-01", "--term-end", "2026-04-01")
    s = Subscription.objects.get(number=started(run("start", tenant.slug, "--plan", plan.code, *term, *WHY)))
    assert (s.term_start, s.term_end) == (FEB_1, APR_1)


def test_a_first_term_follows_the_tenants_calendar_where_the_plan_does() -> None:
    tenant = TenantFactory.create(time_zone="Europe/Berlin")
    plan = priced(terms_in=Plan.Calendar.TENANT)
    at = ("--term-start", "2026-03-15T00:00+01:00")
    s = Subscription.objects.get(number=started(run("start", tenant.slug, "--plan", plan.code, *at, *WHY)))
    assert s.term_end == on(4, 14, 22)  # midnight in Berlin, in summer


def test_an_addon_ends_with_its_main() -> None:
    main = subscription()
    plan = priced(Type.ADDON)
    ran = run("start", main.tenant.slug, "--plan", plan.code, "--parent", main.number, *WHY)
    addon = Subscription.objects.get(number=started(ran))
    assert (addon.parent, addon.term_start, addon.term_end) == (main, on(1, 10), main.term_end)


def test_a_main_takes_over_from_a_trial_and_both_changes_are_printed() -> None:
    trial = subscription(Type.TRIAL)
    ran = run("start", trial.tenant.slug, "--plan", priced().code, "--converts", trial.number, *WHY)
    assert started(ran) != trial.number
    assert ran.out[0].startswith(f"{trial.number}  TRIAL → EXPIRED")
    assert "new → ACTIVE" in ran.out[1]
    assert ran.out[2] == "1 changed, 0 with nothing to change, 0 failed."


def test_a_start_by_the_same_source_happens_once() -> None:
    tenant, plan = TenantFactory.create(), priced()
    told = ("start", tenant.slug, "--plan", plan.code, *WHY, "--source", "order-1")
    started(run(*told))
    with nothing_changes():
        assert run(*told).out[0] == f"{tenant.slug}  nothing to change"


def test_a_dry_start_starts_nothing() -> None:
    tenant, plan = TenantFactory.create(), priced()
    with nothing_changes():
        ran = run("start", tenant.slug, "--plan", plan.code, *WHY, "--dry-run")
    assert "new → ACTIVE" in ran.out[0]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (["nobody", "--plan", "fleet"], "nobody  tenant_not_found  There is no tenant nobody."),
        (["acme", "--plan", "fleet", "--parent", NOBODY],
         f"acme  subscription_not_found  There is no subscription {NOBODY}."),
        (["acme", "--plan", "free"],
         "acme  no_price  The plan free has no price that says how long a term lasts: name its end."),
        (["acme", "--plan", "fleet", "--term-end", "2026-01-10"], "acme  invalid_term  term_end ("),
    ],
)  # fmt: skip
def test_a_start_that_is_refused_says_why_and_starts_nothing(told: list[str], said: str) -> None:
    TenantFactory.create(slug="acme"), priced(code="fleet"), PlanFactory.create(code="free")
    with nothing_changes():
        ran = run("start", *told, *WHY)
    assert ran.err[0].startswith(said)
    assert ran.error == "1 of 1 failed."


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (["--plan", "flee"], "There is no plan flee: there are fleet."),
        (["--plan", "fleet"], "Which price of the plan fleet? It has --price "),
        (["--plan", "fleet", "--interval", "month"], "Which price of the plan fleet? It has --price "),
        (["--plan", "fleet", "--price", "0"], "Which price of the plan fleet? It has --price "),
    ],
)
def test_a_plan_or_a_price_that_is_not_clear_is_asked_for(told: list[str], said: str) -> None:
    plan = priced(code="fleet")
    PlanPriceFactory.create(plan=plan, currency="USD")
    TenantFactory.create(slug="acme")
    with nothing_changes():
        assert run("start", "acme", *told, *WHY).error.startswith(said)
    one = plan.prices.get(currency="USD")
    s = Subscription.objects.get(number=started(run("start", "acme", "--plan", "fleet", "--price", str(one.pk), *WHY)))
    assert s.price == one


# --- who does it -----------------------------------------------------------------------------------------------------


def test_it_is_done_in_the_name_of_a_member_of_staff() -> None:
    alice, s = User.objects.create(username="alice", is_staff=True), subscription()
    run("suspend", s.number, *WHY, "--as", "alice")
    assert entries(s)[-1].actor == f"staff:{alice.pk}"


@pytest.mark.parametrize("who", ["nobody", "former", "customer"])
def test_nobody_but_active_staff_lends_a_name(who: str) -> None:
    User.objects.create(username="former", is_staff=True, is_active=False)
    User.objects.create(username="customer")
    s = subscription()
    with nothing_changes():
        assert run("suspend", s.number, *WHY, "--as", who).error == f"{who} is no active member of staff."


def test_another_trial_is_granted_by_who_may_and_by_an_operator() -> None:
    bob = User.objects.create(username="bob", is_staff=True)
    tenant, plan = TenantFactory.create(), priced(Type.TRIAL)
    another = ("start", tenant.slug, "--plan", plan.code, *WHY)
    started(run(*another))
    with nothing_changes():
        assert "trial_used" in run(*another).err[0]
        assert run(*another, "--another-trial", "--as", "bob").error == (
            "bob may not grant another trial: that takes the permission subscriptions.grant_another_trial."
        )
    bob.user_permissions.add(Permission.objects.get(codename="grant_another_trial"))
    started(run(*another, "--another-trial", "--as", "bob"))
    started(run(*another, "--another-trial"))
    assert [*tenant.subscriptions.order_by("pk").values_list("trial_ordinal", flat=True)] == [1, 2, 3]


# --- many at once ----------------------------------------------------------------------------------------------------


def test_one_that_fails_stops_no_other_and_is_listed_at_the_end() -> None:
    first, over, last = subscription(), in_state("EXPIRED"), subscription()
    ran = run("suspend", first.number, over.number, NOBODY, "rubbish", first.number, last.number, *WHY)
    assert [line.split()[0] for line in ran.out] == [first.number, last.number, "2"]
    assert ran.out[-1] == "2 changed, 0 with nothing to change, 4 failed."
    assert ran.err == [
        f"{over.number}  illegal_transition  {over.number} is EXPIRED: it cannot become SUSPENDED.",
        f"{NOBODY}  subscription_not_found  There is no subscription {NOBODY}.",
        "'rubbish'  malformed_number  A subscription's number looks like SUB-20260101-7KX2M.",
        f"{first.number}  named_twice  It has been named before: it was not done a second time.",
    ]
    assert ran.error == "4 of 6 failed."
    assert [state(s) for s in (first, over, last)] == ["SUSPENDED", "EXPIRED", "SUSPENDED"]


@pytest.mark.parametrize("dash", [[], ["-"]])
def test_numbers_come_from_standard_input(dash: list[str]) -> None:
    first, last = subscription(), subscription()
    given = f"\ufeff# those of ACME\r\n\n  {first.number}  # the first\n\xff\n{last.number}"
    ran = run("suspend", *dash, *WHY, stdin=given.encode("utf-8").replace("\xff".encode(), b"\xff"))
    assert [state(first), state(last)] == ["SUSPENDED", "SUSPENDED"]
    assert ran.err == ["line 4  not_utf_8  Line 4 of standard input is not UTF-8."]


def test_no_number_at_all_is_no_work_and_no_failure() -> None:
    assert run("suspend", *WHY) == Ran(["0 changed, 0 with nothing to change, 0 failed."], [], "")


def test_a_person_who_names_nothing_at_a_terminal_is_told_so() -> None:
    class Keyboard(BytesIO):
        def isatty(self) -> bool:
            return True

    with pytest.raises(CommandError, match="Name subscriptions by their numbers, or say - to type them in"):
        call_command("subscription", "suspend", *WHY, standard_input=Keyboard())


def test_a_long_run_says_how_far_it_is_at_a_terminal_only() -> None:
    many = [f"SUB-20260101-{n:05}" for n in range(250)]
    said = run("show", *many, err=Terminal()).err
    assert [line for line in said if " of " in line] == ["100 of 250", "200 of 250"]
    assert [line for line in run("show", *many).err if " of " in line] == []
    assert [line for line in run("show", *many[:100], err=Terminal()).err if " of " in line] == []


def test_the_changes_of_the_addons_that_follow_are_printed_too() -> None:
    main, addon = family()
    subscription()  # of somebody else
    with nothing_changes():
        dry = run("suspend", main.number, *WHY, "--dry-run")
    real = run("suspend", main.number, *WHY)
    assert [line.split()[0] for line in real.out] == [main.number, addon.number, "1"]
    assert dry.out[:-1] == real.out[:-1]


def statements(*words: str) -> int:
    with CaptureQueriesContext(connection) as queries:
        assert run(*words).error == ""
    return len([q for q in queries if "SAVEPOINT" not in q["sql"]])


def test_a_number_takes_six_statements_whatever_its_family() -> None:
    """To find it, to lock, to read, to write, to read what was written, and to note what Stripe has to be told."""
    alone, (main, _) = subscription(), family()
    subscription(Type.ADDON, parent=main)
    assert statements("suspend", alone.number, *WHY) == 6
    assert statements("suspend", main.number, *WHY) == 6
    others = [subscription().number for _ in range(7)]
    assert statements("suspend", *others, *WHY) == 6 * 7


def test_showing_one_takes_four_statements_whatever_its_family_and_its_history() -> None:
    alone, (main, _) = subscription(), family()
    for _ in range(3):
        lifecycle.renew(main.pk, term_end=MAR_1, **by(on(1, 10)))
        lifecycle.amend_term(main.pk, term_end=FEB_1, **by(on(1, 10)))
    assert statements("show", alone.number) == statements("show", main.number) == 4


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_json_is_an_object_a_line_for_each_number_and_nothing_else() -> None:
    main, addon = family()
    held = in_state("HOLD")
    given = ("renew", main.number, held.number, NOBODY, "--until", "2026-03-01", *WHY, "--json")
    ran = run(*given)
    renewed, extended, nobody = objects(ran)
    assert (renewed["number"], renewed["changed"], renewed["error"]) == (main.number, True, None)
    assert [entry["subscription"] for entry in renewed["entries"]] == [main.number, addon.number]
    entry = renewed["entries"][0]
    assert (entry["action"], entry["effective_at"]) == ("renewed", "2026-01-10T00:00:00+00:00")
    assert entry["changes"]["term_end"] == ["2026-02-01T00:00:00+00:00", "2026-03-01T00:00:00+00:00"]
    assert extended["changed"]
    assert nobody == {
        "number": NOBODY, "changed": False, "entries": [],
        "error": {"code": "subscription_not_found", "detail": f"There is no subscription {NOBODY}."},
    }  # fmt: skip
    again, *_ = objects(run(*given))
    assert again == {"number": main.number, "changed": False, "entries": [], "error": None}


def test_json_of_a_dry_run_is_that_of_the_real_one() -> None:
    main, _ = family()
    given = ("suspend", main.number, *WHY, "--json")
    with nothing_changes():
        [dry] = objects(run(*given, "--dry-run"))
    [real] = objects(run(*given))
    for told in (dry, real):
        for entry in told["entries"]:
            del entry["recorded_at"]
    assert dry == real


def test_json_of_a_start_has_the_new_number() -> None:
    tenant, plan = TenantFactory.create(), priced()
    [told] = objects(run("start", tenant.slug, "--plan", plan.code, *WHY, "--json"))
    assert told["number"] == Subscription.objects.get().number


# --- show ------------------------------------------------------------------------------------------------------------


def test_a_subscription_is_shown_with_all_that_a_person_asks() -> None:
    tenant = TenantFactory.create(slug="acme", name="Acme Robotics", time_zone="Europe/Berlin")
    price = PlanPriceFactory.create(plan=PlanFactory.create(code="fleet", name="Fleet", terms_in="calendar"))
    berlin_midnight = (on(1, 10, 23), on(2, 10, 23))
    s = subscription(tenant=tenant, plan=price.plan, term=berlin_midnight)
    addon = subscription(Type.ADDON, parent=s, term=berlin_midnight)
    SetAside.objects.create(root=s, error="no such luck", since=on(1, 20), retry_at=on(1, 21))
    lifecycle.suspend(s.pk, hold=True, **by(on(1, 12)))
    ran = run("show", s.number, "--now", "2026-01-15")
    assert ran.out[:9] == [
        f"{s.number}  SUSPENDED, does not serve",
        "  tenant          acme (Acme Robotics)",
        "  type            MAIN",
        "  plan            fleet (Fleet)",
        "  term start      2026-01-10 23:00:00 UTC (2026-01-11 00:00:00 Europe/Berlin)",
        "  term end        2026-02-10 23:00:00 UTC (2026-02-11 00:00:00 Europe/Berlin)",
        "  on hold         its own, until staff lift it",
        f"  family          {addon.number} (ADDON, SUSPENDED)",
        "  next            nothing by itself",
    ]
    assert ran.out[9].endswith("(2026-01-20 01:00:00 Europe/Berlin): no such luck")
    assert ran.out[10:12] == [
        "  history",
        "    2026-01-01 00:00:00 UTC (2026-01-01 01:00:00 Europe/Berlin)  Started by staff:1, ordered by letter",
    ]
    assert ran.out[13].endswith("  Suspended by staff:1, as agreed")
    assert ran.out[14].strip().startswith("status ACTIVE → SUSPENDED; ")


def test_what_an_addon_does_next_is_what_its_main_does_unless_it_was_cancelled() -> None:
    main, addon = family()
    assert f"  next            GRACE at 2026-02-01 00:00:00 UTC, with {main.number}" in run("show", addon.number).out
    lifecycle.cancel(addon.pk, at=CancelAt.TERM_END, **by(on(1, 10)))
    assert "  next            EXPIRED at 2026-02-01 00:00:00 UTC" in run("show", addon.number).out


def test_what_is_over_is_shown_too() -> None:
    s = in_state("EXPIRED")
    out = run("show", s.number).out
    assert "  ended at        2026-01-05 00:00:00 UTC" in out
    assert "  ended because   Cancelled" in out


def test_what_was_sold_ahead_serves_from_its_beginning() -> None:
    s = subscription(term=(FEB_1, MAR_1))
    assert run("show", s.number, "--now", "2026-01-31").out[0] == f"{s.number}  ACTIVE, does not serve"
    assert run("show", s.number, "--now", "2026-02-01").out[0] == f"{s.number}  ACTIVE, serves"


def test_json_shows_the_same() -> None:
    main, addon = family()
    SetAside.objects.create(root=main, error="no such luck", since=JAN_1, retry_at=JAN_1)
    shown, nobody = objects(run("show", main.number, NOBODY, "--json", "--now", "2026-01-15"))
    assert (shown["number"], shown["status"], shown["serves"], shown["error"]) == (main.number, "ACTIVE", True, None)
    assert shown["family"] == [{"number": addon.number, "type": "ADDON", "status": "ACTIVE"}]
    assert shown["next_step"] == {"at": "2026-02-01T00:00:00+00:00", "status": "GRACE", "end_reason": None}
    assert shown["set_aside"]["error"] == "no such luck"
    assert [entry["action"] for entry in shown["audit"]] == ["started"]
    assert nobody["error"]["code"] == "subscription_not_found"


# --- wrong arguments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: VERB"),
        (["renew", NOBODY], "the following arguments are required: --reason"),
        (["renew", NOBODY, "--reason", " "], "argument --reason: it must not be blank."),
        (["renew", NOBODY, "--reason", "\udcff"], r"argument --reason: '\udcff' is not UTF-8."),
        (["renew", NOBODY, *WHY, "--source", "x" * 256], "argument --source: it is longer than 255 characters."),
        (["renew", NOBODY, *WHY, "--until", "2026-03-01T00:00"], "--until: 2026-03-01T00:00 has no time zone."),
        (["renew", NOBODY, *WHY, "--now", "soon"], "argument --now: 'soon' is not an ISO 8601 instant"),
        (["extend-grace", NOBODY, *WHY], "one of the arguments --until --days is required"),
        (["extend-grace", NOBODY, *WHY, "--days", "0"], "argument --days: '0' is no number of days"),
        (["cancel", NOBODY, *WHY, "--at", "noon"], "argument --at: invalid choice: 'noon'"),
        (["start", "acme", *WHY], "the following arguments are required: --plan"),
        (["start", "acme", "--plan", "p", *WHY, "--parent", "x"], "--parent: 'x' is no number: they look like"),
        (["activate", NOBODY, *WHY, "--interval", "year"],
         "--interval says something of a purchase: name its --plan, too."),
        (["rennew", NOBODY], "argument VERB: invalid choice: 'rennew'"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_one_clear_line(words: list[str], said: str) -> None:
    with nothing_changes():
        ran = run(*words)
    assert said in ran.error
    assert len(ran.error.splitlines()) == 1


@pytest.mark.parametrize("verb", ["show", *VERBS])
def test_the_help_of_each_verb_says_what_it_does_and_has_an_example_that_parses(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        call_command("subscription", verb, "--help")
    text = capsys.readouterr().out
    assert end.value.code == 0
    example = text.partition("example:\n  manage.py subscription ")[2]
    options = Command().create_parser("manage.py", "subscription").parse_args(shlex.split(example))
    assert options.verb == verb


# --- as a shell runs it ----------------------------------------------------------------------------------------------


def manage(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "manage.py", "subscription", *words]
    return subprocess.run(command, input=stdin, cwd=ROOT, env=here(), capture_output=True, timeout=60, check=False)


def here() -> dict[str, str]:
    """The environment of a process that works in the database of this test."""
    its = connection.settings_dict
    host = quote(its["HOST"], safe="") + (f":{its['PORT']}" if its["PORT"] else "")
    return os.environ | {"DATABASE_URL": f"postgres://{its['USER']}:{its['PASSWORD']}@{host}/{its['NAME']}"}


@pytest.mark.django_db(transaction=True)
def test_a_shell_pipes_numbers_in_and_sees_what_failed() -> None:
    first, last = subscription(), subscription()
    done = manage("suspend", *WHY, stdin=f"{first.number}\n{NOBODY}\n\xff\n{last.number}\n".encode("latin-1"))
    assert done.returncode == 1
    assert done.stdout.decode().splitlines()[-1] == "2 changed, 0 with nothing to change, 2 failed."
    assert done.stderr.decode().splitlines() == [
        f"{NOBODY}  subscription_not_found  There is no subscription {NOBODY}.",
        "line 3  not_utf_8  Line 3 of standard input is not UTF-8.",
        "CommandError: 2 of 4 failed.",
    ]
    assert [state(first), state(last)] == ["SUSPENDED", "SUSPENDED"]


@pytest.mark.django_db(transaction=True)
def test_a_dry_run_in_a_shell_changes_nothing() -> None:
    main, addon = family()
    with nothing_changes():
        done = manage("suspend", main.number, *WHY, "--dry-run")
    assert (done.returncode, done.stderr) == (0, b"")
    assert [line.split()[0] for line in done.stdout.decode().splitlines()] == [main.number, addon.number, "1"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_the_database_does_not_take_fails_alone_and_does_so_in_a_dry_run(dry: list[str]) -> None:
    s, other = subscription(), subscription()
    with stuck(s, "RAISE EXCEPTION 'it is stuck'"):
        ran = run("suspend", s.number, other.number, *WHY, *dry)
    assert (ran.err, ran.error) == ([f"{s.number}  not_written  it is stuck"], "1 of 2 failed.")
    assert (state(s), state(other)) == ("ACTIVE", "ACTIVE" if dry else "SUSPENDED")


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_breaks_fails_one_and_the_next_one_has_another() -> None:
    s, other = subscription(), subscription()
    with stuck(s, "PERFORM pg_terminate_backend(pg_backend_pid())"):
        ran = run("suspend", s.number, other.number, *WHY)
    assert [line.split("  ")[:2] for line in ran.err] == [[s.number, "not_written"]]
    assert (state(s), state(other)) == ("ACTIVE", "SUSPENDED")


@pytest.mark.django_db(transaction=True)
def test_numbers_that_are_named_need_no_standard_input() -> None:
    s = subscription()
    command = f'exec "{sys.executable}" manage.py subscription suspend {s.number} --reason agreed --now 2026-01-10 <&-'
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, env=here(), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr, state(s)) == (0, b"", "SUSPENDED")


def test_wrong_arguments_end_a_shells_command_with_two_and_no_traceback() -> None:
    done = manage("renew", NOBODY)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[-1].endswith("error: the following arguments are required: --reason")


@pytest.mark.django_db(transaction=True)
def test_a_reader_that_goes_away_is_no_trouble() -> None:
    s = subscription()
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "manage.py", "subscription", "show", s.number, s.number]
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            command, stdout=closed, stderr=subprocess.PIPE, cwd=ROOT, env=here(), timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"")


# --- two at once -----------------------------------------------------------------------------------------------------

TWO: list[tuple[str, str, list[str], list[str]]] = [
    ("renew", "renew", ["--until", "2026-03-01"], ["--until", "2026-04-01"]),
    ("renew", "suspend", ["--until", "2026-03-01"], ["--hold"]),
    ("cancel", "amend-term", [], ["--term-end", "2026-03-01"]),
    ("suspend", "suspend", [], []),
    ("expire", "renew", [], ["--until", "2026-03-01"]),
    ("grace", "change-plan", [], ["--plan", "other"]),
    ("expire", "expire", [], ["--why", "never_paid"]),
]


def carried_out(verb: str, s: Subscription, told: list[str]) -> Ran:
    return run(verb, s.number, *told, *WHY)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("one", "other", "told_one", "told_other"), TWO)
def test_two_who_act_on_one_family_at_the_same_instant_act_in_order_or_one_is_refused(
    one: str, other: str, told_one: list[str], told_other: list[str]
) -> None:
    PlanFactory.create(code="other")
    main, addon = family()
    answers = at_once(partial(carried_out, one, main, told_one), partial(carried_out, other, main, told_other))
    rans = [answer for answer in answers if isinstance(answer, Ran)]
    assert len(rans) == 2, answers
    changes = sum(bool(ran.out) and ran.out[-1].startswith("1 changed") for ran in rans)
    refusals = [ran.err[0].split("  ")[1] for ran in rans if ran.error]
    unchanged = sum(ran.out[-1].startswith("0 changed, 1 with nothing") for ran in rans)
    assert changes + len(refusals) + unchanged == 2
    assert set(refusals) <= {"illegal_transition"}
    for s in (main, addon):
        versions = [entry.version for entry in entries(s)]
        s.refresh_from_db()
        assert versions == [*range(1, s.version + 1)]
    assert len(steps(main)) == changes


@pytest.mark.django_db(transaction=True)
def test_two_who_add_days_to_a_grace_period_at_once_add_both() -> None:
    s = in_state("GRACE")
    at_once(*[partial(carried_out, "extend-grace", s, ["--days", "7"])] * 2)
    s.refresh_from_db()
    assert s.grace_end == on(3, 1)


def test_change_plan_may_sell_another_quantity() -> None:
    plan = PlanFactory.create()
    s = subscription(plan=plan)
    said = ["change-plan", s.number, "--plan", plan.code, "--reason", "PO 4712"]
    assert run(*said, "--quantity", "4").error == ""
    s.refresh_from_db()
    assert s.quantity == 4
    for wrong in ("0", "-1", "many", "100001"):
        with nothing_changes():
            assert "quantity" in run(*said, "--quantity", wrong).error.lower()
