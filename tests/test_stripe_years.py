"""One tenant, two years, a bad way between Stripe and us: at every quiet point both say the same."""

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from tests.builders import TenantFactory
from tests.history import broken
from tests.stripe_sandbox.client import Sandbox
from tests.years import BAD_WAY, Years, by_hand, shifted, shop, two_years
from webhooks.catalogue import customer_of

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def badly_connected(live_server: Any, settings: Any) -> Iterator[Sandbox]:
    """A Stripe that delivers over HTTP: twice, late, shuffled, and one in ten never."""
    settings.STRIPE_WEBHOOK_SECRETS = ["whsec_years"]
    with Sandbox.start(webhook_url=f"{live_server.url}/webhook/stripe", webhook_secret="whsec_years") as stripe:
        settings.STRIPE_API_BASE, settings.STRIPE_SECRET_KEY = stripe.url, stripe.api_key
        yield stripe


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 9))])
def test_two_years_under_loss_duplicates_delay_and_shuffling_end_where_stripe_is_at_every_quiet_point(
    badly_connected: Sandbox, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    shop()
    tenant = TenantFactory.create()
    with shifted(monkeypatch) as move:
        badly_connected.knobs(**BAD_WAY, seed=seed)
        life = Years(badly_connected, move, Random(seed), tenant, by_hand)
        customer_of(tenant)
        life.card("ok")
        assert len(list(two_years(life))) == 15
    assert any(attempt["status"] is None for attempt in badly_connected.deliveries())  # some were lost
    assert broken() == []
