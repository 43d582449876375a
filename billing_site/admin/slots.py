"""Fewer slots, more slots: of one subscription, and of what a plan sold before it was edited. Shown, then done."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core import signing
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminRadioSelectWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
)

from billing_site.admin.verbs import ACT, PREVIEW_SECONDS, ChangedMeanwhile, VerbForm, _source
from billing_site.admin.views import changes, link, when
from billing_site.provenance import actor_of
from entitlements import limits, sold
from entitlements.limits import MOST_SLOTS, Limits, Park, ParkWhom
from entitlements.models import DeviceTier, SlotAssignment, TierAllocation
from subscriptions.audit import Actor
from subscriptions.errors import DomainError
from subscriptions.models import THIS_TRANSACTION, Plan, Subscription

SALT = "billing_site.admin.slots"
PAGE = 100  # subscriptions that are shown, and synced, at once
NAMED = 20  # devices that a preview names
NAMES = "named"
WHOM = ((Park.NOBODY.value, "Nobody: refused where a device would lose its slot"),
        (Park.NEWEST.value, "Who came last"))  # fmt: skip


# --- one subscription's slots of a tier ------------------------------------------------------------------------------


class Resize(VerbForm):
    tier = forms.ChoiceField(widget=UnfoldAdminSelectWidget)
    slots = forms.IntegerField(min_value=0, max_value=MOST_SLOTS, widget=UnfoldAdminIntegerFieldWidget)
    park = forms.ChoiceField(
        label="Whom to park",
        choices=(*WHOM, (NAMES, "These devices")),
        initial=Park.NOBODY.value,
        widget=UnfoldAdminRadioSelectWidget,
        help_text="Where there are more devices than slots. Who finds a free slot elsewhere in the tenant moves there.",
    )
    devices = forms.CharField(
        required=False,
        widget=UnfoldAdminTextareaWidget({"rows": 2}),
        help_text="For “These devices”: their ids, with spaces or line breaks between them.",
    )

    def __init__(self, data: Any = None, **more: Any) -> None:
        super().__init__(data, **more)
        tiers = DeviceTier.objects.values_list("code", "name")
        self.fields["tier"].choices = [*tiers]  # type: ignore[attr-defined]
        held = TierAllocation.objects.filter(subscription=self.subject.pk).select_related("tier")
        in_use = ", ".join(f"{a.slots_used} of {a.slot_limit} × {a.tier} in use" for a in held)
        self.fields["slots"].help_text = f"Now: {in_use or 'none'}."

    def clean(self) -> None:
        names, devices = self.cleaned_data.get("park") == NAMES, self.cleaned_data.get("devices")
        if names and not devices:
            self.add_error("devices", "Name the devices, or park somebody else.")
        if devices and not names and not self.errors:
            raise ValidationError("Devices are named, and somebody else would be parked: choose “These devices”.")

    @property
    def whom(self) -> ParkWhom:
        said: str = self.cleaned_data["park"]
        return self.cleaned_data["devices"].split() if said == NAMES else Park(said)


@dataclass(frozen=True)
class Resized:
    """What resizing came to: what the audit says, and who left which slot."""

    done: Limits
    leaving: Sequence[tuple[str, str]]  # device id, how its slot ended

    @property
    def seen(self) -> list[Any]:
        return [self.done.entry.changes if self.done.entry else None, [list(pair) for pair in self.leaving]]

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        entry = self.done.entry
        if entry is None:
            yield "–", "Nothing would change", "–", "–"
            return
        yield link(entry.subscription), entry.get_action_display(), when(entry.effective_at), changes(entry, {})
        for device, ended in self.leaving[:NAMED]:
            words = "Loses its slot and parks" if ended == SlotAssignment.Ended.PARKED else "Moves into another slot"
            yield device, words, when(entry.effective_at), "–"
        if len(self.leaving) > NAMED:
            yield "…", f"and {len(self.leaving) - NAMED} more devices", "–", "–"


def _resize(s: Subscription, form: Resize, actor: Actor, now: datetime, source: str) -> Resized:
    said = form.cleaned_data
    by: dict[str, Any] = {"actor": actor, "now": now, "reason": said["reason"]}
    done = limits.resize(s.pk, said["tier"], said["slots"], park=form.whom, source_id=f"form:{source}", **by)
    # By their devices, which this transaction has written: of an allocation's past there is no index.
    left = SlotAssignment.objects.filter(
        device__transaction_id=THIS_TRANSACTION, allocation__subscription=s, tier__code=said["tier"],
        released_at__gte=now, released_by=actor,
    )  # fmt: skip
    return Resized(done, [*left.order_by("pk").values_list("device__device_id", "ended")] if done.entry else [])


def resize_page(request: HttpRequest, pk: int, **_: Any) -> HttpResponse:
    """GET: the form. POST: what would change, and, once that was seen, the change: that one or none."""
    if not request.user.has_perm(ACT):
        raise PermissionDenied
    subject = get_object_or_404(Subscription.objects.select_related("tenant", "plan"), pk=pk)
    source, back = _source(request), reverse("admin:subscriptions_subscription_change", args=[pk])
    is_sent = request.method == "POST"
    form = Resize(
        request.POST if is_sent else None, subject=subject, user=request.user,
        initial={"tier": request.GET.get("tier", "")},
    )  # fmt: skip
    preview: Resized | None = None
    seen = ""
    if is_sent and form.is_valid():
        asked = (subject, form, actor_of(request), timezone.now(), source)
        words = [request.user.pk, pk, source, *(str(field.data) for field in form)]
        try:
            if "do" in request.POST:
                return _told(request, back, _done(asked, words, request.POST.get("seen", "")))
            with transaction.atomic():
                preview = _resize(*asked)
                transaction.set_rollback(True)
            seen = signing.dumps([words, preview.seen], salt=SALT, compress=True)
        except DomainError as error:
            help_ = error.facts.get("would_help")
            form.add_error(None, f"{error.detail} {help_}" if help_ else error.detail)
    context = {
        **admin.site.each_context(request),
        "title": "Resize slots",
        "help": "Set how many slots of a tier it holds, whatever its plan sells. To sync its plan sets that back.",
        "subjects": [subject],
        "form": form,
        "source": source,
        "heads": ("Subscription, device", "What", "Effective (UTC)", "Changes"),
        "preview": [*preview.rows()] if preview else [],
        "would_change": bool(preview and preview.done.entry),
        "seen": seen,
        "back": back,
    }
    return TemplateResponse(request, "admin/verb.html", context)


@transaction.atomic
def _done(asked: tuple[Subscription, Resize, Actor, datetime, str], words: list[Any], seen: str) -> Limits:
    """What was previewed, by this member of staff and in these words; all of it is taken back where it is not."""
    done = _resize(*asked)
    try:
        previewed = signing.loads(seen, salt=SALT, max_age=PREVIEW_SECONDS)
    except signing.BadSignature:
        raise ChangedMeanwhile from None
    if done.done.entry and previewed != [words, done.seen]:
        raise ChangedMeanwhile
    return done.done


def _told(request: HttpRequest, back: str, done: Limits) -> HttpResponse:
    if done.entry is None:
        messages.info(request, "Nothing to change: it is so already.")
    else:
        messages.success(request, f"{done.entry.subscription.number}: {_said(done)}.")
    return redirect(back)


def _said(done: Limits) -> str:
    """`basic 3 → 5; parked: 2 × basic`"""
    told = done.entry.changes if done.entry else {}
    moved = [f"{name.removeprefix('slots.')} {old} → {new}" for name, (old, new) in told.items() if "slots." in name]
    parked = [f"{count} × {tier}" for tier, count in done.parked.items()]
    return ", ".join(moved) + (f"; parked: {', '.join(parked)}" if parked else "")


RESIZE_PAGE = (("<int:pk>/resize/", "subscriptions_resize", resize_page),)


# --- what a plan sold before it was edited ---------------------------------------------------------------------------


class Sync(forms.Form):
    park = forms.ChoiceField(
        label="Whom to park",
        choices=WHOM,
        initial=Park.NOBODY.value,
        widget=UnfoldAdminRadioSelectWidget,
        help_text="Where there are more devices than slots. Who finds a free slot elsewhere in the tenant moves there.",
    )
    reason = forms.CharField(
        widget=UnfoldAdminTextareaWidget({"rows": 2}),
        help_text="For whoever reads the audit trail: an order, a ticket, who decided it.",
    )


class OffersSync:
    """On a plan's page: what it sold before, for staff who may act."""

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], **more: Any) -> HttpResponse:
        plan = more.get("obj")
        if plan and request.user.has_perm(ACT):
            path = reverse("admin:subscriptions_sync", args=[plan.pk])
            context["actions_detail"] = [{"title": "Sync sold subscriptions", "path": path}]
        page: HttpResponse = super().render_change_form(request, context, **more)  # type: ignore[misc]
        return page


