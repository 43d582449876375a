"""The doorbell, one delivery at a time, through Django's test client. Over a real server: test_intake_over_http."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from io import BytesIO
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from django.db import OperationalError, connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from djstripe.models import WebhookEndpoint
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.bench.deliveries import CREATED, event, signature, written
from webhooks import endpoints
from webhooks.intake import HANDLED_TYPES, LARGEST_BODY
from webhooks.models import StripeEvent

pytestmark = pytest.mark.django_db
SECRET = "whsec_intake_canary"
CARD = "4242424242424242"
CLIENT = Client()


@pytest.fixture(autouse=True)
def one_secret(settings: Any) -> Iterator[None]:
    settings.STRIPE_WEBHOOK_SECRETS = [SECRET]
    settings.STRIPE_LIVE_MODE = False
    endpoints.forget()
    yield
    endpoints.forget()


def deliver(
    body: bytes, *, header: str | None = None, path: str = "/webhook/stripe", secret: str = SECRET, **environ: Any
) -> HttpResponse:
    """Post the bytes, signed now unless a header is given; `environ` is what the server would say about the request."""
    header = signature(body, secret) if header is None else header
    kept: dict[str, Any] = {"HTTP_STRIPE_SIGNATURE": header} | environ
    answer = CLIENT.post(path, body, content_type="application/json", **kept)
    return cast(HttpResponse, answer)


def told(answer: HttpResponse) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(answer.content))


def code(answer: HttpResponse) -> str:
    return str(told(answer).get("code", ""))


def rows() -> int:
    return StripeEvent.objects.count()


def where_kept(canary: str) -> list[str]:
    """Every table of the database that has a row with this text anywhere in it, also as bytes."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        tables = [name for (name,) in cursor.fetchall()]
        found = []
        for name in tables:
            cursor.execute(
                f'SELECT EXISTS (SELECT FROM "{name}" t WHERE t::text LIKE ANY (%s))',  # a name from the catalogue
                [[f"%{canary}%", f"%{canary.encode().hex()}%"]],
            )
            found += [name] * cursor.fetchone()[0]
    return found


# --- What is kept ----------------------------------------------------------------------------------------------------


def test_a_new_event_is_kept_by_its_ids_alone_and_waits_for_the_inbox() -> None:
    before = timezone.now()
    answer = deliver(written(event("evt_new")))
    assert (answer.status_code, told(answer)) == (200, {"received": True, "handled": True, "duplicate": False})
    kept: dict[str, Any] = dict(StripeEvent.objects.values().get())
    assert before <= kept.pop("received_at") == kept.pop("next_attempt_at") <= timezone.now()
    assert kept == {
        "event_id": "evt_new", "type": "customer.subscription.updated", "object_id": "sub_1",
        "stripe_subscription_id": "sub_1", "livemode": False, "created_at": datetime.fromtimestamp(CREATED, UTC),
        "state": "PENDING", "attempts": 0, "replays": 0, "done_at": None, "outcome": "", "error_code": "", "error": "",
    }  # fmt: skip


def test_a_duplicate_is_answered_and_changes_nothing() -> None:
    deliver(written(event("evt_twice")))
    StripeEvent.objects.update(state="PARKED", attempts=9, error="a person should look at it")
    before = StripeEvent.objects.values().get()
    answer = deliver(written(event("evt_twice", type="invoice.paid", created=CREATED + 5)))
    assert (answer.status_code, told(answer)) == (200, {"received": True, "handled": True, "duplicate": True})
    assert StripeEvent.objects.values().get() == before


@pytest.mark.parametrize("type", sorted(HANDLED_TYPES))
def test_each_handled_type_is_kept(type: str) -> None:
    assert deliver(written(event(type=type))).status_code == 200
    assert StripeEvent.objects.get().type == type


def test_the_handled_types_are_those_of_the_contract() -> None:
    assert {
        "checkout.session.completed", "checkout.session.async_payment_succeeded",
        "checkout.session.async_payment_failed", "customer.subscription.created", "customer.subscription.updated",
        "customer.subscription.deleted", "customer.subscription.paused", "customer.subscription.resumed",
        "customer.subscription.trial_will_end", "invoice.paid", "invoice.payment_succeeded", "invoice.payment_failed",
        "invoice.payment_action_required",
    } == HANDLED_TYPES  # fmt: skip


TODAYS_PARENT = {"subscription_details": {"subscription": "sub_7"}, "type": "subscription_details"}


