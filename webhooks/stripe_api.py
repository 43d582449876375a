"""The only module that calls Stripe: with a timeout, a pinned API version, and errors of two kinds.

Answers are plain dicts. The client does not retry: what is asked again, and when, is `inbox`'s to say.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import stripe
from django.conf import settings
from django.utils.crypto import salted_hmac


class StripeError(Exception):
    """A call to Stripe failed. The message never holds what Stripe answered: that can be anything."""

    def __init__(self, code: str, detail: str) -> None:
        self.code, self.detail = code, detail
        super().__init__(f"{code}: {detail}")


class StripeUnavailable(StripeError):
    """It may go well later: no answer, too many requests, an error of theirs, an answer that is not Stripe's."""


class StripeBusy(StripeUnavailable):
    """Too many requests: `seconds` later it takes more."""

    def __init__(self, code: str, detail: str, seconds: float = 1.0) -> None:
        super().__init__(code, detail)
        self.seconds = seconds


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
        code = error.code if isinstance(error.code, str) and re.fullmatch("[a-z0-9_]{1,64}", error.code) else "refused"
        raise StripeRefused(code, f"{method.upper()} {path}: {_reason(error)}") from None
    except stripe.RateLimitError as error:
        detail = f"{method.upper()} {path}: {_reason(error)}"
        raise StripeBusy("stripe_unavailable", detail, _seconds(error)) from None
    except stripe.StripeError as error:  # 5xx, 401 while a key is changed, no connection, not JSON
        raise StripeUnavailable("stripe_unavailable", f"{method.upper()} {path}: {_reason(error)}") from None
    except (ValueError, RecursionError, AttributeError, TypeError):  # the client trips over answers of strange shapes
        raise StripeUnavailable("unreadable_answer", f"{method.upper()} {path}: not an answer of Stripe's.") from None
    if not isinstance(answer, dict):
        raise StripeUnavailable("unreadable_answer", f"{method.upper()} {path}: not a JSON object.")
    return answer


def _reason(error: stripe.StripeError) -> str:
    status = f"HTTP {error.http_status}" if error.http_status else "no answer"
    return f"{type(error).__name__}, {status}, request {error.request_id or 'unknown'}"


def _seconds(error: stripe.StripeError) -> float:
    """How long Stripe asks us to wait; a second where it does not say."""
    told = (error.headers or {}).get("Retry-After", "")
    return min(float(told), 60.0) if told.isascii() and told.isdigit() else 1.0


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
