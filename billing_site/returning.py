"""The page that customers come back to from paying: it applies what they bought at once, and waits for no webhook.

Nobody has to be signed in: whoever knows the id of a session was sent to it by Stripe.
"""

import logging

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from webhooks import stripe_api
from webhooks.buying.checkout_sessions import Came, bring
from webhooks.buying.return_urls import SESSION_ID, is_allowed
from webhooks.models import Checkout
from webhooks.stripe_state import STRIPE_ID

log = logging.getLogger(__name__)

# What a customer reads: a headline, and what follows from it.
SAYS: dict[Came | None, tuple[str, str]] = {
    Came.HERE: ("Thank you", "Your payment arrived, and what you bought is yours from now on."),
    Came.SETTLING: ("Your payment is on its way", "What you bought begins by itself as soon as the money arrives."),
    Came.STUCK: ("Thank you", "Your payment arrived. What you bought is being set up; nothing needs to be done."),
    Came.NEVER_PAID: ("The payment did not arrive", "Nothing was bought. You can try again."),
    Came.OPEN: ("Not paid yet", "Nothing was bought so far. You can go on where you were."),
    Came.EXPIRED: ("This purchase is over", "Nobody paid in time, or another purchase took its place."),
    None: ("Thank you", "We cannot see your payment yet. What you bought begins by itself in a little while."),
}
BOUGHT = frozenset({Came.HERE, Came.SETTLING, Came.STUCK})


class SeeOther(HttpResponseRedirect):
    status_code = 303


@never_cache
@require_GET
def billing_return(request: HttpRequest) -> HttpResponse:
    """What came of a checkout: on to where its buyer wanted to go, if it was bought; else in words."""
    session_id = request.GET.get("session_id", "")
    row = Checkout.objects.filter(session_id=session_id).first() if STRIPE_ID.fullmatch(session_id) else None
    if row is None:  # Stripe is not asked about ids of somebody else
        return render(request, "returned.html", {"headline": "Nothing here", "says": ""}, status=404)
    came: Came | None = None
    try:
        session = stripe_api.fetch_bought(session_id)
        came = bring(row, session, now=timezone.now, request_id=getattr(request, "request_id", ""))
    except stripe_api.StripeError as error:
        log.warning("%s could not be looked at: %s %s", session_id, error.code, error.detail)
    if came in BOUGHT and row.success_url and is_allowed(row.success_url):
        return SeeOther(row.success_url.replace(SESSION_ID, session_id))
    headline, says = SAYS[came]
    goes_on = row.url if came == Came.OPEN else ""
    return render(request, "returned.html", {"headline": headline, "says": says, "goes_on": goes_on})