def sync_page(request: HttpRequest, pk: int, **_: Any) -> HttpResponse:
    """GET: what was sold and differs, a page of it. POST: sync those that were chosen, each as it was shown or not."""
    if not request.user.has_perm(ACT):
        raise PermissionDenied
    plan = get_object_or_404(Plan, pk=pk)
    given = request.GET.get("after", "")
    after = int(given) if given.isascii() and given.isdigit() and len(given) < 19 else 0
    form = Sync(request.POST if request.method == "POST" else None, label_suffix="")
    source = _source(request)
    if form.is_bound and form.is_valid():
        chosen = _chosen(request)
        if chosen:
            _sync(request, plan, chosen, form.cleaned_data, source)
            return redirect(request.get_full_path())
        form.add_error(None, "Nothing was done: choose subscriptions.")
    found = sold.differing(plan.pk, most=PAGE + 1, after=after)
    context = {
        **admin.site.each_context(request),
        "title": f"Sync sold subscriptions of {plan}",
        "plan": plan,
        "sells": plan.slots.select_related("tier").order_by("tier__position", "tier__code"),
        "gives": plan.features.select_related("feature").order_by("feature__code"),
        "rows": [(one, link(Subscription(pk=one.pk), one.number)) for one in found[:PAGE]],
        "next": found[PAGE - 1].pk if len(found) > PAGE else None,
        "is_first": not after,
        "form": form,
        "source": source,
        "back": reverse("admin:subscriptions_plan_change", args=[pk]),
    }
    return TemplateResponse(request, "admin/sync.html", context)


