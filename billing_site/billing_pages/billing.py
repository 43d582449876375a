"""The billing page and its buttons: each is one verb, and leads to a page of Stripe's or back here."""

from collections.abc import Callable
from functools import partial
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone

from billing_site.api.billing import AddonOrderSerializer, OrderSerializer, way_back
from billing_site.api.slots import source_of
from billing_site.billing_pages.edge import MembersPage, packs, whole
from billing_site.billing_pages.shown import day
from billing_site.provenance import caller_of
from billing_site.returning import SeeOther
from subscriptions.lifecycle import CancelAt
from webhooks import changing
from webhooks.buying import checkout
from webhooks.buying.checkout import Ways
from webhooks.changing import AskedBy

# The verb of a button, and what is said once it is done.
PRESSED: dict[str, tuple[Callable[..., None], str]] = {
    "cancel": (partial(changing.cancel, at=CancelAt.TERM_END), "{number} ends on {end}."),
    "resume": (changing.resume, "{number} goes on."),
    "pause": (
        changing.pause,
        "{number} is paused: nothing is paid and nothing served until you resume it. Later than {end}, that begins a "
        "new term, and it is paid at once.",
    ),
    "unschedule": (changing.unschedule, "The change of {number} was dropped."),
}


class BillingPage(MembersPage):
    def get(self, request: HttpRequest) -> HttpResponse:
        return self.billing()


class Buy(MembersPage):
    def post(self, request: HttpRequest) -> HttpResponse:
        asked = OrderSerializer(data=ordered(request))
        asked.is_valid(raise_exception=True)
        by: dict[str, Any] = {"actor": caller_of(request), "now": timezone.now}
        return SeeOther(checkout.buy(self.tenant, asked.order(), ways(request), **by))


class BuyAddon(MembersPage):
    def post(self, request: HttpRequest) -> HttpResponse:
        asked = AddonOrderSerializer(
            data=ordered(request) | {"parent_subscription": request.POST.get("parent_subscription", "")}
        )
        asked.is_valid(raise_exception=True)
        by: dict[str, Any] = {"actor": caller_of(request), "now": timezone.now}
        parent = asked.validated_data["parent_subscription"]
        url, _ = checkout.buy_addon(self.tenant, parent, asked.order(), ways(request), **by)
        return SeeOther(url)


class Portal(MembersPage):
    def post(self, request: HttpRequest) -> HttpResponse:
        return SeeOther(checkout.portal(self.tenant, home(request)))


class Renew(MembersPage):
    def post(self, request: HttpRequest, number: str) -> HttpResponse:
        by: dict[str, Any] = {"actor": caller_of(request), "now": timezone.now}
        return SeeOther(checkout.renew(self.tenant, number, ways(request), **by))


class Press(MembersPage):
    def post(self, request: HttpRequest, number: str, verb: str) -> HttpResponse:
        if verb not in PRESSED:
            raise Http404
        carry_out, says = PRESSED[verb]
        subscription = self.subscription(number)
        carry_out(subscription, by=by_whom(request))
        messages.success(request, says.format(number=number, end=day(subscription.term_end)))
        return SeeOther(reverse("billing"))


def by_whom(request: HttpRequest) -> AskedBy:
    return AskedBy(caller_of(request), timezone.now, source_of(request))


def home(request: HttpRequest) -> str:
    return request.build_absolute_uri(reverse("billing"))


def ways(request: HttpRequest) -> Ways:
    """Whoever paid comes to our page that says so; whoever did not, back here."""
    return Ways(back=way_back(request), success_url="", cancel_url=home(request))


def ordered(request: HttpRequest) -> dict[str, Any]:
    """A form as the API's parser of orders reads it."""
    form = request.POST.dict()
    interval, count, currency = (form.get("price", "") + "::").split(":")[:3]
    return {
        "plan": form.get("plan", ""),
        "interval": interval,
        "interval_count": whole(count),
        "currency": currency,
        "quantity": whole(form.get("quantity", "1")),
        "packs": {code: units for code, units in packs(form).items() if units != 0},
    }
