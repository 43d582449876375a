"""What buying, renewing and changing refuse, and how Stripe's own errors read for whoever asked us: a table.

Of Stripe's answer only words of its vocabulary are passed on, never a message: that can be anything.
"""

import logging
from collections.abc import Callable

from subscriptions.errors import DomainError
from webhooks.stripe_api import Said, StripeError, StripeRefused

log = logging.getLogger(__name__)


# --- Stripe's ---------------------------------------------------------------------------------------------------------


class StripeNotConfigured(DomainError):
    """Nothing can be bought here yet: Stripe is not configured."""

    code, http_status = "stripe_not_configured", 503


class StripeSilent(DomainError):
    """Stripe did not answer. Nothing was bought; try again in a moment."""

    code, http_status = "stripe_unavailable", 502


class StripeBusy(DomainError):
    """Stripe is asked too much at the moment. Try again a little later."""

    code, http_status = "stripe_busy", 503


class StripeKeyRefused(DomainError):
    """Stripe does not know us at the moment. Whoever operates this service has to look at its key."""

    code, http_status = "stripe_refused_key", 502


class PaymentRefused(DomainError):
    """The payment was refused."""

    code, http_status = "payment_refused", 402


class CustomerGone(DomainError):
    """The customer was deleted at Stripe: ask whoever looks after your account."""

    code, http_status = "stripe_customer_gone", 409


class PaymentNeedsCustomer(DomainError):
    """The bank wants the customer to confirm this payment: confirm it where cards and invoices are looked after."""

    code, http_status = "payment_needs_confirmation", 402


class NoPaymentMethod(DomainError):
    """There is no card or account on file to pay with: add one where cards and invoices are looked after."""

    code, http_status = "no_payment_method", 402


class StripeConflict(DomainError):
    """The same is being asked of Stripe at this moment. Try again in a moment."""

    code, http_status = "stripe_conflict", 409


class StripeSaidNo(DomainError):
    """Stripe refused what it was asked for. Whoever operates this service has to look at it."""

    code, http_status = "stripe_refused", 502


TO_BE_CONFIRMED = ("subscription_payment_intent_requires_action", "authentication_required")
When = Callable[[StripeError, Said], bool]
RULES: tuple[tuple[type[DomainError], When], ...] = (  # the first one that is so
    (StripeNotConfigured, lambda error, said: error.code == "stripe_not_configured"),
    (StripeBusy, lambda error, said: said.http_status == 429 or said.code in ("rate_limit", "lock_timeout")),
    (StripeKeyRefused, lambda error, said: said.http_status in (401, 403)),
    (PaymentNeedsCustomer, lambda error, said: said.code in TO_BE_CONFIRMED),
    (PaymentRefused, lambda error, said: said.http_status == 402 or said.type == "card_error"),
    (NoPaymentMethod, lambda error, said: (said.http_status, said.code, said.param) == (400, "resource_missing", "")),
    (CustomerGone, lambda error, said: said.code == "resource_missing" and said.param == "customer"),
    (StripeConflict, lambda error, said: said.http_status == 409 or said.type == "idempotency_error"),
    (StripeSaidNo, lambda error, said: isinstance(error, StripeRefused)),
    (StripeSilent, lambda error, said: True),
)
FOR_OPERATORS = (StripeKeyRefused, StripeSaidNo)
BUSY_SECONDS = 5  # until the next try, where Stripe does not say


def told(error: StripeError) -> DomainError:
    """The error as callers of our API see it; what operators have to look at is logged."""
    kind = next(kind for kind, is_so in RULES if is_so(error, error.said))
    if issubclass(kind, FOR_OPERATORS):
        log.error("Stripe refused: %s %s", error.code, error.detail)
    else:
        log.warning("Stripe failed: %s %s", error.code, error.detail)
    if kind is StripeBusy:
        return StripeBusy(retry_after_seconds=error.said.retry_after_seconds or BUSY_SECONDS)
    made = kind()
    if kind is PaymentRefused:
        made.code = error.said.code or made.code
        made.facts = {"decline_code": error.said.decline_code} if error.said.decline_code else {}
    return made


