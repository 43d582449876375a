"""From notice rows to mail, through a real mail server; what letters say. Which notices there are: test_notices."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.message import EmailMessage
from html import unescape
from typing import Any

import pytest
from django.db import transaction
from django.utils.html import strip_tags

from billing_site.local import ports
from billing_site.local.caught_mail import Mailbox
from billing_site.local.mail_catcher import MailCatcher
from notifications import delivery, kinds
from notifications.letters import Letter, letter
from notifications.models import Notice
from subscriptions import lifecycle
from subscriptions.lifecycle import CancelAt, Purchase
from subscriptions.models import PlanPrice, Subscription
from subscriptions.states import EndReason, Type
from tests.builders import ALICE, FEB_1, JAN_1, PlanFactory, PlanPriceFactory, TenantFactory, subscription
from tests.history import advance, at_once, by, in_state, on
from tests.test_notices import committed  # noqa: F401

NOON = on(1, 20, 12)
MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="session")
def mail_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailCatcher]:
    with MailCatcher(tmp_path_factory.mktemp("mail")) as server:
        yield server


@pytest.fixture
def mailbox(mail_server: MailCatcher, settings: Any) -> Mailbox:
    mail_server.mailbox.clear()
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = ports.LOCALHOST, mail_server.smtp_port
    return mail_server.mailbox


@pytest.fixture
def no_mail_server(mailbox: Mailbox, settings: Any) -> None:
    settings.EMAIL_PORT = ports.free()


def notice(of: Subscription | None = None, *, kind: str = "renewal_30", to: str = "", **more: Any) -> Notice:
    """A notice that is due at noon, by default about the end of a term on 1 February."""
    s = of or subscription(term=(JAN_1, FEB_1), tenant=TenantFactory.create(**{"billing_email": to} if to else {}))
    about: dict[str, Any] = {"kind": kind, "anchor": s.term_end, "next_attempt_at": NOON} | more
    return Notice.objects.create(subscription=s, tenant=s.tenant, **about)


def deliver(now: datetime = NOON) -> list[str]:
    return [notice.state for notice in delivery.deliver(now=lambda: now)]


def row(notice: Notice) -> tuple[str, int, str]:
    notice.refresh_from_db()
    return notice.state, notice.attempts, notice.error


# --- delivery --------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_notice_is_sent_once_the_mail_server_took_it(mailbox: Mailbox) -> None:
    n = notice(to="billing@acme.example")
    assert (deliver(NOON - MINUTE), mailbox.files()) == ([], [])
    assert deliver() == ["SENT"]
    assert (row(n), n.sent_at, n.recipients) == (("SENT", 1, ""), NOON, ["billing@acme.example"])
    (mail,) = mailbox.messages()
    assert (mail["X-Envelope-To"], mail["To"]) == ("billing@acme.example", "billing@acme.example")
    assert (mail["From"], mail["Auto-Submitted"]) == ("Termkeeper <billing@termkeeper.example>", "auto-generated")
    assert mail["Message-ID"] == f"<notice-{n.pk}-20260201000000@termkeeper.example>"
    assert deliver(NOON + timedelta(days=1)) == []
    assert len(mailbox.files()) == 1


@pytest.mark.django_db
def test_mail_goes_to_the_contact_where_there_is_no_billing_address(mailbox: Mailbox) -> None:
    both = TenantFactory.create(billing_email="billing@acme.example", contact_email="contact@acme.example")
    contact = TenantFactory.create(billing_email="", contact_email="contact@bolt.example")
    for tenant in (both, contact):
        notice(subscription(tenant=tenant))
    assert deliver() == ["SENT", "SENT"]
    assert [mail["To"] for mail in mailbox.messages()] == ["billing@acme.example", "contact@bolt.example"]


@pytest.mark.django_db
def test_a_tenant_without_an_address_is_a_failure_to_be_seen(mailbox: Mailbox) -> None:
    n = notice(subscription(tenant=TenantFactory.create(billing_email="")))
    assert deliver() == ["FAILED"]
    assert (row(n), mailbox.files()) == (("FAILED", 1, "The tenant has no address."), [])


@pytest.mark.django_db
def test_a_refused_address_fails_at_once_and_the_others_go_out(mailbox: Mailbox) -> None:
    bad, good = notice(to="reject@acme.example"), notice(to="billing@bolt.example")
    assert deliver() == ["FAILED", "SENT"]
    assert row(bad) == ("FAILED", 1, "The mail server refused the address: 550.")
    assert row(good) == ("SENT", 1, "")
    assert (bad.sent_at, bad.recipients, len(mailbox.files())) == (None, [], 1)


@pytest.mark.django_db
def test_a_passing_refusal_is_tried_again_by_the_table_and_then_given_up(mailbox: Mailbox) -> None:
    n, now, waits = notice(to="tempfail@acme.example", next_attempt_at=JAN_1), JAN_1, []
    while deliver(now) == ["PENDING"]:
        n.refresh_from_db()
        assert (n.state, n.error) == ("PENDING", "The mail server refused the address: 451.")
        waits.append((n.next_attempt_at - now).total_seconds())
        assert deliver(n.next_attempt_at - timedelta(microseconds=1)) == []
        now = n.next_attempt_at
    assert waits == [60, 300, 1800, 7200, 21600, 43200]
    assert row(n) == ("FAILED", 7, "The mail server refused the address: 451.")
    assert (deliver(FEB_1 - MINUTE), mailbox.files()) == ([], [])


@pytest.mark.django_db
@pytest.mark.usefixtures("no_mail_server")
def test_where_no_mail_server_answers_one_notice_has_tried_for_all() -> None:
    first, second = notice(), notice()
    assert deliver() == ["PENDING"]
    state, attempts, error = row(first)
    assert (state, attempts, first.next_attempt_at) == ("PENDING", 1, NOON + MINUTE)
    assert error.startswith("The mail server cannot be reached: ConnectionRefusedError")
    assert (row(second), second.next_attempt_at) == (("PENDING", 0, ""), NOON)


@pytest.mark.django_db
@pytest.mark.usefixtures("no_mail_server")
def test_without_a_mail_server_a_notice_fails_in_the_end() -> None:
    n = notice(attempts=6)
    assert deliver() == ["FAILED"]
    assert row(n)[:2] == ("FAILED", 7)


@pytest.mark.django_db
def test_what_was_sent_after_a_failed_try_keeps_no_error(mailbox: Mailbox) -> None:
    n = notice(attempts=1, error="The mail server refused the address: 451.")
    (sent,) = delivery.deliver(now=lambda: NOON)
    assert (sent.state, sent.error, row(n)) == ("SENT", "", ("SENT", 2, ""))


@pytest.mark.django_db
def test_resending_makes_what_failed_due_again_and_touches_nothing_else(mailbox: Mailbox) -> None:
    failed = notice(state="FAILED", attempts=7, error="The mail server refused the address: 451.")
    others = [
        notice(state="SENT", sent_at=JAN_1, attempts=1),
        notice(attempts=1, next_attempt_at=NOON + MINUTE),  # somebody is sending it now
        notice(state="SUPERSEDED"),
    ]
    before = [*Notice.objects.filter(pk__in=[n.pk for n in others]).order_by("pk").values()]
    assert delivery.resend([failed.pk, *(n.pk for n in others)], now=NOON) == 1
    assert row(failed) == ("PENDING", 0, "")
    assert [*Notice.objects.filter(pk__in=[n.pk for n in others]).order_by("pk").values()] == before
    assert deliver() == ["SENT"]
    assert (row(failed), len(mailbox.files())) == (("SENT", 1, ""), 1)


@pytest.mark.django_db
def test_what_is_no_longer_true_is_cancelled_even_when_resent(mailbox: Mailbox) -> None:
    n = notice()
    lifecycle.renew(n.subscription_id, term_end=on(3, 1), **by(on(1, 10)))
    assert (deliver(), row(n)) == (["CANCELLED"], ("CANCELLED", 1, ""))
    delivery.resend([n.pk], now=NOON)
    assert (deliver(), row(n), mailbox.files()) == (["CANCELLED"], ("CANCELLED", 1, ""), [])


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("kind", "state"), [("grace_started", "ACTIVE"), ("suspended", "GRACE"), ("renewal_30", "HOLD")]
)
def test_a_notice_of_what_has_changed_meanwhile_is_cancelled(kind: str, state: str, mailbox: Mailbox) -> None:
    notice(in_state(state), kind=kind)
    assert (deliver(), mailbox.files()) == (["CANCELLED"], [])


@pytest.mark.django_db
def test_a_reminder_that_comes_after_the_term_is_cancelled(mailbox: Mailbox) -> None:
    notice()
    assert (deliver(FEB_1), mailbox.files()) == (["CANCELLED"], [])


@pytest.mark.django_db
def test_a_milestone_that_is_no_longer_in_the_settings_is_cancelled(mailbox: Mailbox) -> None:
    notice(kind="renewal_45")
    assert (deliver(), mailbox.files()) == (["CANCELLED"], [])


@pytest.mark.django_db
def test_a_more_urgent_reminder_of_the_same_term_supersedes(mailbox: Mailbox, settings: Any) -> None:
    settings.NOTICE_DAYS = [30, 14]
    late = notice()
    urgent = notice(late.subscription, kind="renewal_14")
    assert deliver() == ["SUPERSEDED", "SENT"]
    assert (row(late)[0], row(urgent)[0], len(mailbox.files())) == ("SUPERSEDED", "SENT", 1)


@pytest.mark.django_db
def test_of_two_grace_periods_only_the_present_one_is_told(mailbox: Mailbox) -> None:
    s = in_state("GRACE")
    notice(s, kind="grace_started", anchor=on(1, 2))
    notice(s, kind="grace_started", anchor=on(1, 5))
    assert (deliver(), len(mailbox.files())) == (["SUPERSEDED", "SENT"], 1)


@pytest.mark.usefixtures("committed")
def test_four_deliverers_at_once_send_nothing_twice(mailbox: Mailbox) -> None:
    made = [notice() for _ in range(20)]
    states = at_once(*[deliver] * 4)
    assert [state for mine in states for state in mine] == ["SENT"] * 20  # type: ignore[union-attr]
    assert len({mail["Message-ID"] for mail in mailbox.messages()}) == len(mailbox.files()) == len(made)


@pytest.mark.usefixtures("committed")
def test_a_deliverer_does_not_wait_for_a_notice_that_another_one_holds(mailbox: Mailbox) -> None:
    held, free = notice(), notice()
    with transaction.atomic():
        Notice.objects.select_for_update().get(pk=held.pk)
        assert at_once(deliver) == [["SENT"]]
    assert (row(held)[:2], row(free)[:2]) == (("PENDING", 0), ("SENT", 1))


class Killed(BaseException):
    """As a signal would end the process: no handler of ours runs."""


def until(last: int, times: Callable[[int], datetime]) -> Callable[[], datetime]:
    """A clock that is read so many times; then whoever reads it is dead."""
    readings = iter(range(1, last + 1))

    def now() -> datetime:
        reading = next(readings, None)
        if reading is None:
            raise Killed
        return times(reading)

    return now


@pytest.mark.django_db
def test_a_deliverer_killed_after_the_server_took_it_repeats_the_same_message_when_its_lease_is_over(
    mailbox: Mailbox,
) -> None:
    n = notice()
    with pytest.raises(Killed):  # the clock is read to claim, to judge, and, after the mail, for `sent_at`
        list(delivery.deliver(now=until(2, lambda _: NOON)))
    assert (row(n), len(mailbox.files())) == (("PENDING", 1, ""), 1)
    assert deliver(NOON + 2 * MINUTE - timedelta(microseconds=1)) == []
    assert deliver(NOON + 2 * MINUTE) == ["SENT"]
    first, second = mailbox.messages()
    assert first["Message-ID"] == second["Message-ID"]


@pytest.mark.django_db
def test_a_lease_counts_from_its_own_claim_however_long_the_notices_before_it_took(mailbox: Mailbox) -> None:
    notice()
    second = notice()
    with pytest.raises(Killed):  # three readings for the first, then the claim of the second, ten minutes later
        list(delivery.deliver(now=until(4, lambda reading: NOON if reading < 4 else NOON + 10 * MINUTE)))
    assert (row(second), second.next_attempt_at) == (("PENDING", 1, ""), NOON + 12 * MINUTE)


@pytest.mark.django_db
def test_who_lost_its_lease_does_not_overwrite_what_the_next_one_did(mailbox: Mailbox) -> None:
    n = notice()

    def clock() -> Iterator[datetime]:
        yield from (NOON, NOON)
        assert deliver(NOON + 5 * MINUTE) == ["SENT"]  # another one, while the first waits for the mail server
        yield NOON + 6 * MINUTE

    times = clock()
    list(delivery.deliver(now=lambda: next(times), limit=1))
    assert (row(n), n.sent_at) == (("SENT", 2, ""), NOON + 5 * MINUTE)


@pytest.mark.django_db
def test_sending_takes_four_queries_a_notice(mailbox: Mailbox, settings: Any, django_assert_num_queries: Any) -> None:
    """Claim, read, look for a more urgent one, done; and one to see that nothing is left."""
    settings.NOTICE_DAYS = [30, 14]
    for _ in range(3):
        notice()
    with django_assert_num_queries(3 * 4 + 1):
        assert deliver() == ["SENT"] * 3


# --- letters ---------------------------------------------------------------------------------------------------------


def bought(*, amount: int = 4900, **more: Any) -> Subscription:
    """Acme's subscription to "Fleet" for January, with a price."""
    price = PlanPriceFactory.create(plan=PlanFactory.create(name="Fleet"), amount_minor=amount)
    purchase = Purchase(price.plan, JAN_1, FEB_1, price, **more)
    entry = lifecycle.start(TenantFactory.create(name="Acme").pk, purchase, actor=ALICE, now=JAN_1, reason="ordered")
    assert entry
    return Subscription.objects.get(pk=entry.subscription_id)