@pytest.mark.parametrize(
    ("type", "subject", "subscription"),
    [
        pytest.param("customer.subscription.paused", {"id": "sub_7"}, "sub_7", id="the subscription itself"),
        pytest.param("invoice.paid", {"id": "in_1", "parent": TODAYS_PARENT}, "sub_7", id="an invoice of today"),
        pytest.param("invoice.paid", {"id": "in_1", "subscription": "sub_7"}, "sub_7", id="an invoice before 2025"),
        pytest.param("invoice.paid", {"id": "in_1", "subscription": {"id": "sub_7"}}, "sub_7", id="an expanded one"),
        pytest.param("invoice.paid", {"id": "in_1", "parent": None}, "", id="an invoice of no subscription"),
        pytest.param("invoice.paid", {"id": "in_1", "parent": {"quote_details": {}}}, "", id="an invoice of a quote"),
        pytest.param("invoice.paid", {"id": "in_1", "parent": [1], "subscription": 7}, "", id="nonsense is no id"),
        pytest.param("checkout.session.completed", {"id": "cs_1", "subscription": "sub_7"}, "sub_7", id="a session"),
        pytest.param("checkout.session.completed", {"id": "cs_1", "subscription": None}, "", id="a session of none"),
    ],
)
def test_the_subscription_that_an_event_belongs_to_is_read_from(
    type: str, subject: dict[str, Any], subscription: str
) -> None:
    assert deliver(written(event(type=type, data={"object": subject}))).status_code == 200
    assert StripeEvent.objects.get().stripe_subscription_id == subscription


# --- What it costs ---------------------------------------------------------------------------------------------------


def test_a_new_event_and_a_duplicate_cost_one_statement_each() -> None:
    cookies = {"HTTP_COOKIE": "sessionid=somebodys; messages=x"}  # a browser's cookies ask the database nothing here
    for _ in ("new", "duplicate"):
        with CaptureQueriesContext(connection) as asked:
            assert deliver(written(event()), **cookies).status_code == 200
        assert [query["sql"].split()[:3] for query in asked] == [["INSERT", "INTO", "stripe_events"]]


@pytest.mark.django_db(transaction=True)
def test_nor_is_a_statement_spent_on_asking_whether_the_connection_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(connection, "is_usable", lambda: not asked.append(True))  # type: ignore[func-returns-value]
    connection.connect()
    connection.close_if_unusable_or_obsolete()  # what begins a request on a connection that was kept
    assert deliver(written(event())).status_code == 200
    assert asked == []
    connection.close_if_unusable_or_obsolete()
    StripeEvent.objects.exists()
    assert asked, "nobody would have asked"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param("SELECT pg_terminate_backend(pg_backend_pid())", id="was closed by the server"),
        pytest.param("SET default_transaction_read_only = on", id="leads to a standby since the fail-over"),
    ],
)
def test_an_event_is_kept_although_the_connection(spoil: str) -> None:
    with suppress(OperationalError), connection.cursor() as cursor:
        cursor.execute(spoil)
    assert told(deliver(written(event())))["duplicate"] is False
    assert rows() == 1


# --- What is answered without a row ----------------------------------------------------------------------------------


def answers_without_a_trace(answer: Callable[[], HttpResponse]) -> tuple[int, str]:
    with CaptureQueriesContext(connection) as asked:
        given = answer()
    assert not asked.captured_queries
    assert rows() == 0
    return given.status_code, code(given)


@pytest.mark.parametrize("type", ["customer.created", "invoice.created", "v1.billing.meter", "", "x" * 5000, "\0"])
@pytest.mark.parametrize("livemode", [False, True, ...])
def test_an_unknown_type_is_received_and_forgotten(type: str, livemode: Any) -> None:
    body = written(event(type=type, livemode=livemode))
    assert answers_without_a_trace(lambda: deliver(body)) == (200, "")
    assert told(deliver(body)) == {"received": True, "handled": False}


def test_a_thin_event_of_stripes_second_api_is_received_and_forgotten() -> None:
    body = written({"id": "evt_1", "object": "v2.core.event", "type": "v2.core.account.created", "livemode": False})
    assert answers_without_a_trace(lambda: deliver(body)) == (200, "")


