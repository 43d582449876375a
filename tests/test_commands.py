"""The commands: what they print, what they change, how they end."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command, load_command_class
from django.utils import timezone

from billing_site.local.caught_mail import Mailbox
from billing_site.management.commands import advance_subscriptions
from entitlements.models import SlotPack
from notifications.management.commands import send_notices
from notifications.models import Notice
from subscriptions.models import Member, Plan, PlanPrice, Subscription, Tenant
from subscriptions.states import Type
from tests.builders import FEB_1, JAN_1, PlanPriceFactory, TenantFactory, subscription
from tests.history import advance, nothing_changes, on, state
from tests.stripe_cast import bought_at_stripe, rings
from tests.stripe_sandbox.client import Sandbox
from tests.test_delivery import mail_server, mailbox  # noqa: F401
from tests.test_notices import told
from webhooks.management.commands import process_stripe_events
from webhooks.models import StripeEvent, StripePrice

pytestmark = pytest.mark.django_db


def run(*command: str, **options: Any) -> list[str]:
    """The lines that it printed. Raises CommandError where a shell would see a non-zero exit code."""
    out = StringIO()
    call_command(*command, stdout=out, **options)
    return out.getvalue().splitlines()


def refused(*command: str) -> tuple[list[str], str]:
    """What it had printed when it failed, and its error."""
    out = StringIO()
    with pytest.raises(CommandError) as error:
        call_command(*command, stdout=out)
    assert error.value.returncode == 1
    return out.getvalue().splitlines(), str(error.value)


# --- advance_subscriptions -------------------------------------------------------------------------------------------


def test_advancing_prints_a_line_per_step_and_the_count() -> None:
    s = subscription(term=(JAN_1, FEB_1))
    assert run("advance_subscriptions", "--now", "2026-03-01T12:00:00+01:00") == [
        f"{s.number}  ACTIVE → GRACE  effective 2026-02-01T00:00:00+00:00  grace_end 2026-02-15T00:00:00+00:00",
        f"{s.number}  GRACE → SUSPENDED  effective 2026-02-15T00:00:00+00:00  suspension_end 2026-04-16T00:00:00+00:00",
        "2 steps taken as of 2026-03-01T12:00:00+01:00.",
    ]
    assert state(s) == "SUSPENDED"


def test_a_dry_run_prints_what_the_real_one_then_prints_and_changes_nothing() -> None:
    main = subscription(term=(JAN_1, FEB_1))
    subscription(Type.ADDON, parent=main, term=(JAN_1, FEB_1))
    subscription(Type.TRIAL, term=(JAN_1, on(1, 15)))
    with nothing_changes():
        dry = run("advance_subscriptions", "--now", "2026-06-01", "--dry-run")
    real = run("advance_subscriptions", "--now", "2026-06-01")
    assert dry[-1] == "9 steps would be taken as of 2026-06-01T00:00:00+00:00."
    assert real[-1] == "9 steps taken as of 2026-06-01T00:00:00+00:00."
    assert dry[:-1] == real[:-1]
    assert {s.status for s in Subscription.objects.all()} == {"EXPIRED"}


def test_a_day_begins_at_midnight_utc() -> None:
    subscription(term=(JAN_1, FEB_1))
    assert run("advance_subscriptions", "--now", "2026-01-31") == ["0 steps taken as of 2026-01-31T00:00:00+00:00."]
    assert run("advance_subscriptions", "--now", "2026-02-01")[-1] == "1 step taken as of 2026-02-01T00:00:00+00:00."


def test_without_an_instant_it_is_now() -> None:
    later = timezone.now() + timedelta(days=1)
    subscription(term=(JAN_1, later))
    assert run("advance_subscriptions")[-1].startswith("0 steps taken as of ")


@pytest.mark.parametrize(
    ("now", "why"),
    [
        ("2026-02-01T00:00:00", "2026-02-01T00:00:00 has no time zone."),
        ("2026-02-01 12:00", "2026-02-01 12:00 has no time zone."),
        ("tomorrow", "'tomorrow' is not an ISO 8601 instant"),
        ("", "'' is not an ISO 8601 instant"),
        ("2026-02-30", "'2026-02-30' is not an ISO 8601 instant"),
        ("2026-02-01T25:00:00Z", "'2026-02-01T25:00:00Z' is not an ISO 8601 instant"),
        ("0001-01-01", "0001-01-01 (0001-01-01T00:00:00+00:00) is not between 1900 and 9000."),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z (9999-12-31T23:59:59+00:00) is not between 1900 and 9000."),
    ],
)
@pytest.mark.parametrize("app", ["billing_site", "notifications"])
def test_an_instant_that_is_none_is_a_usage_error(
    app: str, now: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    subscription(term=(JAN_1, FEB_1))
    name = {"billing_site": "advance_subscriptions", "notifications": "send_notices"}[app]
    with nothing_changes(), pytest.raises(SystemExit) as end:
        load_command_class(app, name).run_from_argv(["manage.py", name, "--now", now])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2
    assert said.startswith(f"manage.py {name}: error: argument --now: {why}")


# --- send_notices ----------------------------------------------------------------------------------------------------


def test_sending_prints_a_line_per_notice_and_the_count(mailbox: Mailbox) -> None:  # noqa: F811
    s = subscription(tenant=TenantFactory.create(billing_email="billing@acme.example"), term=(JAN_1, FEB_1))
    assert run("send_notices", "--now", "2026-01-20") == [
        f"{s.number}  renewal_30  billing@acme.example  Sent",
        "1 new notice; 1 tried.",
    ]
    assert (told(), len(mailbox.files())) == ([(s.pk, "renewal_30", FEB_1, "SENT")], 1)
    assert run("send_notices", "--now", "2026-01-21") == ["0 new notices; 0 tried."]


def test_a_dry_run_says_what_would_be_sent_and_sends_and_keeps_nothing(mailbox: Mailbox) -> None:  # noqa: F811
    subscription(term=(JAN_1, FEB_1))
    dry = run("send_notices", "--now", "2026-01-20", "--dry-run")
    assert (told(), mailbox.files()) == ([], [])
    real = run("send_notices", "--now", "2026-01-20")
    assert [line.replace("would be sent", "Sent") for line in dry[:-1]] == real[:-1]
    assert (dry[0].endswith("would be sent"), dry[-1]) == (True, "1 new notice; 1 would be tried.")


def test_what_could_not_be_sent_is_a_failure_of_the_command(mailbox: Mailbox) -> None:  # noqa: F811
    for address in ("reject@acme.example", "billing@bolt.example", ""):
        subscription(tenant=TenantFactory.create(billing_email=address), term=(JAN_1, FEB_1))
    lines, error = refused("send_notices", "--now", "2026-01-20")
    assert error == "2 could not be sent: see their errors in the admin."
    assert [line.split("  ", 2)[2] for line in lines[:-1]] == [
        "reject@acme.example  Failed  The mail server refused the address: 550.",
        "billing@bolt.example  Sent",
        "no address  Failed  The tenant has no address.",
    ]
    assert lines[-1] == "3 new notices; 3 tried."


def test_a_notice_that_failed_before_and_is_sent_now_is_no_failure(mailbox: Mailbox) -> None:  # noqa: F811
    s = subscription(term=(JAN_1, FEB_1))
    about = {"kind": "renewal_30", "anchor": FEB_1, "next_attempt_at": JAN_1, "attempts": 1, "error": "451"}
    Notice.objects.create(subscription=s, tenant=s.tenant, **about)
    assert run("send_notices", "--now", "2026-01-20")[-1] == "0 new notices; 1 tried."


# --- process_stripe_events -------------------------------------------------------------------------------------------


def test_events_that_are_due_are_applied(stripe: Sandbox) -> None:
    assert run("process_stripe_events") == ["0 events tried, 0 without success."]
    event = rings(bought_at_stripe(stripe)["id"])
    assert run("process_stripe_events") == [f"{event.pk}  started", "1 event tried, 0 without success."]


def test_a_parked_event_is_tried_again_by_its_id_or_with_all_that_failed(stripe: Sandbox) -> None:
    price = PlanPriceFactory.create()
    event = rings(bought_at_stripe(stripe, price=price)["id"])
    sold = StripePrice.objects.get()
    StripePrice.objects.all().delete()
    lines, error = refused("process_stripe_events")
    assert lines[-1] == "1 event tried, 1 without success."
    assert error == "Not every event could be applied: see their errors in the admin."
    assert (StripeEvent.objects.get().state, Subscription.objects.count()) == ("PARKED", 0)
    assert run("process_stripe_events") == ["0 events tried, 0 without success."]
    sold.save()
    assert run("process_stripe_events", "--failed") == [f"{event.pk}  started", "1 event tried, 0 without success."]
    again = run("process_stripe_events", "--replay", event.pk, event.pk)
    assert again == [f"{event.pk}  nothing new", "1 event tried, 0 without success."]
    assert run("process_stripe_events", "--failed") == ["0 events tried, 0 without success."]


def test_an_unknown_event_is_named_and_the_known_ones_are_still_tried(stripe: Sandbox) -> None:
    event = rings(bought_at_stripe(stripe)["id"])
    lines, error = refused("process_stripe_events", "--replay", "evt_nobody", event.pk)
    assert lines == [f"{event.pk}  started", "1 event tried, 0 without success."]
    assert error == "We know no event evt_nobody."


# --- the demo --------------------------------------------------------------------------------------------------------


def everything() -> dict[str, list[Mapping[str, Any]]]:
    models = (User, Tenant, Member, Plan, PlanPrice, Subscription, StripePrice, SlotPack)
    return {model.__name__: [*model._default_manager.order_by("pk").values()] for model in models}


def test_seeding_twice_changes_nothing_the_second_time(stripe: Sandbox) -> None:
    assert run("seed_demo") == ["3 tenants, 4 plans."]
    before, at_stripe = everything(), len(stripe.api("GET", "/v1/subscriptions", status="all")["data"])
    assert {tenant["slug"] for tenant in before["Tenant"]} == {"acme", "borealis", "cirrus"}
    assert run("seed_demo") == ["3 tenants, 4 plans."]
    assert everything() == before
    assert len(stripe.api("GET", "/v1/subscriptions", status="all")["data"]) == at_stripe == 1


def test_the_guide_names_every_place_and_the_first_steps(stripe: Sandbox, settings: Any) -> None:
    run("seed_demo")
    settings.DEMO_URL, settings.DEMO_MAIL_URL = "http://127.0.0.1:8000", "http://127.0.0.1:8025/"
    settings.DEMO_STRIPE_URL = stripe.url
    guide = "\n".join(run("demo_guide"))
    (awaited,) = stripe.api("GET", "/v1/subscriptions", status="all")["data"]
    trial = Subscription.objects.get(tenant__slug="acme")
    for said in (
        "http://127.0.0.1:8000/admin/", "http://127.0.0.1:8025/", "admin / termkeeper-demo",
        f"-X POST {stripe.url}/_sandbox/subscriptions/{awaited['id']}/pay",
        f"/admin/subscriptions/subscription/{trial.pk}/change/", "http://127.0.0.1:8000/billing",
    ):  # fmt: skip
        assert said in guide


@pytest.mark.django_db
def test_the_guide_does_not_ask_for_what_has_been_done(stripe: Sandbox, settings: Any) -> None:
    settings.DEMO_STRIPE_URL = stripe.url
    run("seed_demo")
    trial = Subscription.objects.get(tenant__slug="acme")
    advance(trial.term_end)
    guide = "\n".join(run("demo_guide"))
    assert f"{trial.number} of Acme Robotics is GRACE by now" in guide
    assert "Next step" not in guide


def test_the_guide_of_an_empty_service_only_names_places() -> None:
    assert "Next step" not in "\n".join(run("demo_guide"))


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (advance_subscriptions, ["--now ISO", "2026-11-22T12:00:00Z", "midnight UTC", "--dry-run", "change nothing"]),
        (send_notices, ["--now ISO", "2026-11-22T12:00:00Z", "midnight UTC", "--dry-run", "change nothing"]),
        (process_stripe_events, ["--replay ID [ID ...]", "evt_…", "--failed", "parked"]),
    ],
    ids=lambda value: getattr(value, "__name__", "").rpartition(".")[2],
)
def test_help_says_what_each_argument_looks_like(command: Any, said: list[str]) -> None:
    text = " ".join(command.Command().create_parser("manage.py", "x").format_help().split())
    for words in said:
        assert words in text


def test_an_instant_with_a_zone_is_that_instant() -> None:
    s = subscription(term=(JAN_1, datetime(2026, 2, 1, 11, tzinfo=UTC)))
    assert run("advance_subscriptions", "--now", "2026-02-01T11:59:59+01:00")[-1].startswith("0 steps")
    run("advance_subscriptions", "--now", "2026-02-01T12:00:00+01:00")
    assert state(s) == "GRACE"
