"""The only module that calls Stripe: with a timeout, a pinned API version, and errors of two kinds.

Answers are plain dicts. The client does not retry: what is asked again, and when, is the caller's to say.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import stripe
from django.conf import settings
from django.utils.crypto import salted_hmac


@dataclass(frozen=True)
class Said:
    """What an error of Stripe's says of itself, in its own vocabulary. Its message is not among it."""

    http_status: int | None = None  # None: no answer
    type: str = ""  # card_error, idempotency_error, …
    code: str = ""
    decline_code: str = ""
    param: str = ""
    retry_after_seconds: int | None = None
    is_replayed: bool = False  # the answer that an earlier request with this idempotency key got


class StripeError(Exception):
    """A call to Stripe failed. The message never holds what Stripe answered: that can be anything."""

    def __init__(self, code: str, detail: str, said: Said = Said()) -> None:
        self.code, self.detail, self.said = code, detail, said
        super().__init__(f"{code}: {detail}")


class StripeUnavailable(StripeError):
    """It may go well later: no answer, too many requests, an error of theirs, an answer that is not Stripe's."""


class StripeRefused(StripeError):
    """It will never go well as it was asked: no such object, a wrong parameter."""


def fetch_subscription(subscription_id: str) -> dict[str, Any]:
    """The subscription as it is now, with its latest invoice and its schedule.

    Raises StripeUnavailable, StripeRefused.
    """
    found = _call("get", f"/v1/subscriptions/{subscription_id}", expand=["latest_invoice", "schedule"])
    if found.get("object") != "subscription" or found.get("id") != subscription_id:
        raise StripeUnavailable("unreadable_answer", "Stripe's answer is not the subscription that was asked for.")
    return found


def fetch_checkout_session(session_id: str) -> dict[str, Any]:
    """The checkout session as it is now. Raises StripeUnavailable, StripeRefused."""
    found = _call("get", f"/v1/checkout/sessions/{session_id}")
    if found.get("object") != "checkout.session" or found.get("id") != session_id:
        raise StripeUnavailable("unreadable_answer", "Stripe's answer is not the checkout session that was asked for.")
    return found


def fetch_customer(customer_id: str) -> dict[str, Any]:
    """The customer as it is now. Raises StripeUnavailable, StripeRefused."""
    found = _call("get", f"/v1/customers/{customer_id}")
    if found.get("object") != "customer" or found.get("id") != customer_id:
        raise StripeUnavailable("unreadable_answer", "Stripe's answer is not the customer that was asked for.")
    return found


def create(path: str, *, idempotency_key: str, **params: Any) -> dict[str, Any]:
    """Create an object under `path` ("/v1/customers"), once per `idempotency_key`.

    Raises StripeUnavailable, StripeRefused.
    """
    return _call("post", path, idempotency_key=idempotency_key, **params)


def _call(method: str, path: str, **params: Any) -> dict[str, Any]:
    if not settings.STRIPE_SECRET_KEY:
        raise StripeUnavailable("stripe_not_configured", "STRIPE_SECRET_KEY is not set.")
    client = _client(settings.STRIPE_SECRET_KEY, settings.STRIPE_API_BASE)
    try:
        answer = client.raw_request(method, path, **params).data
    except (stripe.InvalidRequestError, stripe.IdempotencyError, stripe.CardError) as error:
        said = _said(error)
        raise StripeRefused(said.code or "refused", f"{method.upper()} {path}: {_reason(error)}", said) from None
    except stripe.StripeError as error:  # 429, 5xx, 401 while a key is changed, no connection, not JSON
        detail = f"{method.upper()} {path}: {_reason(error)}"
        raise StripeUnavailable("stripe_unavailable", detail, _said(error)) from None
    except (ValueError, RecursionError, AttributeError, TypeError):  # the client trips over answers of strange shapes
        raise StripeUnavailable("unreadable_answer", f"{method.upper()} {path}: not an answer of Stripe's.") from None
    if not isinstance(answer, dict):
        raise StripeUnavailable("unreadable_answer", f"{method.upper()} {path}: not a JSON object.")
    return answer


def _reason(error: stripe.StripeError) -> str:
    status = f"HTTP {error.http_status}" if error.http_status else "no answer"
    return f"{type(error).__name__}, {status}, request {error.request_id or 'unknown'}"


def _said(error: stripe.StripeError) -> Said:
    body = error.json_body.get("error") if isinstance(error.json_body, dict) else None
    facts = body if isinstance(body, dict) else {}
    headers = error.headers or {}
    wait = str(headers.get("retry-after", ""))
    return Said(
        error.http_status,
        **{name: _word(facts.get(name)) for name in ("type", "code", "decline_code", "param")},
        retry_after_seconds=int(wait) if re.fullmatch("[0-9]{1,5}", wait) else None,
        is_replayed=headers.get("idempotent-replayed") == "true",
    )


def _word(given: object) -> str:
    """A word of Stripe's vocabulary; empty for whatever else."""
    return given if isinstance(given, str) and re.fullmatch(r"[a-z0-9_]{1,64}", given) else ""


@cache
def _client(api_key: str, base: str) -> stripe.StripeClient:
    return stripe.StripeClient(
        api_key,
        stripe_version=settings.STRIPE_API_VERSION,
        base_addresses={"api": base},
        max_network_retries=0,
        http_client=stripe.RequestsClient(timeout=settings.STRIPE_TIMEOUT_SECONDS),
    )


def key_for(*parts: object) -> str:
    """An idempotency key that is the same for the same parts, and says nothing about them."""
    return salted_hmac("stripe-idempotency", "|".join(map(str, parts)), algorithm="sha256").hexdigest()


