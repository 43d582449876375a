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


class ControlError(Exception):
    """The side door could not do what it was asked; the message says why and what would work."""

    def __init__(self, message: str, *, status: int = 409) -> None:
        super().__init__(message)
        self.status = status
