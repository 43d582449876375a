"""`manage.py forecast`: what it prints, and how it ends."""

import json
from datetime import datetime

import pytest
from django.core.management import load_command_class

from subscriptions.states import Type
from tests.builders import JAN_1, subscription
from tests.history import in_state, nothing_changes
from tests.test_commands import refused, run
from tests.test_forecast import priced

pytestmark = pytest.mark.django_db

AT = ("--now", "2026-01-10")
AS_OF = "2026-01-10T00:00:00+00:00"


def test_it_prints_a_line_for_each_event_with_its_reason_and_the_count() -> None:
    s = subscription()
    assert run("forecast", s.number, *AT) == [
        f"2026-01-10T00:00:00+00:00  {s.number}  notice renewal_30  Its term end comes near: 1 February 2026",
        f"2026-02-01T00:00:00+00:00  {s.number}  grace_started  The term is over and not renewed",
        f"2026-02-01T00:00:00+00:00  {s.number}  notice grace_started  The tenant is told that it happened",
        f"2026-02-12T00:00:00+00:00  {s.number}  notice grace_ending_3  Its grace end comes near: 15 February 2026",
        f"2026-02-15T00:00:00+00:00  {s.number}  suspended  The grace period is over and nothing was paid",
        f"2026-02-15T00:00:00+00:00  {s.number}  notice suspended  The tenant is told that it happened",
        f"2026-04-16T00:00:00+00:00  {s.number}  expired  It was suspended for too long",
        f"2026-04-16T00:00:00+00:00  {s.number}  notice expired  The tenant is told that it happened",
        f"8 events from {AS_OF} on.",
    ]


def test_days_are_how_far_it_looks() -> None:
    s = subscription()
    assert run("forecast", s.number, *AT, "--days", "0") == [f"0 events from {AS_OF} on before {AS_OF}."]
    assert (
        run("forecast", s.number, *AT, "--days", "1")[-1]
        == f"1 event from {AS_OF} on before 2026-01-11T00:00:00+00:00."
    )
    assert len(run("forecast", s.number, *AT, "--days", "23")) == 4
    assert len(run("forecast", s.number, *AT, "--days", "9999999")) == 9


def test_json_has_an_object_a_line_and_nothing_else() -> None:
    s = in_state("CANCELLED")
    first, *_ = run("forecast", s.number, *AT, "--json")
    assert json.loads(first).keys() == {"at", "subscription", "what", "why", "source"}
    lines = [json.loads(line) for line in run("forecast", s.number, "--now", "2026-01-31", "--json")]
    assert [line for line in lines if line["source"] == "deadline"] == [
        {
            "at": "2026-02-01T00:00:00+00:00", "subscription": s.number, "what": "expired",
            "why": "It was cancelled at its term's end", "source": "deadline",
        }
    ]  # fmt: skip


def test_a_tenants_list_has_everything_that_it_has() -> None:
    main = subscription()
    trial = subscription(Type.TRIAL, tenant=main.tenant)
    other = subscription()
    told = "\n".join(run("forecast", "--tenant", main.tenant.slug, *AT))
    assert main.number in told
    assert trial.number in told
    assert other.number not in told


def test_without_an_instant_it_is_now() -> None:
    s = subscription(term=(JAN_1, datetime.fromisoformat("2999-01-01T00:00:00Z")))
    assert run("forecast", s.number, "--days", "30")[-1].startswith("0 events from 20")


