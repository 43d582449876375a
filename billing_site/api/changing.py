"""What a billing owner changes of a subscription. What Stripe bills is changed there first, and then here: the answer
is how it stands after. To send the same again changes nothing more.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import generics, serializers, views
from rest_framework.request import Request
from rest_framework.response import Response

from billing_site.api.billing import Units
from billing_site.api.customer import Instant, SubscriptionSerializer, subscriptions_of
from billing_site.api.permissions import IsOwner, tenant_of
from billing_site.api.slots import CODE, SOURCE, Json, Strict, Text, Whole, source_of
from billing_site.provenance import caller_of
from subscriptions.errors import DomainError
from subscriptions.lifecycle import CancelAt
from subscriptions.models import PlanPrice, Subscription
from webhooks import changing
from webhooks.changing import AskedBy, ChangeAt, Preview, WishedChange
from webhooks.errors import told
from webhooks.stripe_api import StripeError
from webhooks.stripe_state import Unmappable

ONCE = OpenApiParameter(
    "Idempotency-Key",
    str,
    OpenApiParameter.HEADER,
    description="Taken: with the same key the same is asked of Stripe once, also when its first answer was a refusal.",
)

# --- what is asked ---------------------------------------------------------------------------------------------------


class NothingSerializer(Strict):
    """An empty object, or no body."""


class CancelSerializer(Strict):
    at = serializers.ChoiceField(
        [at.value for at in CancelAt], required=False, default=CancelAt.TERM_END.value,
        help_text="term_end: what is paid is served. now: it is over at once, and nothing is paid back.",
    )  # fmt: skip


class PauseSerializer(Strict):
    resumes_at = Instant(required=False, help_text="Left out: until it is resumed, or its suspension ends it.")


class PackUnits(serializers.DictField):
    child = Units(min_value=0)

    def to_internal_value(self, data: Any) -> Any:
        found = super().to_internal_value(data)
        for code in found:
            CODE(code)
        return found


class SubscriptionChangeSerializer(Strict):
    plan = Text(required=False, validators=[CODE], help_text="Its code. Left out, like all here: as it is.")
    interval = serializers.ChoiceField(PlanPrice.Interval.choices, required=False)
    interval_count = Units(required=False, help_text="Where the plan is sold at several.")
    currency = serializers.RegexField(r"^[A-Z]{3}\Z", required=False, help_text="It stays: only named to be sure.")
    quantity = Units(required=False)
    packs = PackUnits(required=False, help_text="Units of slot packs by their codes; 0: none. Others stay.")
    when = serializers.ChoiceField([when.value for when in ChangeAt], required=False, default=ChangeAt.NOW.value)
    proration_date = Whole(
        required=False, min_value=0, max_value=2**40, help_text="Of the preview that is confirmed: its price holds."
    )
    confirm_parking = serializers.BooleanField(
        required=False, default=False, help_text="The newest devices lose their slots where there are fewer then."
    )

    @property
    def wish(self) -> WishedChange:
        said = self.validated_data
        return WishedChange(**{name: said[name] for name in WishedChange.__dataclass_fields__ if name in said})


# --- what is answered ------------------------------------------------------------------------------------------------


class InvoiceLineSerializer(serializers.Serializer[Any]):
    description = serializers.CharField(allow_blank=True)
    amount_minor = serializers.IntegerField()
    proration = serializers.BooleanField()


class BeforeAfterSerializer(serializers.Serializer[Any]):
    before = serializers.IntegerField()
    after = serializers.IntegerField()


class PreviewSerializer(serializers.Serializer[Any]):
    due_now_minor = serializers.IntegerField(help_text="What Stripe would bill at once.")
    next_minor = serializers.IntegerField(help_text="The list price of every term from then on.")
    currency = serializers.CharField()
    lines = InvoiceLineSerializer(many=True, help_text="Of the invoice that it would be billed with.")
    at = serializers.DateTimeField(help_text="When it would change.")
    proration_date = serializers.IntegerField(allow_null=True, help_text="To confirm what was shown, within the hour.")
    slots = serializers.DictField(child=BeforeAfterSerializer(), help_text="By tier.")
    devices_to_park = serializers.IntegerField(help_text="How many devices would lose their slots and find no other.")


# --- the edges -------------------------------------------------------------------------------------------------------


class _Changing(views.APIView):
    """One verb: asked in `asks`, answered with the subscription as it stands after."""

    permission_classes = (IsOwner,)
    parser_classes = (Json,)
    asks: type[Strict] = NothingSerializer

    def carried_out(self, request: Request, number: str, verb: Callable[..., Any], **said: Any) -> Any:
        """What the verb answers of the tenant's own subscription."""
        by = AskedBy(caller_of(request), timezone.now, source_of(request), _key(request))
        try:
            return verb(self.found(request, number), by=by, **said)
        except StripeError as error:
            raise told(error) from error
        except Unmappable as error:
            raise NotUnderstood(code=error.code) from error

    def found(self, request: Request, number: str) -> Subscription:
        found: Subscription = generics.get_object_or_404(subscriptions_of(tenant_of(request)), number=number)
        return found

    def asked(self, request: Request) -> Any:
        """Raises ValidationError."""
        asked = self.asks(data=request.data)
        asked.is_valid(raise_exception=True)
        return asked

    def as_it_stands(self, request: Request, number: str) -> Response:
        return Response(SubscriptionSerializer(self.found(request, number)).data)