def words(s: Subscription, kind: str) -> Letter:
    found = kinds.named(kind)
    assert found
    s.refresh_from_db()
    return letter(found, s)


def paragraphs(text: str) -> list[str]:
    return text.strip().split("\n\n")


def facts(s: Subscription, plan: str = "Fleet", tenant: str = "Acme") -> list[str]:
    return [
        f"Subscription: {s.number}\nPlan: {plan}",
        f"You receive this because this address is the billing or contact address of {tenant}.",
    ]


@pytest.mark.django_db
def test_the_letter_about_a_term_that_has_to_be_renewed() -> None:
    s = bought()
    words_ = words(s, "renewal_30")
    assert words_.subject == f"{s.number} (Fleet) needs to be renewed before 1 February 2026, 00:00 UTC"
    assert paragraphs(words_.text) == [
        "Hello Acme,",
        f"The term of {s.number} ends on 1 February 2026, 00:00 UTC. Please renew it before then, so that your devices "
        "are served without a break.",
        *facts(s),
    ]


@pytest.mark.django_db
def test_the_letter_about_a_term_that_renews_by_itself_names_its_price() -> None:
    s = bought(auto_renews=True, amount=123_450)
    assert words(s, "renewal_30").subject == f"{s.number} (Fleet) will renew on 1 February 2026, 00:00 UTC"
    assert paragraphs(words(s, "renewal_30").text)[1] == (
        f"{s.number} will renew by itself on 1 February 2026, 00:00 UTC for 1,234.50 EUR. You need not do anything."
    )