# --- of buying and renewing -------------------------------------------------------------------------------------------


class UrlNotAllowed(DomainError):
    """Nobody is sent there: a return URL is https, and its host is on the list of this service."""

    code, http_status = "url_not_allowed", 400


class NoSuchPlan(DomainError):
    """There is no such plan to buy."""

    code, http_status = "no_such_plan", 400


class PlanTypeDiffers(DomainError):
    """A plan of this type is not bought this way."""

    code, http_status = "plan_type_differs", 400


class NoSuchPrice(DomainError):
    """The plan is not sold at this interval or in this currency."""

    code, http_status = "no_such_price", 400


class AmbiguousPrice(DomainError):
    """The plan has more than one price like this: say which interval_count and currency."""

    code, http_status = "ambiguous_price", 400


class NoSuchPack(DomainError):
    """There is no such slot pack beside a plan of this interval and currency."""

    code, http_status = "no_such_pack", 400


class IntervalDiffers(DomainError):
    """An add-on is paid at its main subscription's interval."""

    code, http_status = "interval_differs", 409


class NoRunningTerm(DomainError):
    """An add-on is bought for a main subscription whose term runs: pay or renew that one first."""

    code, http_status = "no_running_term", 409


class AddonHeld(DomainError):
    """The main subscription has this add-on: change its quantity instead."""

    code, http_status = "addon_held", 409


class TermEndsSoon(DomainError):
    """The term ends within the hour: too soon to begin something that ends with it. Try again once it has ended."""

    code, http_status = "term_ends_soon", 409


class TooEarly(DomainError):
    """More than one interval is left of the term: payments that begin at its end are set up within the last one."""

    code, http_status = "too_early", 409


class RenewsByItself(DomainError):
    """It renews by itself."""

    code, http_status = "renews_by_itself", 409


class EndsWithTerm(DomainError):
    """It was cancelled and ends with its term: resume it instead."""

    code, http_status = "ends_with_term", 409


class HeldByStaff(DomainError):
    """It is suspended by staff: ask whoever looks after your account."""

    code, http_status = "on_hold", 409


class TrialNotRenewed(DomainError):
    """A trial is not renewed: buy a plan."""

    code, http_status = "trial_is_not_renewed", 409


class AlreadyBought(DomainError):
    """This was bought a moment ago."""

    code, http_status = "already_bought", 409


class PurchaseSettling(DomainError):
    """This was bought, and the money is on its way."""

    code, http_status = "purchase_settling", 409


class Superseded(DomainError):
    """Another purchase took its place."""

    code, http_status = "checkout_superseded", 409


# --- of changing ------------------------------------------------------------------------------------------------------


class NotBilledByStripe(DomainError):
    """Stripe does not bill this subscription: ask your contact to change it."""

    code, http_status = "not_billed_by_stripe", 409


class BeingTold(DomainError):
    """A change of this subscription is still on its way to Stripe: try again in a minute."""

    code, http_status = "change_under_way", 409


class CurrencyStays(DomainError):
    """The currency of a subscription does not change."""

    code, http_status = "currency_stays", 400


class InvalidPause(DomainError):
    """A pause ends later than now, and before a suspension of its length would end the subscription."""

    code, http_status = "invalid_pause", 400


class PaymentOwed(DomainError):
    """The present term is not paid yet: pay that first, by renewing it."""

    code, http_status = "payment_owed", 409


class IsPaused(DomainError):
    """It is paused: resume it first, or change it when its term ends."""

    code, http_status = "paused", 409


class PreviewTooOld(DomainError):
    """What was shown is no longer what it costs: look at the preview again."""

    code, http_status = "preview_too_old", 409


class DevicesWouldBeParked(DomainError):
    """There would be fewer slots than devices: confirm that the newest ones lose theirs."""

    code, http_status = "devices_would_be_parked", 409