def _chosen(request: HttpRequest) -> list[tuple[int, str]]:
    """Keys, and what was seen of each."""
    pairs = [word.partition(":") for word in request.POST.getlist("shown" if "all" in request.POST else "of")[:PAGE]]
    return [(int(pk), seen) for pk, _, seen in pairs if pk.isascii() and pk.isdigit() and len(pk) < 19]


def _sync(
    request: HttpRequest, plan: Plan, chosen: Sequence[tuple[int, str]], said: dict[str, Any], source: str
) -> None:
    """Each in a transaction of its own, with its result."""
    by: dict[str, Any] = {"actor": actor_of(request), "now": timezone.now(), "reason": said["reason"]}
    numbers = dict(Subscription.objects.filter(pk__in=[pk for pk, _ in chosen]).values_list("pk", "number"))
    for pk, seen in chosen:
        number = numbers.get(pk, "–")
        try:
            done = sold.sync(plan.pk, pk, seen=seen, park=Park(said["park"]), source_id=f"form:{source}:{pk}", **by)
        except DomainError as error:
            messages.error(request, f"{number}: {error.detail}")
        else:
            if done and done.entry:
                messages.success(request, f"{number}: {_said(done)}.")
            else:
                messages.info(request, f"{number}: nothing to change, it has what the plan sells.")


SYNC_PAGE = (("<int:pk>/sync/", "subscriptions_sync", sync_page),)
