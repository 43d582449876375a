"""Another plan, interval, quantity or packs: said in a form, looked at in a preview, then confirmed."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse

from billing_site.api.changing import SubscriptionChangeSerializer
from billing_site.billing_pages import shown
from billing_site.billing_pages.billing import by_whom
from billing_site.billing_pages.edge import MembersPage, packs, readable, whole
from billing_site.returning import SeeOther
from subscriptions.models import Subscription
from webhooks import changing
from webhooks.changing import ChangeAt
from webhooks.errors import DevicesWouldBeParked


class ChangePlan(MembersPage):
    found: Subscription | None = None

    def get(self, request: HttpRequest, number: str) -> HttpResponse:
        self.found = self.subscription(number)
        return self.form()

    def post(self, request: HttpRequest, number: str) -> HttpResponse:
        self.found = self.subscription(number)
        step = request.POST.get("do")
        if step == "edit":
            return self.form()
        asked = SubscriptionChangeSerializer(data=wished(request))
        asked.is_valid(raise_exception=True)
        if step != "confirm":
            return self.preview(self.found, asked)
        said = asked.validated_data
        try:
            changing.change(
                self.found, wish=asked.wish, when=ChangeAt(said["when"]), proration_date=said.get("proration_date"),
                confirm_parking=said["confirm_parking"], by=by_whom(request),
            )  # fmt: skip
        except DevicesWouldBeParked as error:
            return self.preview(self.found, asked, *readable(error))
        messages.success(request, f"{number} is changed{'' if said['when'] == 'now' else ' when its term ends'}.")
        return SeeOther(reverse("billing"))

    def refused(self, says: str, status: int) -> HttpResponse:
        return super().refused(says, status) if self.found is None else self.form(says, status)

    def form(self, says: str = "", status: int = 200) -> HttpResponse:
        assert self.found is not None
        fields = shown.change_form(self.found, self.request.POST)
        facts = {"subscription": self.found, "may_buy": self.may_buy, "refused": says, **fields}
        return render(self.request, "billing/change.html", facts, status=status)

    def preview(
        self, subscription: Subscription, asked: SubscriptionChangeSerializer, says: str = "", status: int = 200
    ) -> HttpResponse:
        said = asked.validated_data
        found = changing.preview(
            subscription, wish=asked.wish, when=ChangeAt(said["when"]), proration_date=said.get("proration_date"),
            by=by_whom(self.request),
        )  # fmt: skip
        typed = {name: value for name, value in self.request.POST.items() if shown.is_wish(name)}
        facts = {"subscription": subscription, "typed": typed, "preview": found, "refused": says}
        return render(self.request, "billing/preview.html", facts | shown.previewed(subscription, found), status=status)


def wished(request: HttpRequest) -> dict[str, Any]:
    """A form as the API's parser of changes reads it."""
    form = request.POST.dict()
    plan, interval, count = (form.get("price", "") + "::").split(":")[:3]
    asked = {
        "plan": plan, "interval": interval, "interval_count": whole(count), "quantity": whole(form.get("quantity", "")),
        "when": form.get("when", "now"), "proration_date": whole(form.get("proration_date", "")),
        "confirm_parking": "confirm_parking" in form,
    }  # fmt: skip
    return {name: value for name, value in asked.items() if value != ""} | {"packs": packs(form)}
