"""What staff can do to a subscription: each verb a small form, shown beforehand, then done.

To offer another, add a row to OFFERS: it names a row of `management.verbs.VERBS`, and its form's fields are that verb's
options. The preview is the verb itself in a transaction that is taken back. "Do it" does what was previewed or
nothing: what is signed into the page are the words that were previewed and the versions that were seen then.
"""

import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from typing import Any, ClassVar
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import AnonymousUser, User
from django.core import signing
from django.core.exceptions import BadRequest, PermissionDenied, ValidationError
from django.db import Error, connection, transaction
from django.db.models import Q, QuerySet, Sum
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import reverse, reverse_lazy
from django.utils import timezone
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminRadioSelectWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanWidget,
)

from billing_site.admin.views import changes, link, names, when
from billing_site.provenance import actor_of
from billing_site.verbs import carry_out
from entitlements.limits import Park
from subscriptions import families, terms
from subscriptions.audit import Actor
from subscriptions.errors import DomainError, InvalidTerm
from subscriptions.management.verbs import GRANT, VERBS, By, NotWritten, of_tenant
from subscriptions.models import MOST_UNITS, AuditEntry, Plan, Subscription, Tenant
from subscriptions.states import LIVE, TRANSITIONS, Action, EndReason, Status, Type

ACT = "subscriptions.change_subscription"
SEVERAL = ("renew", "suspend-with-hold", "lift-hold")  # what the list offers for several at once
MOST = 100  # at once: their numbers stand in the address
PREVIEW_SECONDS = 3600
LIST = reverse_lazy("admin:subscriptions_subscription_changelist")
SALT = "billing_site.admin.verbs"

Subject = Subscription | Tenant  # what a verb is done to
Outcome = list[AuditEntry] | DomainError | None  # what it wrote; why it did not; None: this form did it before


class ChangedMeanwhile(DomainError):
    """Nothing was done: something else has changed it since the preview. Look again at what would change now."""

    code, http_status = "changed_meanwhile", 409


# --- forms -----------------------------------------------------------------------------------------------------------


LOOKS_LIKE_ONE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d[\d:.Z+-]*)?$")  # Python reads much more as one


class Instant(forms.CharField):
    """A day or an instant as ISO 8601 writes it, in UTC unless it names its zone."""

    widget = UnfoldAdminTextInputWidget

    def __init__(self, *, help_text: str = "", **options: Any) -> None:
        written = "In UTC: 2026-03-01, which begins at midnight, or 2026-03-01 12:00."
        super().__init__(help_text=f"{help_text} {written}".strip(), **options)

    def clean(self, value: Any) -> Any:
        text = super().clean(value)
        return self._instant(text) if text else None

    def _instant(self, text: str) -> datetime:
        try:
            if not LOOKS_LIKE_ONE.match(text):
                raise ValueError(text)
            at = _day(text) or datetime.fromisoformat(text)
            return terms.aware(at if at.tzinfo else at.replace(tzinfo=UTC), "It")
        except InvalidTerm as error:
            raise ValidationError(error.detail) from None
        except ValueError:
            raise ValidationError("This is no instant: 2026-03-01, or 2026-03-01 12:00.") from None


def _day(text: str) -> datetime | None:
    try:
        return datetime.combine(date.fromisoformat(text), time(), tzinfo=UTC)
    except ValueError:
        return None


class Bought(forms.ChoiceField):
    """A plan and the price that it is sold at, if it has any."""

    widget = UnfoldAdminSelectWidget

    def offer(self, types: Sequence[str]) -> None:
        """Fill in the choices: the plans of these types, by type."""
        self.found: dict[str, dict[str, Any]] = {}
        groups: dict[str, list[tuple[str, str]]] = {}
        for plan in Plan.objects.filter(type__in=types).prefetch_related("prices"):
            for price in plan.prices.all() or [None]:
                key = f"{plan.pk}:{price.pk if price else ''}"
                said = str(price or f"{plan}, no price") + ("" if plan.is_sold else " (not offered to new customers)")
                groups.setdefault(Type(plan.type).label, []).append((key, said))
                self.found[key] = {"plan": plan, "price": price}
        self.choices = [("", "–"), *groups.items()]

    def clean(self, value: Any) -> Any:
        return self.found.get(super().clean(value), {"plan": None, "price": None})


