"""What is mended because somebody said so: in the back office and at a terminal, by the verbs, with who and why."""

import json
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from subscriptions import lifecycle
from subscriptions.errors import ReasonMissing
from subscriptions.models import AuditEntry, Subscription
from subscriptions.states import EndReason, Status
from tests.builders import ALICE, PlanPriceFactory, TenantFactory
from tests.reconciling import hand, here, kinds, reconciled
from tests.stripe_cast import bought_at_stripe
from tests.stripe_sandbox.client import Sandbox
from webhooks.models import Drift, Reconciliation, Telling
from webhooks.reconciling import repairs

pytestmark = pytest.mark.django_db

BY: dict[str, Any] = {"actor": ALICE, "reason": "asked the customer", "source": "repair:1"}


def ours(at_stripe: dict[str, Any]) -> Subscription:
    return Subscription.objects.get(stripe_link=at_stripe["id"])


def drift() -> Drift:
    return Drift.objects.get(resolved_at=None)


def bought(stripe: Sandbox) -> dict[str, Any]:
    sub = bought_at_stripe(stripe)
    here(sub)
    return sub


def ended_here(stripe: Sandbox) -> dict[str, Any]:
    sub = bought(stripe)
    lifecycle.expire(ours(sub).pk, why=EndReason.CANCELLED, actor=ALICE, now=timezone.now(), reason="moved away")
    reconciled()
    return sub


def paid_unseen(stripe: Sandbox) -> dict[str, Any]:
    sub = bought(stripe)
    stripe.pay(sub["id"])
    reconciled(repairs=False)
    return sub


def test_who_is_billed_after_the_end_is_ended_at_stripe_by_a_row_that_is_delivered(stripe: Sandbox) -> None:
    sub = ended_here(stripe)
    assert repairs.repair(drift(), hand(**BY)) == "repaired by staff:1: Stripe is told that it is over"
    telling = Telling.objects.get(aspect="END")
    assert (telling.link_id, telling.state, telling.actor) == (sub["id"], "PENDING", "staff:1")
    reconciled()
    assert kinds() == []


def test_a_difference_that_converges_is_mended_in_the_name_of_who_said_so(stripe: Sandbox) -> None:
    sub = paid_unseen(stripe)
    repairs.repair(drift(), hand(**BY))
    entry = ours(sub).audit.latest("pk")
    assert (entry.action, entry.actor, entry.reason) == ("renewed", "staff:1", "asked the customer")
    assert Drift.objects.get().resolution == "repaired by staff:1: renewed"


def test_a_repair_that_finds_the_difference_gone_does_nothing(stripe: Sandbox) -> None:
    sub = paid_unseen(stripe)
    here(sub)
    before = AuditEntry.objects.count()
    assert repairs.repair(drift(), hand(**BY)) == "gone meanwhile"
    assert AuditEntry.objects.count() == before


def test_a_repair_without_a_reason_is_refused_and_changes_nothing(stripe: Sandbox) -> None:
    paid_unseen(stripe)
    before = AuditEntry.objects.count()
    with pytest.raises(ReasonMissing):
        repairs.repair(drift(), hand(**BY | {"reason": ""}))
    assert (AuditEntry.objects.count(), kinds()) == (before, ["PERIOD"])


def test_of_two_bought_the_one_that_is_not_ours_is_cancelled_at_stripe(stripe: Sandbox) -> None:
    tenant, price = TenantFactory.create(), PlanPriceFactory.create()
    first = bought_at_stripe(stripe, tenant=tenant, price=price)
    here(first)
    second = bought_at_stripe(stripe, tenant=tenant, price=price)
    reconciled()
    repairs.repair(drift(), hand(**BY))
    status = {sub["id"]: stripe.api("GET", f"/v1/subscriptions/{sub['id']}")["status"] for sub in (first, second)}
    assert status == {first["id"]: "active", second["id"]: "canceled"}
    assert ours(first).status == Status.ACTIVE


def test_what_stripe_does_not_know_ends_here(stripe: Sandbox) -> None:
    sub = bought(stripe)
    stripe.reset()
    reconciled()
    repairs.repair(drift(), hand(**BY))
    entry = ours(sub).audit.latest("pk")
    assert (entry.action, entry.actor, entry.reason) == ("expired", "staff:1", "asked the customer")


def test_a_term_that_ends_sooner_at_stripe_ends_as_soon_here(stripe: Sandbox) -> None:
    sub = bought(stripe)
    end = ours(sub).term_end
    lifecycle.amend_term(
        ours(sub).pk, term_end=end + timedelta(days=9), actor=hand().actor, now=timezone.now(), source_id="evt_wrong"
    )
    reconciled()
    assert kinds() == ["PERIOD"]
    repairs.repair(drift(), hand(**BY))
    assert (ours(sub).term_end, ours(sub).audit.latest("pk").actor) == (end, "staff:1")


# --- the back office -------------------------------------------------------------------------------------------------