BODY = written(event())


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("", id="there is none"),
        pytest.param("nonsense", id="it is nonsense"),
        pytest.param(signature(BODY + b" ", SECRET), id="it is another body's"),
        pytest.param(signature(BODY, "whsec_of_somebody_else"), id="it was made with another secret"),
        pytest.param(signature(BODY, SECRET) + ",é=1", id="it is not ASCII"),
        pytest.param(signature(BODY, SECRET) + ",\xa0", id="it holds a byte that is no text"),
        pytest.param("\0" + signature(BODY, SECRET), id="it begins with NUL"),
    ],
)
def test_a_delivery_is_refused_if_its_signature_says_that(header: str) -> None:
    assert answers_without_a_trace(lambda: deliver(BODY, header=header)) == (400, "bad_signature")


@pytest.mark.parametrize("ago", [301, 3600, -302, -3600])
def test_a_delivery_is_refused_if_it_was_signed_too_long_ago_or_in_the_future(ago: int) -> None:
    assert answers_without_a_trace(lambda: deliver(BODY, header=signature(BODY, SECRET, ago=ago))) == (
        400,
        "bad_signature",
    )


@pytest.mark.parametrize("ago", [290, -290])
def test_a_delivery_within_the_tolerance_is_accepted(ago: int) -> None:
    assert deliver(BODY, header=signature(BODY, SECRET, ago=ago)).status_code == 200
    assert rows() == 1


def test_every_configured_secret_is_good_while_rotating(settings: Any) -> None:
    settings.STRIPE_WEBHOOK_SECRETS = ["whsec_next", SECRET]
    for secret in settings.STRIPE_WEBHOOK_SECRETS:
        assert deliver(written(event(f"evt_{secret}")), secret=secret).status_code == 200
    assert rows() == 2


def test_without_any_secret_nothing_gets_in(settings: Any) -> None:
    settings.STRIPE_WEBHOOK_SECRETS = []
    assert answers_without_a_trace(lambda: deliver(BODY, secret="")) == (400, "bad_signature")


def test_dj_stripes_header_for_another_secret_is_not_obeyed_even_in_debug(settings: Any) -> None:
    settings.DEBUG = True
    mine = {"HTTP_X_DJSTRIPE_WEBHOOK_SECRET": "whsec_mine"}
    assert answers_without_a_trace(lambda: deliver(BODY, secret="whsec_mine", **mine)) == (400, "bad_signature")


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("theirs", [..., None, 0, 1, "false", "true", [], "other"])
def test_an_event_that_is_not_plainly_of_our_mode_is_refused(settings: Any, ours: bool, theirs: Any) -> None:
    settings.STRIPE_LIVE_MODE = ours
    body = written(event(livemode=(not ours) if theirs == "other" else theirs))
    assert answers_without_a_trace(lambda: deliver(body)) == (400, "wrong_livemode")


def test_in_live_mode_a_live_event_is_kept_as_such(settings: Any) -> None:
    settings.STRIPE_LIVE_MODE = True
    assert deliver(written(event(livemode=True))).status_code == 200
    assert StripeEvent.objects.get().livemode is True


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="half a document"),
        pytest.param(BODY + b"x", id="something behind the document"),
        pytest.param(b"\xef\xbb\xbf" + BODY, id="a byte order mark"),
        pytest.param(BODY.decode().encode("utf-16"), id="UTF-16"),
        pytest.param(BODY[:-2] + b"\0\n}", id="a NUL byte between two tokens"),
        pytest.param(BODY.replace(b"sub_1", b"sub\0_1"), id="a NUL byte in a text"),
        pytest.param(BODY.replace(b"cus_1", b"\xff\xfe"), id="bytes that are not UTF-8"),
        pytest.param(BODY.replace(b"cus_1", b"\xed\xa0\x80"), id="a surrogate encoded as if it were a character"),
        pytest.param(b"[" * 200_000, id="200,000 lists inside each other"),
        pytest.param(b'{"a":' * 80_000 + b"1" + b"}" * 80_000, id="80,000 objects inside each other"),
        pytest.param(b"1" * 100_000, id="a number of 100,000 digits"),
        pytest.param(BODY.replace(b"1767225600", b"9" * 5000), id="a time of 5,000 digits"),
        pytest.param(b"object=event&type=invoice.paid", id="a form"),
    ],
)
def test_a_signed_body_is_refused_if_it_is_not_json_but(body: bytes) -> None:
    assert answers_without_a_trace(lambda: deliver(body)) == (400, "not_json")


ODDITIES: list[Any] = [None, True, 7, 1e400, "", " ", "é", "\0", [], [1], {}]


def about(**subject: Any) -> dict[str, Any]:
    return event(data={"object": {"id": "sub_1"} | subject})


def each(field: str, *values: Any) -> list[Any]:
    return [pytest.param(event(**{field: value}), id=f"{field} is {value!r}"[:60]) for value in values]


