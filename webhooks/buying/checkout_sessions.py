"""One open checkout per intent: a double click, the back button and a second tab lead to one page at Stripe.

The row decides, and its unique constraints: whoever writes it first has it. No transaction is open while Stripe is
asked. What Stripe is asked for is kept on the row, and the row is the idempotency key: whoever finds a row whose
session nobody saw made, since its maker was killed, asks in the same words and gets the same session.

Who wants something else than the open checkout sells ends that one at Stripe first: two pages could both be paid.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction

from subscriptions.audit import Actor
from subscriptions.errors import DomainError
from subscriptions.models import PlanPrice, Subscription, Tenant
from webhooks import stripe_api, truth
from webhooks.converge import Overtaken
from webhooks.errors import AlreadyBought, PurchaseSettling, StripeConflict, Superseded
from webhooks.models import Checkout, StripeLink
from webhooks.stripe_state import CHECKOUT, OVER, Unmappable, stripe_id

log = logging.getLogger(__name__)

LIVES = timedelta(hours=23)  # Stripe takes 30 minutes to 24 hours, counted by its own clock
MOST_TRIES = 5  # while others close and open checkouts of the same intent
GONE = "resource_missing"  # a session of another account's, or deleted with its test data
IN_USE = frozenset({409})  # Stripe is still at work on a request with the same key

Now = Callable[[], datetime]


@dataclass(frozen=True)
class Wish:
    """A purchase to be paid at Stripe. `request` is what Stripe is asked for, without what only the row knows."""

    tenant: Tenant
    price: PlanPrice
    request: dict[str, Any]
    quantity: int = 1
    success_url: str = ""
    cancel_url: str = ""
    parent: Subscription | None = None
    renews: Subscription | None = None
    until: datetime | None = None  # nobody may pay later than this

    @property
    def intent(self) -> dict[str, Any]:
        """What one checkout is open for, as its constraints have it."""
        if self.parent is not None:
            return {"parent": self.parent, "plan": self.price.plan}
        return {"tenant": self.tenant, "parent": None}

    def is_sold_by(self, row: Checkout) -> bool:
        return (row.request, row.success_url, row.renews_id, row.plan_id, row.quantity) == (
            self.request, self.success_url, self.renews and self.renews.pk, self.price.plan_id, self.quantity,
        )  # fmt: skip


class Came(Enum):
    """What came of a checkout."""

    HERE = "here"  # what was bought is here
    SETTLING = "settling"  # the money is on its way
    STUCK = "stuck"  # it was bought, and a person has to look why it is not here
    NEVER_PAID = "never_paid"  # the money did not come
    OPEN = "open"  # it may still be paid
    EXPIRED = "expired"


def open_checkout(wish: Wish, *, check: Callable[[], None], actor: Actor, now: Now) -> str:
    """Where this is paid: the page of the one checkout that is open for its intent. `check` raises what forbids the
    purchase; it is asked again once the checkout is ours, for what was bought meanwhile.

    Raises AlreadyBought, PurchaseSettling, Superseded, StripeConflict, StripeUnavailable, StripeRefused.
    """
    for _ in range(MOST_TRIES):
        row, is_new = _claim(wish, actor, now())
        if row is None:
            continue
        if is_new:
            try:
                check()
            except DomainError:
                _close(row)
                raise
        try:
            session = _session_of(row, is_new)
        except stripe_api.StripeRefused as error:
            if is_new:
                raise
            if error.code == GONE and row.session_id:
                _close(row)
            continue
        match session.get("status"):
            case "open" if wish.is_sold_by(row):
                return str(session.get("url") or row.url)
            case "open":
                _end(row)
            case _:
                refuse_what_came(bring(row, session, now=now, request_id=actor.request_id))
    raise StripeConflict


def bring(row: Checkout, session: dict[str, Any], *, now: Now, request_id: str = "") -> Came:
    """Apply what Stripe says of this checkout's session, at once; what came of it. Safe to repeat, before, while and
    after events say the same.

    Raises StripeUnavailable, StripeRefused.
    """
    if session.get("status") == "expired":
        _close(row)
        return Came.EXPIRED
    if session.get("status") != "complete":
        return Came.OPEN
    bought = session.get("subscription")
    subscription_id = stripe_id(bought)
    if not subscription_id:
        return Came.STUCK
    try:
        truth.refresh(subscription_id, now=now, source_id=f"{row.session_id}~{request_id}" if request_id else "")
    except (Unmappable, DomainError, Overtaken) as error:
        log.warning("%s was bought and is not here: %s", subscription_id, getattr(error, "code", "overtaken"))
        return Came.STUCK
    Checkout.objects.filter(pk=row.pk, state=Checkout.State.OPEN).update(state=Checkout.State.COMPLETE)
    if StripeLink.objects.filter(pk=subscription_id, subscription__isnull=False).exists():
        return Came.HERE
    return Came.NEVER_PAID if isinstance(bought, dict) and bought.get("status") in OVER else Came.SETTLING


def check_nothing_settles(now: Now, **intent: Any) -> None:
    """That the last thing bought for this intent is not still on its way. Raises AlreadyBought, PurchaseSettling,
    StripeUnavailable, StripeRefused.
    """
    bought = Checkout.objects.filter(state=Checkout.State.COMPLETE, **intent).exclude(session_id="")
    if (last := bought.order_by("-pk").first()) is None:
        return
    try:
        session = stripe_api.fetch_bought(last.session_id)
    except stripe_api.StripeRefused as error:
        if error.code == GONE:
            return
        raise
    at_stripe = session.get("subscription")
    is_over = isinstance(at_stripe, dict) and at_stripe.get("status") in OVER
    if is_over or StripeLink.objects.filter(pk=stripe_id(at_stripe), subscription__isnull=False).exists():
        return
    refuse_what_came(bring(last, session, now=now))


def refuse_what_came(came: Came) -> None:
    """Raises AlreadyBought, PurchaseSettling for what must not be bought again."""
    if came == Came.HERE:
        raise AlreadyBought
    if came in (Came.SETTLING, Came.STUCK):
        raise PurchaseSettling


def _claim(wish: Wish, actor: Actor, now: datetime) -> tuple[Checkout | None, bool]:
    """The intent's open checkout, and whether it is new. None if somebody wrote one since it was looked for."""
    found = Checkout.objects.filter(**wish.intent, state=Checkout.State.OPEN).first()
    if found:
        return found, False
    row = Checkout(
        tenant=wish.tenant,
        plan=wish.price.plan,
        price=wish.price,
        quantity=wish.quantity,
        parent=wish.parent,
        renews=wish.renews,
        request=wish.request,
        success_url=wish.success_url,
        cancel_url=wish.cancel_url,
        actor=actor,
        created_at=now,
        expires_at=min(now + LIVES, wish.until or now + LIVES),
    )
    try:
        with transaction.atomic():
            row.save(force_insert=True)
        return row, True
    except IntegrityError:
        return None, False


