"""Lists of the sandbox: pages, filters, expansions; and the seed that fills them."""

from tests.stripe_sandbox.client import Sandbox
from tests.stripe_sandbox_cast import Stripe


def test_seeded_customers_have_a_paid_subscription_each_and_nobody_was_told(api: Stripe, sandbox: Sandbox) -> None:
    price = api.price()["id"]
    made = sandbox.seed(25, price, quantity=2, customer_metadata={"tenant": "t-{n}"}, metadata={"n": "{n}"})
    assert api("GET", "/v1/events")["data"] == []
    page = api("GET", "/v1/subscriptions", limit=20, expand=["data.customer", "data.latest_invoice"])
    assert [s["id"] for s in page["data"]] == made["subscriptions"][:4:-1]
    assert page["has_more"] is True
    newest = page["data"][0]
    assert (newest["status"], newest["metadata"], newest["items"]["data"][0]["quantity"]) == ("active", {"n": "24"}, 2)
    assert newest["customer"]["metadata"]["tenant"] == "t-24"
    assert (newest["latest_invoice"]["status"], newest["latest_invoice"]["amount_paid"]) == ("paid", 2000)
    rest = api("GET", "/v1/subscriptions", limit=20, starting_after=page["data"][-1]["id"])
    assert ([s["id"] for s in rest["data"]], rest["has_more"]) == (made["subscriptions"][4::-1], False)
    sandbox.seed(1, price, events=True)
    assert api.event_types()[0] == "customer.subscription.created"


def test_a_cursor_holds_while_what_it_names_leaves_the_list(api: Stripe, sandbox: Sandbox) -> None:
    made = sandbox.seed(4, api.price()["id"])["subscriptions"]
    sandbox.cancel(made[2])
    after = api("GET", "/v1/subscriptions", starting_after=made[2])["data"]
    assert [s["id"] for s in after] == [made[1], made[0]]
    before = api("GET", "/v1/subscriptions", ending_before=made[2])["data"]
    assert [s["id"] for s in before] == [made[3]]
    status, error = api.refused("GET", "/v1/subscriptions", starting_after="sub_none")
    assert (status, error["code"], error["param"]) == (400, "resource_missing", "starting_after")


def test_lists_take_instants_and_ranges_of_creation(api: Stripe, sandbox: Sandbox) -> None:
    first = api.customer()
    sandbox.clock(100)
    second = api.customer()
    at = second["created"]
    for created, wanted in (
        ({"gte": at}, [second]),
        ({"gt": at}, []),
        ({"lt": at}, [first]),
        ({"lte": at, "gte": first["created"]}, [second, first]),
        (at, [second]),
    ):
        assert api("GET", "/v1/customers", created=created)["data"] == wanted, created


def test_events_are_listed_by_type_and_by_whether_they_arrived(api: Stripe, sandbox: Sandbox) -> None:
    api.subscription()
    sandbox.wait_quiet()
    sandbox.knobs(deliver=False)
    api.subscription()
    waiting = api("GET", "/v1/events", delivery_success=False)["data"]
    assert len(waiting) == len(api("GET", "/v1/events", delivery_success=True)["data"]) == 4
    types = ["invoice.paid", "customer.subscription.created"]
    found = [event["type"] for event in api("GET", "/v1/events", types=types)["data"]]
    assert found == ["invoice.paid", "customer.subscription.created"] * 2
    assert api.refused("GET", "/v1/events", types=types, type="invoice.paid")[0] == 400