@pytest.mark.parametrize(
    ("what_if", "then"),
    [
        (["--paid-on", "2026-01-20"], [("2026-01-20", "renewed"), ("2026-03-01", "grace_started")]),
        (
            ["--paid-on", "2026-01-20", "--paid-on", "2026-01-21"],
            [("2026-01-20", "renewed"), ("2026-01-21", "renewed"), ("2026-04-01", "grace_started")],
        ),
        (["--renewed-until", "2026-03-10"], [("2026-01-10", "renewed"), ("2026-03-10", "grace_started")]),
        (
            ["--renewed-until", "2026-03-10", "--on", "2026-02-05"],
            [("2026-02-01", "grace_started"), ("2026-02-05", "renewed"), ("2026-03-10", "grace_started")],
        ),
        (["--cancelled-on", "2026-01-20"], [("2026-01-20", "expired")]),
        (
            ["--cancelled-on", "2026-01-20", "--at-term-end"],
            [("2026-01-20", "cancel_scheduled"), ("2026-02-01", "expired")],
        ),
        (
            ["--cancelled-on", "2026-02-10", "--at-term-end", "--paid-on", "2026-01-20"],
            [("2026-01-20", "renewed"), ("2026-02-10", "cancel_scheduled"), ("2026-03-01", "expired")],
        ),
    ],
)  # fmt: skip
def test_what_if(what_if: list[str], then: list[tuple[str, str]]) -> None:
    s = priced()
    with nothing_changes():
        lines = [json.loads(line) for line in run("forecast", s.number, *what_if, *AT, "--json")]
    deadlines = [(line["at"][:10], line["what"]) for line in lines if line["source"] == "deadline"]
    assert deadlines[: len(then)] == then


def test_what_cannot_be_done_is_said_and_the_command_fails() -> None:
    s = subscription()
    addon = subscription(Type.ADDON, parent=s)
    for number, what_if, why in [
        ("SUB-20260101-00000", [], "There is no subscription SUB-20260101-00000."),
        (s.number, ["--paid-on", "2026-01-20"], "No price says how long a renewal lasts: name its end"),
        (s.number, ["--cancelled-on", "2026-01-09"], "What if, on 2026-01-09T00:00:00+00:00? That has passed."),
        (s.number, ["--cancelled-on", "2026-12-01"], f"{s.number} would be EXPIRED on 2026-12-01"),
        (addon.number, ["--renewed-until", "2026-12-01"], "An add-on's dates are its main subscription's"),
        (s.number, ["--on", "2026-01-20"], "--on says when it were renewed"),
        (s.number, ["--at-term-end"], "--at-term-end says how it were cancelled"),
    ]:
        printed, error = refused("forecast", number, *what_if, *AT)
        assert (printed, error[: len(why)]) == ([], why)


def test_an_unknown_tenant_and_a_what_if_of_a_whole_tenant_are_refused() -> None:
    s = subscription()
    assert refused("forecast", "--tenant", "nobody")[1] == "There is no tenant nobody."
    asked = ("forecast", "--tenant", s.tenant.slug, "--paid-on", "2999-01-01")
    assert refused(*asked)[1].startswith("What if is asked of one subscription")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "one of the arguments NUMBER --tenant is required"),
        (["SUB-1", "--tenant", "acme"], "argument --tenant: not allowed with argument NUMBER"),
        (["SUB-\udcff"], "argument NUMBER: 'SUB-\\udcff' is no name of anything here."),
        (["--tenant", "acm\0"], "argument --tenant: 'acm\\x00' is no name of anything here."),
        (["--tenant", ""], "argument --tenant: '' is no name of anything here."),
        (["SUB-1", "--days", "-1"], "argument --days: '-1' is not a number of days."),
        (["SUB-1", "--days", "soon"], "argument --days: 'soon' is not a number of days."),
        (["SUB-1", "--now", "2026-02-01T00:00:00"], "argument --now: 2026-02-01T00:00:00 has no time zone."),
        (["SUB-1", "--paid-on", "2026-02-01T00:00:00"], "argument --paid-on: 2026-02-01T00:00:00 has no time zone."),
        (["SUB-1", "--cancelled-on", "tomorrow"], "argument --cancelled-on: 'tomorrow' is not an ISO 8601 instant"),
    ],
)
def test_what_is_no_question_is_a_usage_error(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        load_command_class("billing_site", "forecast").run_from_argv(["manage.py", "forecast", *arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"manage.py forecast: error: {why}")