class VerbForm(forms.Form):
    """A verb's own fields, which are its options, and why."""

    reason = forms.CharField(
        widget=UnfoldAdminTextareaWidget({"rows": 2}),
        help_text="For whoever reads the audit trail: an order, a ticket, the reference of a payment.",
    )
    types: ClassVar[Sequence[str]] = Type.values  # of the plans that it offers

    def __init__(self, data: Any = None, *, subject: Subject, user: User | AnonymousUser, **more: Any) -> None:
        super().__init__(data, label_suffix="", **more)
        self.subject = subject
        self.order_fields([*(name for name in self.fields if name != "reason"), "reason"])
        if isinstance(bought := self.fields.get("bought"), Bought):
            bought.offer(self.types)

    def options(self) -> dict[str, Any]:
        """As the verb takes them."""
        return {**self.cleaned_data, **(self.cleaned_data.get("bought") or {})}


class Start(VerbForm):
    bought = Bought(label="Plan and price", help_text="An add-on becomes part of the live main subscription.")
    term_start = Instant(required=False, help_text="The first instant that is paid for, also to come. Empty: now.")
    term_end = Instant(
        required=False,
        help_text="The first instant that is not paid for. Empty: by the price; of an add-on, when its main one ends.",
    )
    converts = forms.ChoiceField(
        label="Takes over from",
        required=False,
        widget=UnfoldAdminSelectWidget,
        help_text="A trial, which ends at once.",
    )
    another_trial = forms.BooleanField(
        required=False, widget=UnfoldBooleanWidget, help_text="Grant a trial to a tenant that had one."
    )

    def __init__(self, data: Any = None, *, user: User | AnonymousUser, **more: Any) -> None:
        super().__init__(data, user=user, **more)
        self.live = Subscription.objects.filter(tenant=self.subject.pk, status__in=LIVE)
        trials = self.live.filter(type=Type.TRIAL).values_list("number", flat=True)
        choices = [("", "–"), *((number, number) for number in trials)]
        self.fields["converts"].choices = choices  # type: ignore[attr-defined]
        if not user.has_perm(GRANT):
            del self.fields["another_trial"]

    def options(self) -> dict[str, Any]:
        options = {"another_trial": False, **super().options()}
        is_addon = options["plan"].type == Type.ADDON
        main = self.live.filter(type=Type.MAIN).first() if is_addon else None
        return options | {"parent": main and main.number}


class Activate(VerbForm):
    bought = Bought(
        label="Plan and price",
        required=False,
        help_text="What a trial becomes. Empty: go on with what is left of the term.",
    )
    term_end = Instant(required=False, help_text="With a plan: the first instant not paid for. Empty: by the price.")
    types: ClassVar[Sequence[str]] = [type for type in Type.values if type != Type.ADDON]

    def clean(self) -> None:
        if self.cleaned_data.get("term_end") and not (self.cleaned_data.get("bought") or {}).get("plan"):
            self.add_error("term_end", "It says something of a purchase: choose a plan, too.")


class Renew(VerbForm):
    until = Instant(required=False, help_text="The end of the new term. Empty: one interval of its price later.")


class ExtendGrace(VerbForm):
    until = Instant(required=False, help_text="Its new end.")
    days = forms.IntegerField(
        label="Or days more", required=False, min_value=1, max_value=3650, widget=UnfoldAdminIntegerFieldWidget
    )

    def clean(self) -> None:
        if not self.errors and bool(self.cleaned_data["until"]) == bool(self.cleaned_data["days"]):
            raise ValidationError("Say either its new end or so many days more.")


class AmendTerm(VerbForm):
    term_end = Instant(help_text="The first instant not paid for. Nothing else moves.")