@pytest.mark.django_db
@pytest.mark.parametrize("auto_renews", [True, False])
def test_the_letter_about_a_term_that_was_cancelled_says_that_it_ends(auto_renews: bool) -> None:
    s = bought(auto_renews=auto_renews)
    lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by(on(1, 5)))
    assert words(s, "renewal_30").subject == f"{s.number} (Fleet) ends on 1 February 2026, 00:00 UTC"
    assert paragraphs(words(s, "renewal_30").text)[1] == (
        f"{s.number} ends on 1 February 2026, 00:00 UTC, as you asked. You can undo this until then."
    )


@pytest.mark.django_db
def test_the_letter_about_grace_says_that_service_goes_on_and_until_when() -> None:
    s = bought()
    advance(FEB_1)
    assert words(s, "grace_started").subject == f"Payment is due for {s.number} (Fleet)"
    assert paragraphs(words(s, "grace_started").text)[1] == (
        f"No payment for the next term of {s.number} has reached us yet.\n"
        "Your service goes on without any change until 15 February 2026, 00:00 UTC.\n"
        "If no payment arrives by then, service will be suspended."
    )


@pytest.mark.django_db
def test_the_letter_about_a_trial_that_is_over_asks_for_no_payment() -> None:
    s = subscription(Type.TRIAL, plan=PlanFactory.create(type=Type.TRIAL, name="Free trial"))
    advance(FEB_1)
    assert words(s, "grace_started").subject == f"The trial is over: {s.number} (Free trial)"
    assert paragraphs(words(s, "grace_started").text)[1] == (
        f"The trial {s.number} is over.\n"
        "Your service goes on without any change until 15 February 2026, 00:00 UTC.\n"
        "If you have not bought a subscription by then, service will be suspended."
    )