class NotUnderstood(DomainError):
    """At Stripe this subscription is not as we sell it: staff have to look at it."""

    http_status = 409

    def __init__(self, *, code: str) -> None:
        self.code = code
        super().__init__()


def _key(request: Request) -> str:
    key: str = request.headers.get("Idempotency-Key", "")
    return key if SOURCE.fullmatch(key) else ""


class Cancel(_Changing):
    asks = CancelSerializer

    @extend_schema(request=CancelSerializer, responses=SubscriptionSerializer, parameters=[ONCE])
    def post(self, request: Request, number: str) -> Response:
        """End the subscription when its paid term ends, or at once."""
        at = CancelAt(self.asked(request).validated_data["at"])
        self.carried_out(request, number, changing.cancel, at=at)
        return self.as_it_stands(request, number)


class Resume(_Changing):
    @extend_schema(request=NothingSerializer, responses=SubscriptionSerializer, parameters=[ONCE])
    def post(self, request: Request, number: str) -> Response:
        """Undo a cancellation that is to come, and end a pause. A pause that outlasted the paid term ends with a new
        term, which is paid at once.
        """
        self.asked(request)
        self.carried_out(request, number, changing.resume)
        return self.as_it_stands(request, number)


class Pause(_Changing):
    asks = PauseSerializer

    @extend_schema(request=PauseSerializer, responses=SubscriptionSerializer, parameters=[ONCE])
    def post(self, request: Request, number: str) -> Response:
        """Pay nothing and be served nothing for a while, add-ons included."""
        self.carried_out(request, number, changing.pause, **self.asked(request).validated_data)
        return self.as_it_stands(request, number)


class Change(_Changing):
    asks = SubscriptionChangeSerializer

    @extend_schema(request=SubscriptionChangeSerializer, responses=SubscriptionSerializer, parameters=[ONCE])
    def post(self, request: Request, number: str) -> Response:
        """Buy another plan, interval, quantity or slot packs: now, or when the term ends. Preview it first."""
        asked = self.asked(request)
        said = asked.validated_data
        more = {name: said.get(name) for name in ("proration_date", "confirm_parking")}
        self.carried_out(request, number, changing.change, wish=asked.wish, when=ChangeAt(said["when"]), **more)
        return self.as_it_stands(request, number)

    @extend_schema(responses={200: SubscriptionSerializer}, parameters=[ONCE])
    def delete(self, request: Request, number: str) -> Response:
        """Drop the change that is scheduled."""
        self.carried_out(request, number, changing.unschedule)
        return self.as_it_stands(request, number)


class PreviewChange(_Changing):
    asks = SubscriptionChangeSerializer

    @extend_schema(request=SubscriptionChangeSerializer, responses=PreviewSerializer)
    def post(self, request: Request, number: str) -> Response:
        """What a change would cost, by Stripe's reckoning, and what it would do to slots. Nothing is changed."""
        asked = self.asked(request)
        said = asked.validated_data
        shown: Preview = self.carried_out(
            request, number, changing.preview, wish=asked.wish, when=ChangeAt(said["when"]),
            proration_date=said.get("proration_date"),
        )  # fmt: skip
        return Response(PreviewSerializer(asdict(shown)).data)