class ChangePlan(VerbForm):
    bought = Bought(label="Plan and price")
    quantity = forms.IntegerField(
        min_value=1, max_value=MOST_UNITS, required=False, widget=UnfoldAdminIntegerFieldWidget,
        help_text="Units of the plan. Empty: as many as before.",
    )  # fmt: skip
    park = forms.BooleanField(
        label="Park the newest devices",
        required=False,
        widget=UnfoldBooleanWidget,
        help_text="Where there are more devices than slots then. Otherwise it is refused.",
    )

    def __init__(self, data: Any = None, *, subject: Subject, **more: Any) -> None:
        if isinstance(subject, Subscription):
            self.types = [subject.type]  # type: ignore[misc]
        super().__init__(data, subject=subject, **more)

    def options(self) -> dict[str, Any]:
        return super().options() | {"park": Park.NEWEST if self.cleaned_data["park"] else Park.NOBODY}


class Expire(VerbForm):
    why = forms.ChoiceField(
        label="What its end is called", choices=EndReason.choices, initial=EndReason.CANCELLED,
        widget=UnfoldAdminRadioSelectWidget,
    )  # fmt: skip


# --- what is offered -------------------------------------------------------------------------------------------------


def _is_alive(s: Subscription) -> bool:
    return s.status in LIVE


def _is_root(s: Subscription) -> bool:
    return _is_alive(s) and s.parent_id is None


def _can_become(s: Subscription, status: Status) -> bool:
    return _is_root(s) and status in TRANSITIONS[Status(s.status)] and not (s.on_hold and status == Status.ACTIVE)


def _can_be_activated(s: Subscription) -> bool:
    return _can_become(s, Status.ACTIVE) or (s.type == Type.TRIAL and s.status == Status.ACTIVE)


def _can_be_held(s: Subscription) -> bool:
    return _is_alive(s) and not (s.own_hold if s.parent_id else s.on_hold)


def _can_be_lifted(s: Subscription) -> bool:
    return s.on_hold and (s.own_hold or s.parent_id is None)


def _can_be_resumed(s: Subscription) -> bool:
    return _is_alive(s) and s.cancel_at_term_end and (s.parent is None or s.parent.term_end == s.term_end)


@dataclass(frozen=True)
class Offer:
    label: str
    verb: str  # of VERBS
    when: Callable[[Subscription], bool] = _is_alive  # offered on a subscription's page
    form: type[VerbForm] = VerbForm
    fixed: Mapping[str, object] = field(default_factory=dict)  # options that its name says already
    help: str = ""

    @property
    def of(self) -> type[Subject]:
        return Tenant if VERBS[self.verb].of is of_tenant else Subscription


OFFERS: dict[str, Offer] = {
    "start": Offer("Start a subscription", "start", form=Start),
    "renew": Offer("Renew", "renew", _is_root, Renew),
    "activate": Offer("Activate", "activate", _can_be_activated, Activate),
    "grace": Offer("Start grace", "grace", lambda s: _can_become(s, Status.GRACE)),
    "extend-grace": Offer("Extend grace", "extend-grace", lambda s: _is_root(s) and s.status == "GRACE", ExtendGrace),
    "suspend": Offer(
        "Suspend", "suspend", lambda s: _can_become(s, Status.SUSPENDED), fixed={"hold": False},
        help="Withhold service and remember everything. A payment brings it back.",
    ),
    "suspend-with-hold": Offer(
        "Suspend with hold", "suspend", _can_be_held, fixed={"hold": True},
        help="Withhold service until staff lift the hold: neither the clock nor a payment ends it.",
    ),
    "lift-hold": Offer("Lift hold", "lift-hold", _can_be_lifted),
    "cancel-at-term-end": Offer(
        "Cancel at term end", "cancel", lambda s: _is_alive(s) and not s.cancel_at_term_end, fixed={"at": "term-end"},
        help="It ends when what was paid for does; at once where that is over.",
    ),
    "cancel-now": Offer("Cancel now", "cancel", fixed={"at": "now"}, help="It ends for good, now."),
    "resume": Offer("Resume", "resume", _can_be_resumed),
    "expire": Offer("Expire", "expire", form=Expire),
    "amend-term": Offer("Amend term", "amend-term", _is_root, AmendTerm),
    "change-plan": Offer("Change plan", "change-plan", form=ChangePlan),
}  # fmt: skip