@pytest.mark.django_db
def test_the_letter_about_suspension_says_that_nothing_is_lost_and_until_when() -> None:
    s = bought()
    advance(on(2, 15))
    assert words(s, "suspended").subject == f"Service is suspended for {s.number} (Fleet)"
    assert paragraphs(words(s, "suspended").text)[1] == (
        f"The service of {s.number} is suspended. Your devices are not served now.\n"
        "Nothing has been deleted: your set-up is kept until 16 April 2026, 00:00 UTC. "
        "Once the subscription is paid, service returns at once."
    )


@pytest.mark.django_db
def test_the_letter_about_a_hold_promises_nothing_that_a_payment_could_do() -> None:
    s = bought()
    lifecycle.suspend(s.pk, hold=True, **by(on(1, 5)))
    assert paragraphs(words(s, "suspended").text)[1] == (
        f"The service of {s.number} is suspended. Your devices are not served now.\n"
        "Nothing has been deleted. Please contact us to lift the suspension."
    )


@pytest.mark.django_db
def test_the_letter_about_the_suspension_of_an_addon_does_not_speak_of_all_devices() -> None:
    main = bought()
    addon = subscription(Type.ADDON, parent=main)
    lifecycle.suspend(addon.pk, hold=True, **by(on(1, 5)))
    assert paragraphs(words(addon, "suspended").text)[1] == (
        f"{addon.number} is suspended. What it adds is withheld now.\n"
        "Nothing has been deleted. Please contact us to lift the suspension."
    )


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("why", "said"),
    [
        (EndReason.CANCELLED, ", as you asked."),
        (EndReason.CANCELLED_AT_TERM_END, ", as you asked."),
        (EndReason.SUSPENSION_OVER, ": no payment has reached us while it was suspended."),
        (EndReason.NEVER_PAID, ": its first payment has never reached us."),
    ],
)
def test_the_letter_about_an_end_says_why(why: EndReason, said: str) -> None:
    s = bought()
    lifecycle.expire(s.pk, why=why, **by(on(1, 5)))
    assert words(s, "expired").subject == f"{s.number} (Fleet) has ended"
    assert paragraphs(words(s, "expired").text)[1] == (
        f"{s.number} ended on 5 January 2026, 00:00 UTC{said}\n"
        "Your devices are no longer served. You can buy a new subscription at any time."
    )