@pytest.mark.parametrize(
    "document",
    [
        *(pytest.param(x, id=f"the document is {x!r}") for x in ODDITIES),
        pytest.param([event()], id="the document is a list of one event"),
        *each("object", ..., None, 7, "charge", ["event"], {}),
        *each("type", ..., None, 7, True, ["invoice.paid"], {}),
        pytest.param(event(object="v2.core.event", data=...), id="it is a thin event with one of our types"),
        *each("data", ..., None, 7, "x", [], {}, [{"object": {"id": "sub_1"}}]),
        *each("data", {"object": None}, {"object": "sub_1"}, {"object": []}, {"object": {}}, {"object": [{"id": "x"}]}),
        *(pytest.param(about(id=x), id=f"its object's id is {x!r}") for x in ODDITIES),
        pytest.param(about(id="s" * 300), id="its object's id has 300 characters"),
        *each(
            "id",
            ...,
            None,
            7,
            True,
            "",
            [],
            {},
            {"id": 7},
            "evt_\0",
            "evt_\ud800",
            "evt 1",
            "evt_1\n",
            "evt-1",
            "evt_é",
        ),
        *each("id", "e" * 256, "e" * 300),
        *each("created", ..., None, True, False, "1767225600", [], {}, 1767225600.0, float("nan"), float("inf")),
        *each("created", -1, -(10**30), 253_402_300_800, 10**30),
    ],
)
def test_a_signed_document_is_refused_if_it_is_not_an_event_because(document: Any) -> None:
    assert answers_without_a_trace(lambda: deliver(written(document))) == (400, "not_an_event")


def test_an_id_of_255_characters_is_kept_whole() -> None:
    assert deliver(written(event("e" * 255))).status_code == 200
    assert StripeEvent.objects.get().pk == "e" * 255


def test_a_strange_id_of_the_subscription_is_left_out_because_the_inbox_asks_stripe_anyway() -> None:
    body = written(event(type="invoice.paid", data={"object": {"id": "in_1", "subscription": "sub\0\ud800" * 99}}))
    assert deliver(body).status_code == 200
    assert StripeEvent.objects.get().stripe_subscription_id == ""


def test_of_a_key_that_comes_twice_the_last_one_counts_as_everywhere_in_python() -> None:
    assert deliver(BODY.replace(b'"id": "evt_1"', b'"id": "evt_first", "id": "evt_last"')).status_code == 200
    assert StripeEvent.objects.get().pk == "evt_last"


# --- Size and form of the request ------------------------------------------------------------------------------------


def padded(size: int) -> bytes:
    return BODY + b" " * (size - len(BODY))


def test_a_body_of_512_kb_is_accepted_and_one_byte_more_is_not() -> None:
    assert answers_without_a_trace(lambda: deliver(padded(LARGEST_BODY + 1))) == (413, "too_large")
    assert deliver(padded(LARGEST_BODY)).status_code == 200


def test_ten_megabytes_are_refused_unread() -> None:
    unread = BytesIO(b" " * 10_000_000)
    environ: dict[str, Any] = {"wsgi.input": unread, "CONTENT_LENGTH": "10000000"}
    assert answers_without_a_trace(lambda: deliver(b"", **environ)) == (413, "too_large")
    assert unread.tell() == 0


@pytest.mark.parametrize(
    ("length", "answer"),
    [
        pytest.param("garbage", (400, "bad_length"), id="garbage"),
        pytest.param("-1", (400, "bad_length"), id="negative"),
        pytest.param("1e3", (400, "bad_length"), id="a float"),
        pytest.param("²", (400, "bad_length"), id="a digit of another kind"),
        pytest.param("+5", (400, "bad_length"), id="a sign"),
        pytest.param("9" * 5000, (413, "too_large"), id="5,000 digits"),
        pytest.param("5", (400, "bad_signature"), id="too small"),
        pytest.param("0", (400, "bad_signature"), id="zero"),
        pytest.param("", (400, "bad_signature"), id="empty"),
    ],
)
def test_a_content_length_that_no_server_should_let_through_is_answered(length: str, answer: tuple[int, str]) -> None:
    environ: dict[str, Any] = {"wsgi.input": BytesIO(BODY), "CONTENT_LENGTH": length}
    assert answers_without_a_trace(lambda: deliver(BODY, **environ)) == answer


class Breaking(BytesIO):
    """A request that goes wrong while it is read, in the words of some server."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def read(self, size: int | None = -1, /) -> bytes:
        raise self.error


class UnlikeOSError(Exception):
    """gunicorn's for a malformed chunk or trailer derive from Exception alone."""