class OffersVerbs:
    """The verbs that an object's present state can do, above its page; for staff who may act."""

    def has_act_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(ACT)

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], **more: Any) -> HttpResponse:
        subject = more.get("obj")
        if subject and self.has_act_permission(request):
            context["actions_detail"] = _menu(subject)
        page: HttpResponse = super().render_change_form(request, context, **more)  # type: ignore[misc]
        return page


def _menu(subject: Subject) -> list[dict[str, Any]]:
    """As unfold's template takes it."""
    if isinstance(subject, Tenant):
        return [{"title": OFFERS["start"].label, "path": _address("start", [subject.slug])}]
    items = [
        {"title": offer.label, "path": _address(name, [subject.number])}
        for name, offer in OFFERS.items()
        if offer.of is Subscription and offer.when(subject)
    ]
    if _is_alive(subject):
        items.append({"title": "Resize slots", "path": reverse("admin:subscriptions_resize", args=[subject.pk])})
    return [{"title": "Change", "items": items}] if items else []


def _address(offer: str, of: Sequence[str]) -> str:
    return f"{reverse('admin:subscriptions_verb', args=[offer])}?{urlencode({'of': of}, doseq=True)}"


def _several(name: str) -> Callable[..., HttpResponse | None]:
    @admin.action(description=f"{OFFERS[name].label}…", permissions=["act"])
    def choose(page: Any, request: HttpRequest, chosen: QuerySet[Subscription]) -> HttpResponse | None:
        numbers = [*chosen.values_list("number", flat=True)[: MOST + 1]]
        if len(numbers) <= MOST:
            return redirect(_address(name, numbers))
        messages.error(request, f"Not more than {MOST} at once; manage.py subscription does any number.")
        return None

    choose.__name__ = name.replace("-", "_")
    return choose


LIST_ACTIONS = [_several(name) for name in SEVERAL]


# --- the page --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What a form that was filled in asks for."""

    offer: Offer
    subjects: Mapping[str, Subject]  # by number or slug
    options: Mapping[str, Any]
    actor: Actor
    now: datetime
    reason: str
    source: str

    def preview(self) -> dict[str, Outcome]:
        return {name: _outcome(partial(self._carry_out, name, dry_run=True)) for name in self.subjects}

    def do(self, seen: "Seen") -> dict[str, Outcome]:
        """Each in a transaction of its own, where it still is as it was seen, or as those before it left it here, and
        where what is written is what was previewed.
        """
        done: dict[str, Outcome] = {}
        moved: Counter[int] = Counter()  # by family: an entry moves one version by one
        for name, subject in self.subjects.items():
            family = subject.root_id if isinstance(subject, Subscription) else 0
            before_it = moved[family]
            done[name] = outcome = _outcome(partial(self._do, name, seen, before_it))
            moved[family] += len(outcome) if isinstance(outcome, list) else 0
        return done

    def _do(self, name: str, seen: "Seen", before_it: int) -> list[AuditEntry] | None:
        with transaction.atomic():
            _lock(self.subjects[name], self.now)
            if _is_done(self.source, name):
                return None
            if _version(self.subjects[name]) != seen.versions[name] + before_it:
                raise ChangedMeanwhile
            entries = self._carry_out(name)
            if not before_it and not _as_previewed(seen.previews[name], entries, self.now - seen.at):
                raise ChangedMeanwhile  # a date passed, or a price or a plan was edited: the transaction takes it back
            return entries

    def _carry_out(self, name: str, *, dry_run: bool = False) -> list[AuditEntry]:
        by = By(self.actor, self.now, self.reason, _source_id(self.source, name))
        return carry_out(self.offer.verb, name, self.options, by, dry_run=dry_run)


@dataclass(frozen=True)
class Seen:
    """What a member of staff saw before they said "Do it": the families' versions, and what would be written."""

    versions: Mapping[str, int]
    previews: Mapping[str, list[Any] | None]
    at: datetime


