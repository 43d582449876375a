"""What must be found nowhere: a card's details, a key, what Stripe's objects and messages say beside their ids."""

import logging
from random import Random
from typing import Any

import pytest
from django.conf import settings as configured
from django.db import connection
from django.utils import timezone

from tests.builders import TenantFactory
from tests.reconciling import reconciled
from tests.stripe_sandbox.client import Sandbox
from tests.test_stripe_years import badly_connected
from tests.years import Years, by_hand, shifted, shop
from webhooks import inbox
from webhooks.catalogue import customer_of
from webhooks.models import StripeEvent

__all__ = ["badly_connected"]  # a fixture

pytestmark = pytest.mark.django_db(transaction=True)

PLANTED = {"note": "planted-in-metadata"}
PHONE = "+49 170 5550100"


def everything_in_the_database() -> str:
    tables = connection.introspection.django_table_names(only_existing=True, include_views=False)
    rows: list[str] = []
    with connection.cursor() as cursor:
        for table in sorted(tables):
            cursor.execute(f'SELECT t::text FROM "{table}" AS t')
            rows += [row for (row,) in cursor.fetchall()]
    return "\n".join(rows)


def test_logs_and_tables_hold_no_card_detail_no_key_and_no_payload(
    badly_connected: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stripe = badly_connected
    stripe.knobs(timestamp_clock="sandbox")
    shop()
    tenant = TenantFactory.create()
    with shifted(monkeypatch) as move:
        life = Years(stripe, move, Random(1), tenant)
        told: dict[str, Any] = {"phone": PHONE, "metadata": PLANTED | {"card": "ok"}}
        stripe.api("POST", f"/v1/customers/{customer_of(tenant)}", **told)
        life.buys("fleet")
        by_hand()
        life.days(20)
        stripe.flush()
        by_hand()
        life.card("declined")
        path = f"/api/v1/customer/subscriptions/{life.main().number}/change"
        refusal = life.signed_in().post(path, {"plan": "fleet-big"}, content_type="application/json")
        assert refusal.status_code == 402
        stripe.turn(errors=[{"status": 500, "body": "garbage", "times": 3}])
        life.days(30)
        stripe.flush()
        by_hand()
        stripe.turn(errors=[])
        inbox.replay([*StripeEvent.objects.values_list("pk", flat=True)], now=timezone.now())
        by_hand()
        reconciled()
    secrets = [configured.STRIPE_SECRET_KEY, *configured.STRIPE_WEBHOOK_SECRETS]
    words = [
        "planted-in-metadata",
        PHONE,
        "last4",
        "pm_",
        "_secret_",
        "upstream",
        "Your card was declined",
        "4242",
        *secrets,
    ]
    found = {"tables": everything_in_the_database(), "logs": caplog.text, "the answer": refusal.content.decode()}
    assert StripeEvent.objects.count() > 10
    assert {(where, word) for where, text in found.items() for word in words if word in text} == set()