@pytest.mark.parametrize("error", [ConnectionResetError(), OSError(), UnlikeOSError(CARD)], ids=type)
@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_that_cannot_be_read_is_answered(error: Exception, chunked: bool) -> None:
    framing = {"HTTP_TRANSFER_ENCODING": "chunked"} if chunked else {"CONTENT_LENGTH": "7"}
    environ: dict[str, Any] = {
        "wsgi.input": Breaking(error),
        "wsgi.input_terminated": True,
        "CONTENT_LENGTH": "",
    } | framing
    assert answers_without_a_trace(lambda: deliver(BODY, **environ)) == (400, "unreadable")


def test_a_chunked_body_is_read_to_its_end() -> None:
    environ: dict[str, Any] = {
        "wsgi.input": BytesIO(BODY),
        "wsgi.input_terminated": True,
        "HTTP_TRANSFER_ENCODING": "chunked",
    }
    assert deliver(BODY, **environ, CONTENT_LENGTH="").status_code == 200
    assert rows() == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_any_other_method_is_refused_with_the_one_that_is_allowed(method: str) -> None:
    answer = CLIENT.generic(method, "/webhook/stripe", BODY, headers={"stripe-signature": signature(BODY, SECRET)})
    assert (answer.status_code, answer["Allow"], rows()) == (405, "POST", 0)


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain; charset=latin-1", "multipart/form-data", "application/json; charset=no-such", "é", ";;;=,\t"],
)
def test_the_content_type_is_nobodys_business(content_type: str) -> None:
    assert deliver(BODY, CONTENT_TYPE=content_type).status_code == 200


def test_a_csrf_token_is_not_asked_for() -> None:
    client = Client(enforce_csrf_checks=True)
    header = {"stripe-signature": signature(BODY, SECRET)}
    answer = client.post("/webhook/stripe", BODY, content_type="application/json", headers=header)
    assert answer.status_code == 200


# --- Endpoints registered through dj-stripe --------------------------------------------------------------------------


def registered(**changes: Any) -> WebhookEndpoint:
    fields = {
        "id": f"we_{uuid4().hex}", "livemode": False, "secret": "whsec_registered", "status": "enabled",
        "url": "https://billing.example/webhook/stripe/x", "enabled_events": ["*"], "api_version": "",
    }  # fmt: skip
    return WebhookEndpoint.objects.create(**(fields | changes))


def at(endpoint: UUID) -> str:
    return f"/webhook/stripe/{endpoint}"


def test_a_registered_endpoint_is_verified_with_its_own_secret() -> None:
    path = at(registered().djstripe_uuid)
    assert code(deliver(BODY, path=path)) == "bad_signature"
    assert rows() == 0
    assert told(deliver(BODY, path=path, secret="whsec_registered"))["duplicate"] is False


def test_its_secret_opens_no_other_door() -> None:
    registered()
    other = registered(secret="whsec_other")
    for path in ("/webhook/stripe", at(other.djstripe_uuid)):
        assert code(deliver(BODY, path=path, secret="whsec_registered")) == "bad_signature"
    assert rows() == 0


def test_both_doors_lead_to_the_same_row() -> None:
    path = at(registered().djstripe_uuid)
    assert told(deliver(BODY))["duplicate"] is False
    assert told(deliver(BODY, path=path, secret="whsec_registered"))["duplicate"] is True


def test_its_secret_is_read_once_a_minute_so_that_an_event_costs_one_statement() -> None:
    path = at(registered().djstripe_uuid)
    deliver(BODY, path=path, secret="whsec_registered")
    with CaptureQueriesContext(connection) as asked:
        deliver(BODY, path=path, secret="whsec_registered")
    assert len(asked) == 1


def test_a_secret_is_forgotten_after_a_minute() -> None:
    endpoint = registered()
    assert endpoints.secrets(endpoint.djstripe_uuid, now=0.0) == ["whsec_registered"]
    WebhookEndpoint.objects.update(secret="whsec_rotated")
    assert endpoints.secrets(endpoint.djstripe_uuid, now=59.9) == ["whsec_registered"]
    assert endpoints.secrets(endpoint.djstripe_uuid, now=60.0) == ["whsec_rotated"]
    WebhookEndpoint.objects.update(status="disabled")
    with pytest.raises(endpoints.UnknownEndpoint):
        endpoints.secrets(endpoint.djstripe_uuid, now=120.0)


