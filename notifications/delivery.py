"""From notice rows to mail. SENT is written only after the mail server took the message.

A worker that dies between the two leaves a notice that is sent again when its lease is over, under the same Message-ID.
"""

import logging
import smtplib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from email.utils import parseaddr

from django.conf import settings
from django.core.mail import EmailMultiAlternatives, get_connection
from django.core.mail.backends.base import BaseEmailBackend
from django.db import connection

from notifications import kinds
from notifications.letters import letter
from notifications.models import Notice

log = logging.getLogger(__name__)

# Seconds until the next try after the first, second, … failed one.
RETRY_SECONDS = (60, 300, 1800, 7200, 21_600, 43_200)
LEASE = timedelta(minutes=2)  # longer than the mail server's time-outs

CLAIM = """
    UPDATE notices SET attempts = attempts + 1, next_attempt_at = %(lease)s
     WHERE id = (SELECT id FROM notices WHERE state = 'PENDING' AND next_attempt_at <= %(now)s
                  ORDER BY next_attempt_at, id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING id"""


def deliver(*, now: Callable[[], datetime], limit: int = 500) -> Iterator[Notice]:
    """Send what is due, oldest first, over one connection to the mail server; yield each notice as it became.

    `now` is called for each notice: a lease counts from its own claim, however long those before it took. Where the
    mail server cannot be reached at all, one notice has tried for all of them: the others stay due.
    """
    mailer = get_connection()
    try:
        for _ in range(limit):
            notice = _claim(now())
            if notice is None:
                return
            reached = _deliver(notice, mailer, now)
            yield notice
            if not reached:
                return
    finally:
        mailer.close()


def resend(notices: list[int], *, now: datetime) -> int:
    """Make failed or cancelled notices due again; the number found. One that is no longer true is cancelled again."""
    again = Notice.objects.filter(pk__in=notices, state__in=(Notice.State.FAILED, Notice.State.CANCELLED))
    return again.update(state=Notice.State.PENDING, attempts=0, next_attempt_at=now, error="")


def outlook(*, now: datetime) -> Iterator[Notice]:
    """What `deliver` would do with each notice that is due, as far as is known before the mail server is asked."""
    due = Notice.objects.filter(state=Notice.State.PENDING, next_attempt_at__lte=now).order_by("next_attempt_at", "id")
    for notice in due.select_related("subscription__tenant", "subscription__plan", "subscription__price").iterator():
        notice.state, notice.error = _unsendable(notice, now) or (Notice.State.SENT, "")
        yield notice


def message(notice: Notice) -> EmailMultiAlternatives:
    """The mail, ready to go. Its Message-ID is derived from the notice: a repeat after a crash can be recognised."""
    kind = kinds.named(notice.kind)
    assert kind is not None, "what is no longer told is cancelled"
    words = letter(kind, notice.subscription)
    domain = parseaddr(settings.DEFAULT_FROM_EMAIL)[1].partition("@")[2]
    mail = EmailMultiAlternatives(
        words.subject,
        words.text,
        to=[notice.subscription.tenant.email],
        headers={
            "Message-ID": f"<notice-{notice.pk}-{notice.anchor:%Y%m%d%H%M%S}@{domain}>",
            "Auto-Submitted": "auto-generated",
        },
    )
    mail.attach_alternative(words.html, "text/html")
    return mail


def _claim(now: datetime) -> Notice | None:
    with connection.cursor() as cursor:
        cursor.execute(CLAIM, {"now": now, "lease": now + LEASE})
        row = cursor.fetchone()
    related = Notice.objects.select_related("subscription__tenant", "subscription__plan", "subscription__price")
    return related.get(pk=row[0]) if row else None


def _unsendable(notice: Notice, now: datetime) -> tuple[Notice.State, str] | None:
    """What becomes of a notice that is not worth sending, or cannot be; None if it should go out."""
    kind = kinds.named(notice.kind)
    if kind is None or not kind.still_true(notice.subscription, notice.anchor, now):
        return Notice.State.CANCELLED, ""
    if _said_better(notice, kind):
        return Notice.State.SUPERSEDED, ""
    if not notice.subscription.tenant.email:
        return Notice.State.FAILED, "The tenant has no address."
    return None


def _said_better(notice: Notice, kind: kinds.Kind) -> bool:
    """By a more urgent milestone before the same instant, or by the same kind of news that came later."""
    others = Notice.objects.filter(subscription=notice.subscription_id)
    if not isinstance(kind, kinds.Milestone):
        return others.filter(kind=kind.name, anchor__gt=notice.anchor).exists()
    ladder = [each for each in kinds.schedule() if (each.status, each.column) == (kind.status, kind.column)]
    more_urgent = [each.name for each in ladder if each.before < kind.before]
    return others.filter(kind__in=more_urgent, anchor=notice.anchor).exists()


def _deliver(notice: Notice, mailer: BaseEmailBackend, now: Callable[[], datetime]) -> bool:
    """Whether there is a mail server to talk to."""
    if end := _unsendable(notice, now()):
        _set(notice, end[0], error=end[1])
        return True
    try:
        mail = message(notice)
    except Exception as error:  # a bug of ours in a template: this notice waits, the others go out
        log.exception("Notice %s could not be made", notice.pk)
        _try_again(notice, now(), f"{type(error).__name__}: {error}"[:500])
        return True
    try:
        mailer.open()
    except (smtplib.SMTPException, OSError) as error:
        mailer.close()
        _try_again(notice, now(), f"The mail server cannot be reached: {type(error).__name__}: {error}"[:500])
        return False
    try:
        mailer.send_messages([mail])
    except smtplib.SMTPRecipientsRefused as refused:
        codes = sorted({code for code, _ in refused.recipients.values()})
        why = f"The mail server refused the address: {', '.join(map(str, codes))}."
        _try_again(notice, now(), why, hopeless=codes[0] >= 500)
    except Exception as error:  # the server's, or an address that no mail can carry
        mailer.close()
        _try_again(notice, now(), f"{type(error).__name__}: {error}"[:500])
    else:
        _set(notice, Notice.State.SENT, sent_at=now(), recipients=mail.to)
    return True


def _try_again(notice: Notice, now: datetime, why: str, *, hopeless: bool = False) -> None:
    if hopeless or notice.attempts > len(RETRY_SECONDS):
        return _set(notice, Notice.State.FAILED, error=why)
    delay = timedelta(seconds=RETRY_SECONDS[notice.attempts - 1])
    return _set(notice, Notice.State.PENDING, error=why, next_attempt_at=now + delay)


def _set(notice: Notice, state: Notice.State, *, error: str = "", **values: object) -> None:
    """Write what became of it, unless another worker took it over after our lease."""
    became = {"state": state, "error": error, **values}
    Notice.objects.filter(pk=notice.pk, state=Notice.State.PENDING, attempts=notice.attempts).update(**became)
    for name, value in became.items():
        setattr(notice, name, value)
