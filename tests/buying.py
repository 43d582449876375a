"""Who buys in the tests, and how: over the API, as customers do."""

from itertools import count
from typing import Any
from urllib.parse import urlsplit

from django.contrib.auth.models import User
from django.test import Client

from subscriptions.models import Member, PlanPrice, Tenant
from subscriptions.states import Type
from tests.builders import PlanPriceFactory, selling
from tests.stripe_sandbox.client import Sandbox

BUY = "/api/v1/customer/billing/checkout-session"
ADDON = "/api/v1/customer/billing/addon-checkout"
PORTAL = "/api/v1/customer/billing/portal-session"
CONFIG = "/api/v1/customer/billing/config"
PLANS = "/api/v1/customer/billing/plans"
RENEW = "/api/v1/customer/subscriptions/{number}/renew"
RETURN = "/billing/return"

_people = count(1)


def signs_in(tenant: Tenant, role: str = Member.Role.OWNER) -> Client:
    """A member of the tenant, with a browser."""
    user = User.objects.create(username=f"buyer-{next(_people)}")
    Member.objects.create(user=user, tenant=tenant, role=role)
    client = Client()
    client.force_login(user)
    return client


def sold(code: str, *, type: Type = Type.MAIN, slots: int = 0, price: dict[str, Any] | None = None, **plan: Any) -> Any:
    """The price of a plan that is sold by the month."""
    made = selling({"basic": slots} if slots else {}, type, code=code, **plan)
    found: PlanPrice = PlanPriceFactory.create(plan=made, **(price or {}))
    return found


def asks(client: Client, url: str, **body: Any) -> Any:
    return client.post(url, body, content_type="application/json")


def buys(client: Client, plan: str = "fleet", **more: Any) -> Any:
    """The answer to who wants to buy a plan by the month."""
    return asks(client, BUY, **{"plan": plan, "interval": "month"} | more)


def session_of(answer: Any) -> str:
    """The id of the session that an answer leads to."""
    assert answer.status_code == 200, answer.content
    return str(urlsplit(answer.json()["url"]).path.rpartition("/")[2])


def returns(session_id: str) -> Any:
    """The answer to who comes back from paying."""
    return Client().get(RETURN, {"session_id": session_id})


def made(stripe: Sandbox, path: str) -> list[dict[str, Any]]:
    """Every request to make something at Stripe, with its parameters."""
    return [r for r in stripe.requests() if r["method"] == "POST" and r["path"] == path]


def open_sessions(stripe: Sandbox) -> list[str]:
    return [s["id"] for s in stripe.api("GET", "/v1/checkout/sessions", status="open", limit=100)["data"]]


def customers(stripe: Sandbox) -> int:
    return int(stripe.health()["objects"]["customer"])