@pytest.mark.django_db
def test_the_letter_about_a_return_says_until_when() -> None:
    s = bought()
    lifecycle.suspend(s.pk, **by(on(1, 5)))
    lifecycle.activate(s.pk, **by(on(1, 6)))
    assert words(s, "reactivated").subject == f"{s.number} (Fleet) is active again"
    assert paragraphs(words(s, "reactivated").text)[1] == (
        f"{s.number} is active again. Your devices are served.\nIts term runs until 1 February 2026, 00:00 UTC."
    )


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("hold", "last", "said"),
    [
        (False, False, ".\nYou need not do anything now."),
        (False, True, ". It ends then, as you asked.\nYou need not do anything now."),
        (True, False, ".\nService stays suspended. Please contact us to lift the suspension."),
    ],
)
def test_the_letter_about_a_renewal_says_until_when(hold: bool, last: bool, said: str) -> None:
    s = bought()
    if hold:
        lifecycle.suspend(s.pk, hold=True, **by(on(1, 5)))
    lifecycle.renew(s.pk, term_end=on(3, 1), cancel_at_term_end=last, **by(on(1, 6)))
    assert words(s, "renewed").subject == f"{s.number} (Fleet) is renewed until 1 March 2026, 00:00 UTC"
    assert paragraphs(words(s, "renewed").text)[1] == f"{s.number} is renewed until 1 March 2026, 00:00 UTC{said}"


