"""Refusals, in the shape and words Stripe uses."""

from typing import Any

# code -> the page that explains it; Stripe sends ``doc_url`` only together with a code
_DOCS = "https://stripe.com/docs/error-codes/"


class StripeError(Exception):
    """An answer other than 200. ``kind`` is Stripe's ``type``: invalid_request_error, card_error and so on."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        decline_code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.kind = message, status, kind
        self.code, self.param, self.decline_code = code, param, decline_code

    def body(self) -> dict[str, Any]:
        error: dict[str, Any] = {"type": self.kind, "message": self.message}
        if self.code:
            error |= {"code": self.code, "doc_url": _DOCS + self.code.replace("_", "-")}
        if self.param:
            error["param"] = self.param
        if self.decline_code:
            error["decline_code"] = self.decline_code
        return {"error": error}


def no_such(what: str, object_id: str, *, param: str = "id", status: int = 404) -> StripeError:
    """Stripe answers 404 where the id is in the path, and 400 where it is a parameter."""
    return StripeError(f"No such {what}: '{object_id}'", status=status, code="resource_missing", param=param)


def unknown_param(path: str) -> StripeError:
    return StripeError(f"Received unknown parameter: {path}", code="parameter_unknown", param=path)


def missing_param(path: str) -> StripeError:
    return StripeError(f"Missing required param: {path}.", code="parameter_missing", param=path)


# a word for a card that does not work, in a customer's metadata or of a fault -> code, decline code, message
DECLINES = {
    "declined": ("card_declined", "generic_decline", "Your card was declined."),
    "insufficient_funds": ("card_declined", "insufficient_funds", "Your card has insufficient funds."),
    "lost_card": ("card_declined", "lost_card", "Your card was declined."),
    "do_not_honor": ("card_declined", "do_not_honor", "Your card was declined."),
    "expired_card": ("expired_card", "expired_card", "Your card has expired."),
    "incorrect_cvc": ("incorrect_cvc", "incorrect_cvc", "Your card's security code is incorrect."),
    "requires_action": (
        "subscription_payment_intent_requires_action",
        "authentication_required",
        "Payment for this subscription requires additional user action before it can be completed successfully.",
    ),
    "processing_error": (
        "processing_error",
        "processing_error",
        "An error occurred while processing your card. Try again in a little bit.",
    ),
}


def declined(word: str = "declined") -> StripeError:
    code, decline_code, message = DECLINES.get(word, DECLINES["declined"])
    return StripeError(message, status=402, kind="card_error", code=code, decline_code=decline_code)


def named(name: str) -> StripeError:
    """One of the errors that Stripe documents, as a fault asks for it by name."""
    if name in DECLINES:
        return declined(name)
    status, kind, code, message = FAULTS[name]
    return StripeError(message, status=status, kind=kind, code=code or None)


_BAD, _OWN = "invalid_request_error", "api_error"
FAULTS = {
    "bad_request": (400, _BAD, "parameter_invalid_empty", "You passed an empty string for a parameter."),
    "idempotency_error": (
        400,
        "idempotency_error",
        "",
        "Keys for idempotent requests can only be used with the same parameters they were first used with.",
    ),
    "authentication": (401, _BAD, "", "Invalid API Key provided: sk_test_****************dbox"),
    "api_key_expired": (401, _BAD, "api_key_expired", "Expired API Key provided: sk_test_****************dbox"),
    "more_permissions_required": (
        403,
        _BAD,
        "more_permissions_required",
        "The provided key 'rk_test_****************dbox' does not have the required permissions for this endpoint.",
    ),
    "resource_missing": (404, _BAD, "resource_missing", "No such object: 'it'"),
    "no_payment_source": (400, _BAD, "resource_missing", "This customer has no attached payment source."),
    "idempotency_key_in_use": (
        409,
        _BAD,
        "idempotency_key_in_use",
        "There is currently another in-progress request using this Idempotent Key (that probably means you submitted "
        "twice, and the other request is still going through). Please try again later.",
    ),
    "external_dependency_failed": (
        424,
        _OWN,
        "",
        "The request couldn't be completed due to a failure in a dependency external to Stripe.",
    ),
    "rate_limit": (429, _BAD, "rate_limit", "Too many requests hit the API too quickly."),
    "lock_timeout": (
        429,
        _BAD,
        "lock_timeout",
        "This object cannot be accessed right now because another API request or Stripe process is currently accessing "
        "it. If you see this error intermittently, retry the request.",
    ),
    "api_error": (500, _OWN, "", "An unknown error occurred."),
    "bad_gateway": (502, _OWN, "", "An unknown error occurred."),
    "unavailable": (503, _OWN, "", "An unknown error occurred."),
    "gateway_timeout": (504, _OWN, "", "An unknown error occurred."),
}
BY_STATUS = {
    status: next(name for name, (known, *_) in FAULTS.items() if known == status)
    for status in (400, 401, 403, 404, 409, 424, 429)
} | {402: "declined"}


class ControlError(Exception):
    """The side door could not do what it was asked; the message says why and what would work."""

    def __init__(self, message: str, *, status: int = 409) -> None:
        super().__init__(message)
        self.status = status