def test_an_endpoint_registered_just_now_works_at_once() -> None:
    new = uuid4()
    assert code(deliver(BODY, path=at(new), secret="whsec_registered")) == "unknown_endpoint"
    registered(djstripe_uuid=new)
    assert deliver(BODY, path=at(new), secret="whsec_registered").status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"status": "disabled"}, id="disabled"),
        pytest.param({"livemode": True}, id="of the other mode"),
        pytest.param({"livemode": None}, id="of no known mode"),
        pytest.param({"secret": ""}, id="without a secret"),
    ],
)
def test_an_endpoint_is_unknown_if_it_is(changes: dict[str, Any]) -> None:
    path, secret = at(registered(**changes).djstripe_uuid), changes.get("secret", "whsec_registered")
    answer = deliver(BODY, path=path, secret=secret)
    assert (answer.status_code, code(answer), rows()) == (404, "unknown_endpoint", 0)


@pytest.mark.parametrize("rest", ["not-a-uuid", "00000000", "../stripe", "%00", ""])
def test_what_is_no_uuid_is_no_endpoint(rest: str) -> None:
    assert deliver(BODY, path=f"/webhook/stripe/{rest}").status_code == 404
    assert rows() == 0


# --- Nothing of it anywhere ------------------------------------------------------------------------------------------


def test_no_payload_header_or_secret_reaches_a_table_or_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("django.db.backends").setLevel(logging.DEBUG)  # an operator who looks for a slow statement
    canaries: dict[str, Any] = dict.fromkeys(
        ["HTTP_AUTHORIZATION", "HTTP_COOKIE", "HTTP_X_FORWARDED_FOR", "REMOTE_USER"], "hdr_canary"
    )
    charged = event(data={"object": {"id": "sub_1", "card": {"number": CARD}, "description": CARD}}, request=CARD)
    malformed = written(charged)[:-1]
    with CaptureQueriesContext(connection):
        statuses = [
            deliver(written(charged), **canaries).status_code,
            deliver(written(charged), **canaries).status_code,
            deliver(written(charged | {"type": "charge.succeeded"}), **canaries).status_code,
            deliver(written(charged), secret=SECRET + "x", **canaries).status_code,
            deliver(written(charged), header=f"t=1,v1={CARD}é", **canaries).status_code,
            deliver(written(charged | {"livemode": True}), **canaries).status_code,
            deliver(written(charged | {"id": CARD + "-"}), **canaries).status_code,
            deliver(malformed, **canaries).status_code,
            deliver(malformed + b"\xff", **canaries).status_code,
            deliver(written(charged) + b" " * LARGEST_BODY, **canaries).status_code,
            CLIENT.get("/webhook/stripe", **canaries).status_code,
        ]
    assert statuses == [200, 200, 200, 400, 400, 400, 400, 400, 400, 413, 405]
    signed = signature(written(charged), SECRET)[-64:]
    for canary in (CARD, "hdr_canary", SECRET, signed):
        assert where_kept(canary) == []
        assert canary not in caplog.text
    assert where_kept("evt_1") == ["stripe_events"], "the scan would not have seen it"
    assert "INSERT INTO stripe_events" in caplog.text, "the log would not have shown it"


# --- Whatever comes --------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["id", "object", "type", "created", "data", "livemode"]
SUBJECTS = st.dictionaries(st.sampled_from(["id", "object", "subscription", "parent"]), JSON)
SPOILT_EVENTS = st.builds(
    lambda changes, type: event() | {"type": type} | changes,
    st.dictionaries(st.sampled_from(FIELDS), JSON | st.fixed_dictionaries({"object": SUBJECTS}), max_size=3),
    st.sampled_from(sorted(HANDLED_TYPES)),
)
BODIES = st.binary(max_size=2000) | JSON.map(written) | SPOILT_EVENTS.map(written)


@given(body=BODIES)
@example(body=b"[" * 100_000)
@example(body=written(event("evt_\ud800", created=10**400)))
@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_whatever_is_signed_gets_one_of_three_answers(body: bytes) -> None:
    assert deliver(body).status_code in {200, 400, 413}


@given(header=st.text() | st.binary().map(lambda raw: raw.decode("latin-1")), at=st.integers())
@hypothesis_settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_an_unsigned_header_says_is_refused(header: str, at: int) -> None:
    for said in (header, f"t={at},v1={header}", f"t={header},v1={'0' * 64}", f"{header},v1={'0' * 64}"):
        assert deliver(BODY, header=said).status_code == 400