@pytest.mark.django_db
def test_the_letter_about_the_end_of_a_grace_period_says_what_comes_then() -> None:
    s = bought()
    advance(FEB_1)
    assert words(s, "grace_ending_3").subject == f"{s.number} (Fleet) will be suspended on 15 February 2026, 00:00 UTC"
    assert paragraphs(words(s, "grace_ending_3").text)[1] == (
        f"No payment for {s.number} has reached us yet. Your service goes on until 15 February 2026, 00:00 UTC.\n"
        "If no payment arrives by then, service will be suspended."
    )


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("auto_renews", "cancelled", "said"),
    [
        (False, False, ". Please buy a subscription before then, so that your devices are served without a break."),
        (True, False, ". It will go on by itself as a paid subscription."),
        (True, True, ", as you asked. You can undo this until then."),
    ],
)
def test_the_letter_about_the_end_of_a_trial_says_what_comes_then(
    auto_renews: bool, cancelled: bool, said: str
) -> None:
    s = in_state("TRIAL", auto_renews=auto_renews)
    if cancelled:
        lifecycle.cancel(s.pk, at=CancelAt.TERM_END, **by(on(1, 5)))
    assert words(s, "trial_ending_7").subject.startswith(f"The trial {s.number} (")
    assert paragraphs(words(s, "trial_ending_7").text)[1] == (
        f"The trial {s.number} ends on 1 February 2026, 00:00 UTC{said}"
    )


@pytest.mark.django_db
@pytest.mark.parametrize("kind", [*kinds.ON_AUDIT, *kinds.LADDERS], ids=lambda kind: kind.name)
@pytest.mark.parametrize("type", [Type.MAIN, Type.TRIAL, Type.ADDON])
@pytest.mark.parametrize("state", ["ACTIVE", "CANCELLED", "TRIAL", "GRACE", "SUSPENDED", "HOLD", "EXPIRED"])
def test_both_parts_of_a_letter_say_the_same(kind: kinds.OnAudit | kinds.Ladder, state: str, type: Type) -> None:
    found = kind if isinstance(kind, kinds.OnAudit) else kind.milestones()[0]
    s = in_state(state)
    s.type = type
    words_ = letter(found, s)
    html = " ".join(stripped(words_.html).split())
    greeting, body, *_ = paragraphs(words_.text)
    assert " ".join([words_.subject, greeting, *body.split()]) in html


@pytest.mark.django_db
def test_an_end_that_is_history_is_not_told(mailbox: Mailbox) -> None:
    s = in_state("EXPIRED")
    notice(s, kind="expired", anchor=on(1, 5))
    assert (deliver(on(1, 5) + kinds.NEWS_FOR), mailbox.files()) == (["CANCELLED"], [])