def _session_of(row: Checkout, is_new: bool) -> dict[str, Any]:
    """The row's session at Stripe; made, if nobody has seen it made. A row whose session is refused is closed.

    Raises Superseded if somebody else closed it meanwhile.
    """
    if row.session_id:
        return stripe_api.fetch_bought(row.session_id)
    try:
        made = _make(row)
    except stripe_api.StripeError as error:
        if isinstance(error, stripe_api.StripeRefused) or error.said.is_replayed:
            _close(row)  # the same words would get the same answer for a day
        raise
    row.session_id, row.url = made["id"], str(made.get("url") or "")
    open_rows = Checkout.objects.filter(pk=row.pk, state=Checkout.State.OPEN)
    if not open_rows.update(session_id=row.session_id, url=row.url):
        raise Superseded
    return made if is_new else stripe_api.fetch_bought(row.session_id)  # an old answer may be given again


def _make(row: Checkout) -> dict[str, Any]:
    label = str(row.pk)
    data = row.request.get("subscription_data", {}) | {"metadata": {CHECKOUT: label}}
    params = row.request | {
        "client_reference_id": label,
        "subscription_data": data,
        "expires_at": int(row.expires_at.timestamp()),
    }
    key = stripe_api.key_for("checkout", settings.STRIPE_LIVE_MODE, row.pk)
    try:
        return stripe_api.create_checkout_session(idempotency_key=key, **params)
    except stripe_api.StripeUnavailable as error:
        if error.said.http_status not in IN_USE:
            raise
        return stripe_api.create_checkout_session(idempotency_key=key, **params)


def _end(row: Checkout) -> None:
    """Nobody can pay there any more; unless somebody just did, which whoever asks next will see."""
    if stripe_api.expire_checkout_session(row.session_id):
        _close(row)


def _close(row: Checkout) -> None:
    Checkout.objects.filter(pk=row.pk, state=Checkout.State.OPEN).update(state=Checkout.State.EXPIRED)
