"""What a notice says: subject, text and HTML, from templates/notices."""

from dataclasses import dataclass
from datetime import UTC, datetime

import css_inline
from django.template.loader import render_to_string

from notifications.kinds import Kind
from subscriptions.models import Subscription
from subscriptions.states import Status

_inliner = css_inline.CSSInliner(load_remote_stylesheets=False)


@dataclass(frozen=True)
class Letter:
    subject: str
    text: str
    html: str


def letter(kind: Kind, subscription: Subscription) -> Letter:
    """The letter about this subscription as it is now. Dates are in UTC and say so."""
    template = f"notices/{kind.template}"
    context = {
        "tenant": _one_line(subscription.tenant.name),
        "plan": _one_line(subscription.plan.name),
        "number": subscription.number,
        "subscription": subscription,
        "until": _day(_until(subscription)),
        "term_end": _day(subscription.term_end),
        "price": subscription.price and subscription.price.money,
    }
    subject, _, body = render_to_string(f"{template}.txt", context).partition("\n")
    html = _inliner.inline(render_to_string(f"{template}.html", context | {"subject": subject}))
    return Letter(_one_line(subject), body.strip() + "\n", html)


def _one_line(name: str) -> str:
    """Whoever chose the name does not choose where lines of a mail end."""
    return " ".join(name.split())


def _until(subscription: Subscription) -> datetime | None:
    match subscription.status:
        case Status.GRACE:
            return subscription.grace_end
        case Status.SUSPENDED:
            return subscription.suspension_end
        case Status.EXPIRED:
            return subscription.ended_at
    return subscription.term_end


def _day(instant: datetime | None) -> str:
    return f"{instant.astimezone(UTC):%-d %B %Y, %H:%M} UTC" if instant else ""
