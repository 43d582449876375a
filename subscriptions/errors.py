"""What can be refused, each with a stable code and the HTTP status that an edge answers.

The first line of a docstring is the message that people read; `detail` adds the particulars of the case.
"""


class DomainError(Exception):
    """The request cannot be done."""

    code = "domain_error"
    http_status = 400

    def __init__(self, detail: str = "", **facts: object) -> None:
        self.detail = detail or self.title()
        self.facts = facts
        super().__init__(self.detail)

    @classmethod
    def title(cls) -> str:
        return (cls.__doc__ or cls.code).strip().splitlines()[0]


class IllegalTransition(DomainError):
    """The subscription's present status does not allow this."""

    code, http_status = "illegal_transition", 409


class AddonFollowsMain(DomainError):
    """An add-on's dates are its main subscription's: change the main subscription instead."""

    code, http_status = "addon_follows_main", 409


class AddonTermDiffers(DomainError):
    """An add-on ends when its main subscription ends."""

    code, http_status = "addon_term_differs", 409


class LiveMainExists(DomainError):
    """The tenant already has a main subscription that has not expired."""

    code, http_status = "live_main_exists", 409


class TrialUsed(DomainError):
    """The tenant has had its trial: staff with the permission may grant another."""

    code, http_status = "trial_used", 409


class SourceReused(DomainError):
    """This source has done the same to another subscription of the family already."""

    code, http_status = "source_reused", 409


class NoPrice(DomainError):
    """No price says how long a renewal lasts: name its end."""

    code, http_status = "no_price", 409


class InvalidTerm(DomainError):
    """The dates do not make a term."""

    code, http_status = "invalid_term", 400


class InvalidPlan(DomainError):
    """A subscription's plan is of its own type, and its price is one of the plan's."""

    code, http_status = "invalid_plan", 400


class InvalidFamily(DomainError):
    """An add-on needs a live main subscription of the same tenant, and nothing else has a parent."""

    code, http_status = "invalid_family", 400


class ReasonMissing(DomainError):
    """A change by staff needs a reason."""

    code, http_status = "reason_missing", 400


class SubscriptionNotFound(DomainError):
    """There is no such subscription."""

    code, http_status = "subscription_not_found", 404


class TenantClosed(DomainError):
    """The tenant is closed: nothing can be started for it."""

    code, http_status = "tenant_closed", 409


class TenantNotFound(DomainError):
    """There is no such tenant."""

    code, http_status = "tenant_not_found", 404