def _preview(outcome: Outcome) -> list[Any] | None:
    return [[entry.action, entry.changes] for entry in outcome] if isinstance(outcome, list) else None


def _as_previewed(preview: list[Any] | None, entries: Sequence[AuditEntry], since: timedelta) -> bool:
    """Whether this was written as it was previewed; what is counted from now has moved on with it."""
    written = _preview([*entries])
    if preview is None or written is None or len(preview) != len(written):
        return False
    return all(
        was == action and before.keys() == after.keys() and all(_alike(before[c], after[c], since) for c in before)
        for (was, before), (action, after) in zip(preview, written, strict=True)
    )


def _alike(before: Sequence[Any], after: Sequence[Any], since: timedelta) -> bool:
    return all(one == other or _moved_by(one, other, since) for one, other in zip(before, after, strict=True))


def _moved_by(one: Any, other: Any, since: timedelta) -> bool:
    try:
        apart = datetime.fromisoformat(other) - datetime.fromisoformat(one)
    except (TypeError, ValueError):
        return False
    return abs(apart) <= since + timedelta(seconds=1)


def page(request: HttpRequest, name: str, **_: Any) -> HttpResponse:
    """GET: the form. POST: what would change, and, once that was seen, the change."""
    if not request.user.has_perm(ACT):
        raise PermissionDenied
    offer = OFFERS.get(name)
    if offer is None:
        raise Http404
    subjects = _subjects(offer, request.GET.getlist("of"), at_most=MOST if name in SEVERAL else 1)
    first, is_one = next(iter(subjects.values())), len(subjects) == 1
    source, wants_it_done = _source(request), "do" in request.POST
    form = offer.form(request.POST if request.method == "POST" else None, subject=first, user=request.user)
    preview: dict[str, Outcome] = {}
    seen = ""
    if wants_it_done and all(_is_done(source, name) for name in subjects):  # its form may make no sense any more
        return _told(request, dict.fromkeys(subjects), first)
    if form.is_bound and form.is_valid():
        asked = Asked(
            offer, subjects, {**offer.fixed, **form.options()}, actor_of(request), timezone.now(),
            form.cleaned_data["reason"], source,
        )  # fmt: skip
        words = [request.user.pk, name, *subjects, source, *(str(field.data) for field in form)]
        if wants_it_done and (was := _seen(request, words)):
            done = asked.do(was)
            if not is_one or not isinstance(error := next(iter(done.values())), DomainError):
                return _told(request, done, first)
            form.add_error(None, error.detail)
        elif wants_it_done:
            form.add_error(None, "Nothing was done: this is not what was previewed. Look again.")
        versions = {name: _version(subject) for name, subject in subjects.items()}  # before: it may move meanwhile
        preview = asked.preview()
        previews = {name: _preview(outcome) for name, outcome in preview.items()}
        seen = signing.dumps([words, versions, previews, asked.now.isoformat()], salt=SALT, compress=True)
        if is_one and isinstance(error := next(iter(preview.values())), DomainError):
            preview = {}
            if error.detail not in form.non_field_errors():
                form.add_error(None, error.detail)
    context = {
        **admin.site.each_context(request),
        "title": offer.label,
        "help": offer.help or VERBS[offer.verb].help,
        "subjects": subjects.values(),
        "form": form,
        "source": source,
        "heads": ("Subscription", "What", "Effective (UTC)", "Changes"),
        "preview": [*_rows(preview)],
        "would_change": any(isinstance(outcome, list) and outcome for outcome in preview.values()),
        "seen": seen,
        "back": _page_of(first) if is_one else LIST,
    }
    return TemplateResponse(request, "admin/verb.html", context)


VERB_PAGES = (("verbs/<slug:name>/", "subscriptions_verb", page),)


