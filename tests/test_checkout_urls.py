"""Where customers may be sent: whatever an attacker writes, nobody leaves for a host that is not on the list."""

from typing import Any

import pytest

from tests.builders import TenantFactory
from tests.buying import ADDON, BUY, PORTAL, RENEW, asks, returns, session_of, signs_in, sold
from tests.stripe_sandbox.client import Sandbox
from tests.test_api import problem
from webhooks.buying.return_urls import is_allowed
from webhooks.models import Checkout

GOOD = [
    "https://good.example",
    "https://good.example/",
    "https://GOOD.example/Thanks?s={CHECKOUT_SESSION_ID}#top",
    "HTTPS://good.example/a@b",
    "https://good.example:443/",
    "https://ported.example:8443/x",
    "https://good.example?next=https://evil.example",
    "http://localhost/",
    "http://localhost:8000/",
    "http://127.0.0.1:8000/",
    "https://[::1]:9000/",
]
EVIL = [
    "",
    "/thanks",
    "good.example",
    "//good.example",
    "//evil.example",
    "https:good.example",
    "https:/good.example",
    "https:///good.example",
    "https:\\\\good.example",
    "https:\\\\evil.example",
    "https://evil.example",
    "https://evil.example/?good.example",
    "https://evil.example#good.example",
    "https://evil.example/https://good.example",
    "https://good.example@evil.example",
    "https://good.example:443@evil.example",
    "https://user@good.example",
    "https://user:secret@good.example",
    "https://@good.example",
    "https://good.example\\@evil.example",
    "https://evil.example\\@good.example",
    "https://good.example.evil.example",
    "https://evilgood.example",
    "https://sub.good.example",
    "https://good.example.",
    "https://good.example:8443",
    "https://good.example:",
    "https://good.example:99999",
    "https://good.example:x",
    "https://ported.example",
    "https://ported.example:8444",
    "http://good.example",
    "http://ported.example:8443",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::1/",
    "https://[evil.example]/",
    "https://gооd.example",  # two Cyrillic letters
    "https://good.example。evil.example",
    "https://good。example",
    "https://xn--god-fja.example",
    "https://%67ood.example",
    "https://good.example%2eevil.example",
    "https://{CHECKOUT_SESSION_ID}.good.example",
    "https://good.example/é",
    "https://good.example/a b",
    " https://good.example",
    "https://good.example ",
    "https://good.example\n",
    "ht\ntps://good.example",
    "https://good.\texample",
    "https://good.example/\r\nSet-Cookie: a=b",
    "https://good.example\x00.evil.example",
    "https://good.example/<script>",
    "javascript:alert(1)",
    "javascript://good.example/%0aalert(1)",
    "data:text/html,good.example",
    "ftp://good.example",
    "file:///good.example",
    "https://good.example/" + "a" * 2000,
]


@pytest.fixture(autouse=True)
def hosts(settings: Any) -> None:
    settings.CHECKOUT_ALLOWED_HOSTS = ["good.example", "Ported.example:8443", "localhost", "127.0.0.1", "[::1]"]


@pytest.mark.parametrize("url", GOOD)
def test_a_plain_address_of_a_host_on_the_list_is_allowed(url: str) -> None:
    assert is_allowed(url)


@pytest.mark.parametrize("url", EVIL)
def test_nothing_else_is(url: str, settings: Any) -> None:
    assert not is_allowed(url)
    settings.CHECKOUT_ALLOWED_HOSTS = []
    assert not any(map(is_allowed, GOOD))


def test_while_developing_plain_http_will_do(settings: Any) -> None:
    settings.DEBUG = True
    assert is_allowed("http://good.example/")
    assert not is_allowed("http://evil.example/")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("url", "parameter"),
    [
        (BUY, "success_url"), (BUY, "cancel_url"), (ADDON, "success_url"), (ADDON, "cancel_url"),
        (PORTAL, "return_url"), (RENEW, "success_url"), (RENEW, "cancel_url"),
    ],
)  # fmt: skip
def test_every_door_refuses_what_is_not_allowed(url: str, parameter: str, stripe: Sandbox) -> None:
    owner = signs_in(TenantFactory.create())
    sold("fleet")
    order = {BUY: {"plan": "fleet", "interval": "month"}, ADDON: {"plan": "fleet", "parent_subscription": "SUB-1"}}
    for evil in ("https://good.example@evil.example", "javascript:alert(1)", "", "//evil.example"):
        body = order.get(url, {}) | {parameter: evil}
        answer = asks(owner, url.format(number="SUB-1"), **body)
        assert problem(answer)[0] == 400
        assert (answer.json()["code"], answer.json().get("parameter")) in (
            ("url_not_allowed", parameter),
            ("invalid", None),
        )
    assert stripe.requests() == []
    assert not Checkout.objects.exists()


@pytest.mark.django_db
def test_a_host_that_left_the_list_is_not_gone_to_any_more(stripe: Sandbox, settings: Any) -> None:
    owner = signs_in(TenantFactory.create())
    sold("fleet")
    answer = asks(owner, BUY, plan="fleet", interval="month", success_url="https://good.example/thanks")
    session_id = session_of(answer)
    stripe.complete(session_id)
    settings.CHECKOUT_ALLOWED_HOSTS = []
    assert returns(session_id).status_code == 200
