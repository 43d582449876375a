"""What a notice says: subject, text and HTML, from templates/notices."""

from dataclasses import dataclass
from datetime import UTC, datetime

import css_inline
from django.template.loader import render_to_string

from notifications.kinds import KINDS
from notifications.models import Notice
from subscriptions.models import Subscription
from subscriptions.states import Status

_inliner = css_inline.CSSInliner(load_remote_stylesheets=False)


@dataclass(frozen=True)
class Letter:
    subject: str
    text: str
    html: str


def letter(notice: Notice) -> Letter:
    """The letter for this notice, from its subscription as it is now. Dates are in UTC and say so."""
    subscription = notice.subscription
    template = f"notices/{KINDS[notice.kind].template}"
    context = {
        "tenant": notice.tenant,
        "subscription": subscription,
        "until": _day(_until(subscription)),
        "price": subscription.price and f"{subscription.price.amount_minor / 100:,.2f} {subscription.price.currency}",
    }
    text = render_to_string(f"{template}.txt", context)
    subject, _, body = text.partition("\n")
    html = _inliner.inline(render_to_string(f"{template}.html", context | {"subject": subject}))
    return Letter(" ".join(subject.split()), body.strip() + "\n", html)


def _until(subscription: Subscription) -> datetime | None:
    match subscription.status:
        case Status.GRACE:
            return subscription.grace_end
        case Status.SUSPENDED:
            return subscription.suspension_end
    return subscription.term_end


def _day(instant: datetime | None) -> str:
    return f"{instant.astimezone(UTC):%-d %B %Y, %H:%M} UTC" if instant else ""
