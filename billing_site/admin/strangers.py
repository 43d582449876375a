"""A Stripe customer whom nobody here knows is given to a tenant: what it bought waits for that, on parked events."""

from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from unfold.decorators import action
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from subscriptions.models import Tenant
from webhooks import inbox, poke, stripe_api
from webhooks.buying import newcomers
from webhooks.models import StripeEvent
from webhooks.stripe_state import stripe_id

MAY = ("webhooks.change_stripeevent", "subscriptions.change_tenant")


class ToWhom(forms.Form):
    tenant = forms.CharField(widget=UnfoldAdminTextInputWidget, help_text="Its slug.")
    reason = forms.CharField(
        widget=UnfoldAdminTextareaWidget({"rows": 2}), help_text="How you know: an order, a ticket, a letter."
    )

    def clean_tenant(self) -> Tenant:
        found = Tenant.objects.filter(slug=self.cleaned_data["tenant"].strip(), closed_at=None).first()
        if found is None:
            raise forms.ValidationError("There is no such tenant.")
        return found


class GivesCustomers:
    """The door on an event's page; for its admin."""

    actions_detail = ("give_customer",)

    def has_give_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        event = StripeEvent.objects.filter(pk=object_id).first() if object_id else None
        waits = event is None or event.error_code == "unknown_customer"
        return waits and all(request.user.has_perm(may) for may in MAY)

    @action(description="Give its customer to a tenant", url_path="give-customer", permissions=["give"])
    def give_customer(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """GET asks to whom and why; POST does it, and asks Stripe again."""
        event = StripeEvent.objects.filter(pk=object_id, error_code="unknown_customer").first()
        if event is None:
            raise Http404
        if not self.has_give_permission(request):
            raise PermissionDenied
        page = reverse("admin:webhooks_stripeevent_change", args=[event.pk])
        try:
            customer = stripe_id(stripe_api.fetch_subscription(event.stripe_subscription_id).get("customer"))
            at_stripe = stripe_api.fetch_customer(customer)
        except stripe_api.StripeError as error:
            messages.error(request, f"Stripe could not say whose it is ({error.code}). Try again.")
            return redirect(page)
        form = ToWhom(request.POST if request.method == "POST" else None, label_suffix="")
        if form.is_valid() and self._give(request, event, customer, form):
            return redirect(page)
        who = ", ".join(str(at_stripe[field]) for field in ("name", "email") if at_stripe.get(field))
        context = {
            **self.admin_site.each_context(request),  # type: ignore[attr-defined]
            "title": "Give a customer to a tenant", "event": event, "customer": customer, "who": who,
            "form": form, "page": page,
        }  # fmt: skip
        return TemplateResponse(request, "admin/give_customer.html", context)

    def _give(self, request: HttpRequest, event: StripeEvent, customer: str, form: ToWhom) -> bool:
        tenant, reason = form.cleaned_data["tenant"], form.cleaned_data["reason"]
        said = f"Was given the Stripe customer {customer} for {event.stripe_subscription_id}: {reason}"
        try:
            with transaction.atomic():
                newcomers.assign(customer, tenant)
                self.log_change(request, tenant, said)  # type: ignore[attr-defined]
        except IntegrityError:
            form.add_error(None, "Another tenant has this customer by now.")
            return False
        waiting = StripeEvent.objects.filter(
            state=StripeEvent.State.PARKED, error_code="unknown_customer",
            stripe_subscription_id=event.stripe_subscription_id,
        )  # fmt: skip
        inbox.replay(list(waiting.values_list("pk", flat=True)), now=timezone.now())
        poke.inbox()
        messages.success(request, f"{tenant} has it now; what it bought will be here in a moment.")
        return True