def _subjects(offer: Offer, names: Sequence[str], *, at_most: int) -> dict[str, Subject]:
    """By number, or by slug. Raises Http404 unless all are there."""
    wanted = list(dict.fromkeys(names))
    if not 0 < len(wanted) <= at_most or any("\0" in name for name in wanted):
        raise Http404
    found: dict[str, Subject]
    if offer.of is Tenant:
        found = {tenant.slug: tenant for tenant in Tenant.objects.filter(slug__in=wanted)}
    else:
        rows = Subscription.objects.filter(number__in=wanted).select_related("tenant", "plan")
        found = {s.number: s for s in rows}
    if len(found) != len(wanted):
        raise Http404
    return {name: found[name] for name in wanted}


def _source(request: HttpRequest) -> str:
    """What makes a second click, or a form that is sent again, harmless: made with the form."""
    if request.method != "POST":
        return str(uuid.uuid4())
    try:
        return str(uuid.UUID(request.POST.get("source", "")))
    except ValueError:
        raise BadRequest("The form has no source.") from None


def _source_id(source: str, name: str) -> str:
    return f"form:{source}:{name}"


def _is_done(source: str, name: str) -> bool:
    return AuditEntry.objects.filter(source_id=_source_id(source, name)).exists()


def _lock(subject: Subject, now: datetime) -> None:
    """Until the caller's transaction ends, nobody else changes the family, or starts a subscription here."""
    if isinstance(subject, Tenant):
        Tenant.objects.select_for_update(no_key=True).get(pk=subject.pk)
    else:
        with families.locked(subject.pk, now, ""):
            pass


def _version(subject: Subject) -> int:
    """Of all that belongs to it: any change of any of them moves it."""
    rows = Subscription.objects.filter(tenant=subject.pk)
    if isinstance(subject, Subscription):
        rows = Subscription.objects.filter(Q(pk=subject.root_id) | Q(parent=subject.root_id))
    return int(rows.aggregate(sum=Sum("version"))["sum"] or 0)


def _seen(request: HttpRequest, words: list[Any]) -> Seen | None:
    """What was previewed, where it was to this member of staff and of these very words."""
    try:
        previewed, versions, previews, at = signing.loads(
            request.POST.get("seen", ""), salt=SALT, max_age=PREVIEW_SECONDS
        )
    except signing.BadSignature:
        return None
    return Seen(versions, previews, datetime.fromisoformat(at)) if previewed == words else None


def _outcome(do: Callable[[], list[AuditEntry] | None]) -> Outcome:
    try:
        return do()
    except DomainError as error:
        return error
    except Error as error:
        connection.close_if_unusable_or_obsolete()
        return NotWritten(f"{NotWritten.title()} {str(error).partition(chr(10))[0]}")


def _rows(preview: Mapping[str, Outcome]) -> Iterator[tuple[str, str, str, str]]:
    """What would be written, an entry a line: of whom, what, when, and from what to what."""
    by_key = names() if preview else {}
    for name, outcome in preview.items():
        if isinstance(outcome, DomainError):
            yield name, "Refused", "–", outcome.detail
        elif not outcome:
            yield name, "Nothing would change", "–", "–"
        else:
            for entry in outcome:
                is_new = entry.action == Action.STARTED
                of_whom = "A new subscription" if is_new else link(entry.subscription)
                yield of_whom, entry.get_action_display(), when(entry.effective_at), changes(entry, by_key)


def _told(request: HttpRequest, done: Mapping[str, Outcome], first: Subject) -> HttpResponse:
    """Say what was done and what was not, and go on to where it is seen."""
    for name, outcome in done.items():
        if isinstance(outcome, DomainError):
            messages.error(request, f"{name}: {outcome.detail}")
        elif outcome is None:
            messages.info(request, f"{name}: already done, by this very form. Nothing was done a second time.")
        elif not outcome:
            messages.info(request, f"{name}: nothing to change.")
        else:
            for entry in outcome:
                messages.success(request, f"{entry.subscription.number}: {entry.get_action_display()}.")
    if len(done) > 1:
        return redirect(LIST)
    (outcome,) = done.values()
    return redirect(_page_of(outcome[-1].subscription if isinstance(outcome, list) and outcome else first))


def _page_of(subject: Subject) -> str:
    return reverse(f"admin:subscriptions_{subject._meta.model_name}_change", args=[subject.pk])