@pytest.mark.django_db
def test_the_reminder_of_a_grace_period_does_not_supersede_that_of_a_term(mailbox: Mailbox, settings: Any) -> None:
    settings.NOTICE_DAYS = [30]
    s = in_state("GRACE")
    lifecycle.activate(s.pk, **by(on(1, 6)))
    notice(s, kind="grace_ending_3")
    notice(s, kind="renewal_30")
    assert deliver() == ["CANCELLED", "SENT"]


def stripped(html: str) -> str:
    """The words of a page, as its reader sees them."""
    return unescape(strip_tags(html))


@pytest.mark.django_db
def test_a_name_cannot_become_markup() -> None:
    tenant = TenantFactory.create(name="<script>alert(1)</script> & Söhne")
    words_ = words(subscription(tenant=tenant, plan=PlanFactory.create(name='"><b>')), "renewal_30")
    assert "<script" not in words_.html
    assert "<b>" not in words_.html
    assert "Hello &lt;script&gt;alert(1)&lt;/script&gt; &amp; Söhne," in words_.html
    assert "Hello <script>alert(1)</script> & Söhne," in words_.text


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["Acme\r\nBcc: all@victim.example", "Acme\n\nHello", "Acme\u2028X-Evil: 1\x85y"])
def test_a_name_cannot_become_a_header_or_a_paragraph(name: str, mailbox: Mailbox) -> None:
    s = subscription(tenant=TenantFactory.create(name=name), plan=PlanFactory.create(name=name))
    notice(s)
    assert deliver() == ["SENT"]
    (mail,) = mailbox.messages()
    one_line = " ".join(name.split())
    assert mail["Subject"] == f"{s.number} ({one_line}) needs to be renewed before 1 February 2026, 00:00 UTC"
    assert (mail["Bcc"], mail["X-Evil"], mail["X-Envelope-To"]) == (None, None, s.tenant.billing_email)
    assert part(mail, "plain").startswith(f"Hello {one_line},\n\nThe term of")


@pytest.mark.django_db
def test_a_mail_has_a_text_and_an_html_part_in_any_script(mailbox: Mailbox) -> None:
    tenant = TenantFactory.create(name="Žluťoučký kůň 株式会社 🦊")
    s = subscription(tenant=tenant, plan=PlanFactory.create(name="Größe XL"))
    notice(s)
    deliver()
    (mail,) = mailbox.messages()
    assert mail["Subject"].strip() == f"{s.number} (Größe XL) needs to be renewed before 1 February 2026, 00:00 UTC"
    assert mail.get_content_type() == "multipart/alternative"
    assert [each.get_content_type() for each in mail.iter_parts()] == ["text/plain", "text/html"]
    assert "Hello Žluťoučký kůň 株式会社 🦊," in part(mail, "plain")
    assert "<p style=" in part(mail, "html")
    assert "Hello Žluťoučký kůň 株式会社 🦊," in part(mail, "html")


def part(mail: EmailMessage, subtype: str) -> str:
    found = mail.get_body(preferencelist=(subtype,))
    assert found is not None
    return str(found.get_content())


@pytest.mark.parametrize(
    ("amount", "currency", "said"),
    [
        (4900, "EUR", "49.00 EUR"),
        (5, "USD", "0.05 USD"),
        (0, "EUR", "0.00 EUR"),
        (123_456_789_012_345_678, "EUR", "1,234,567,890,123,456.78 EUR"),  # a float would round it
        (4900, "JPY", "4,900 JPY"),
        (4905, "KWD", "4.905 KWD"),
    ],
)
def test_an_amount_is_said_in_the_units_of_its_currency(amount: int, currency: str, said: str) -> None:
    assert PlanPrice(amount_minor=amount, currency=currency).money == said


@pytest.mark.django_db
def test_dates_in_letters_are_utc_and_say_so() -> None:
    s = bought()
    s.term_end = datetime(2026, 2, 2, 7, 30, tzinfo=timezone(timedelta(hours=9)))
    assert letter(kinds.schedule()[0], s).subject.endswith("before 1 February 2026, 22:30 UTC")