def list_page(path: str, *, after: str = "", **params: Any) -> tuple[list[dict[str, Any]], bool]:
    """A page of a hundred objects of a list, the newest first, and whether there are more after it. `after` is the id
    of the last one of the page before. Raises StripeUnavailable, StripeRefused.
    """
    found = _call("get", path, limit=100, **({"starting_after": after} if after else {}), **params)
    rows = found.get("data")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and isinstance(row.get("id"), str) for row in rows):
        raise StripeUnavailable("unreadable_answer", f"GET {path}: not a list.")
    return rows, found.get("has_more") is True and bool(rows)


def fetch_dispute(dispute_id: str) -> dict[str, Any]:
    """The dispute as it is now. Raises StripeUnavailable, StripeRefused."""
    return _call("get", f"/v1/disputes/{dispute_id}")


def update_subscription(subscription_id: str, *, idempotency_key: str, **params: Any) -> dict[str, Any]:
    """Change the subscription; as it is then. Raises StripeUnavailable, StripeRefused."""
    return _call("post", f"/v1/subscriptions/{subscription_id}", idempotency_key=idempotency_key, **params)


def end_subscription(subscription_id: str) -> bool:
    """Cancel it at once: nothing is given back and nothing is billed any more. False if there was nothing to end: it is
    over, or there is none. Raises StripeUnavailable, StripeRefused.
    """
    try:
        _call("delete", f"/v1/subscriptions/{subscription_id}")
    except StripeRefused as error:
        if error.code != "resource_missing":
            raise
        return False
    return True


def subscriptions_of(customer_id: str) -> Iterator[dict[str, Any]]:
    """All that the customer has or had, incomplete ones too, page by page. Raises StripeUnavailable, StripeRefused."""
    after: dict[str, str] = {}
    while True:
        page = _call("get", "/v1/subscriptions", customer=customer_id, status="all", limit=100, **after)
        if not isinstance(page.get("data"), list):
            raise StripeUnavailable("unreadable_answer", "Stripe's answer is not a list.")
        yield from page["data"]
        if not page.get("has_more") or not page["data"]:
            return
        after = {"starting_after": page["data"][-1]["id"]}


def expire_checkout_session(session_id: str) -> bool:
    """Nobody can pay it any more; False if it was not open. Raises StripeUnavailable."""
    try:
        _call("post", f"/v1/checkout/sessions/{session_id}/expire")
    except StripeRefused:
        return False
    return True


# --- what is changed of a subscription beside that -------------------------------------------------------------------
# Each raises StripeUnavailable, StripeRefused. A key is for one change: asked again with it, Stripe changes nothing.


def resume_subscription(subscription_id: str, *, idempotency_key: str) -> dict[str, Any]:
    """Of a trial that ended without a payment method: its first period begins."""
    return _call("post", f"/v1/subscriptions/{subscription_id}/resume", idempotency_key=idempotency_key)


def preview_change(subscription_id: str, details: dict[str, Any]) -> dict[str, Any]:
    """The invoice that these changes would be billed with."""
    return _call("post", "/v1/invoices/create_preview", subscription=subscription_id, subscription_details=details)


def begin_schedule(subscription_id: str, *, idempotency_key: str) -> dict[str, Any]:
    """A schedule whose one phase is the subscription as it is, to the end of its period."""
    path = "/v1/subscription_schedules"
    return _call("post", path, idempotency_key=idempotency_key, from_subscription=subscription_id)


def update_schedule(schedule_id: str, *, idempotency_key: str, **params: Any) -> dict[str, Any]:
    return _call("post", f"/v1/subscription_schedules/{schedule_id}", idempotency_key=idempotency_key, **params)


def release_schedule(schedule_id: str, *, idempotency_key: str) -> dict[str, Any]:
    """Nothing is scheduled any more; the subscription goes on as it is."""
    return _call("post", f"/v1/subscription_schedules/{schedule_id}/release", idempotency_key=idempotency_key)


def fetch_bought(session_id: str) -> dict[str, Any]:
    """The checkout session as it is now, with its subscription. Raises StripeUnavailable, StripeRefused."""
    return _session(_call("get", f"/v1/checkout/sessions/{session_id}", expand=["subscription"]), session_id)


def create_checkout_session(*, idempotency_key: str, **params: Any) -> dict[str, Any]:
    """A page where somebody can pay, at its `url`. Raises StripeUnavailable, StripeRefused."""
    return _session(create("/v1/checkout/sessions", idempotency_key=idempotency_key, **params))


def name_customer(customer_id: str, *, name: str, email: str) -> None:
    """Let Stripe know a customer by these. Raises StripeUnavailable, StripeRefused."""
    _call("post", f"/v1/customers/{customer_id}", name=name, **({"email": email} if email else {}))


def create_portal_session(*, customer: str, return_url: str) -> str:
    """Where a customer looks after its subscriptions and cards. Raises StripeUnavailable, StripeRefused."""
    made = _call("post", "/v1/billing_portal/sessions", customer=customer, return_url=return_url)
    if made.get("object") != "billing_portal.session" or not isinstance(made.get("url"), str):
        raise StripeUnavailable("unreadable_answer", "Stripe's answer is not a session of its portal.")
    return str(made["url"])


def _session(found: dict[str, Any], session_id: str = "") -> dict[str, Any]:
    is_one = found.get("object") == "checkout.session" and isinstance(found.get("id"), str)
    if not is_one or found["id"] != (session_id or found["id"]):
        raise StripeUnavailable("unreadable_answer", "Stripe's answer is not the checkout session that was asked for.")
    return found