def staff(*permissions: str) -> Client:
    user = User.objects.create(username=f"staff-{User.objects.count()}", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def repair_page(name: str = "repair") -> str:
    return reverse("admin:webhooks_drift_verb", args=[drift().pk, name])


def test_staff_see_drift_with_both_sides_on_its_list_its_page_and_its_subscriptions_page(stripe: Sandbox) -> None:
    sub = paid_unseen(stripe)
    see = staff("view_drift", "view_subscription", "view_reconciliation")
    pages = [
        reverse("admin:webhooks_drift_changelist"),
        reverse("admin:webhooks_drift_change", args=[drift().pk]),
        reverse("admin:subscriptions_subscription_change", args=[ours(sub).pk]),
    ]
    for page in pages:
        text = see.get(page).content.decode()
        assert "paid until" in text, page
    assert see.get(reverse("admin:webhooks_reconciliation_changelist")).status_code == 200
    run = Reconciliation.objects.get()
    assert see.get(reverse("admin:webhooks_reconciliation_change", args=[run.pk])).status_code == 200


def test_one_click_and_a_reason_mend_it_in_the_name_of_who_clicked(stripe: Sandbox) -> None:
    sub = paid_unseen(stripe)
    may, page = staff("view_drift", "change_drift"), repair_page()
    assert "Ask Stripe again" in may.get(page).content.decode()
    assert may.post(page, {"reason": ""}).status_code == 200
    assert kinds() == ["PERIOD"]
    assert may.post(page, {"reason": "an event was lost"}).status_code == 302
    entry = ours(sub).audit.latest("pk")
    assert (entry.action, entry.reason) == ("renewed", "an event was lost")
    assert entry.actor.startswith("staff:")
    assert kinds() == []


def test_who_may_only_look_cannot_mend_or_dismiss(stripe: Sandbox) -> None:
    paid_unseen(stripe)
    for name in ("repair", "dismiss"):
        assert staff("view_drift").post(repair_page(name), {"reason": "because"}).status_code == 403
    assert kinds() == ["PERIOD"]


def test_what_is_dismissed_is_not_shown_again(stripe: Sandbox) -> None:
    paid_unseen(stripe)
    assert staff("view_drift", "change_drift").post(repair_page("dismiss"), {"reason": "known"}).status_code == 302
    reconciled(repairs=False)
    assert kinds() == []
    assert Drift.objects.get().resolution.endswith(": known")


def test_how_much_differs_badly_is_told_beside_readiness(stripe: Sandbox) -> None:
    ended_here(stripe)
    assert Client().get("/readyz").json()["open_high_drift"] == 1


# --- the terminal ----------------------------------------------------------------------------------------------------


def run(*arguments: str, fails: bool = False) -> str:
    out = StringIO()
    if fails:
        with pytest.raises(CommandError):
            call_command("reconcile_stripe", *arguments, stdout=out, stderr=out)
    else:
        call_command("reconcile_stripe", *arguments, stdout=out, stderr=out)
    return out.getvalue()


def test_a_dry_run_at_the_terminal_prints_both_sides_writes_nothing_and_fails_while_something_is_left(
    stripe: Sandbox,
) -> None:
    sub = bought(stripe)
    stripe.cancel(sub["id"])
    said = run("--dry-run", fails=True)
    assert f"HIGH   Served here after its end at Stripe: {sub['id']}" in said
    assert "status: ACTIVE here, EXPIRED at Stripe" in said
    assert said.endswith("1 left, 0 repaired. Nothing was written.\n")
    assert (Drift.objects.count(), Reconciliation.objects.count()) == (0, 0)


def test_without_a_word_it_records_what_differs_and_with_repair_it_mends_what_can_be(stripe: Sandbox) -> None:
    lost, ended = bought(stripe), bought(stripe)
    stripe.pay(lost["id"])
    lifecycle.expire(ours(ended).pk, why=EndReason.CANCELLED, actor=ALICE, now=timezone.now(), reason="moved away")
    run(fails=True)
    assert kinds() == ["BILLED_AFTER_END", "PERIOD"]
    assert "0 left" in run("--repair")
    assert kinds() == []
    assert ours(lost).audit.latest("pk").actor.startswith("operator:")
    assert Telling.objects.filter(aspect="END", link=ended["id"]).exists()


def test_one_tenant_can_be_compared_alone(stripe: Sandbox) -> None:
    one, other = bought(stripe), bought(stripe)
    for sub in (one, other):
        stripe.pay(sub["id"])
    lines = run("--tenant", ours(one).tenant.slug, "--json", fails=True).splitlines()
    assert [json.loads(line).get("object_id") for line in lines] == [one["id"], None]
    assert Drift.objects.get().object_id == one["id"]
    assert not Reconciliation.objects.exists()


@pytest.mark.parametrize("arguments", [("--dry-run", "--repair"), ("--tenant", "nobody"), ("--reason", "x")])
def test_wrong_arguments_are_refused(stripe: Sandbox, arguments: tuple[str, ...]) -> None:
    run(*arguments, fails=True)
    assert not Reconciliation.objects.exists()


def test_a_stripe_that_does_not_answer_is_said_and_the_run_can_go_on(stripe: Sandbox) -> None:
    bought(stripe)
    stripe.knobs(errors=[{"status": 500, "times": 0}])
    run(fails=True)
    stripe.knobs()
    assert "1 compared" in run()
