"""Webhook endpoints, and the events that go to them."""

from . import accepted, shapes
from .calls import Call, route
from .errors import StripeError
from .store import Obj


@route("POST", "/v1/webhook_endpoints", accepted.ENDPOINT_CREATE)
def create(call: Call) -> Obj:
    _check_url(call.params["url"])
    endpoint = call.world.put(shapes.webhook_endpoint(call.params, now=call.now))
    return call.show(endpoint) | {"secret": endpoint["_secret"]}  # the only answer that tells it


@route("GET", "/v1/webhook_endpoints", accepted.PAGED)
def list_all(call: Call) -> Obj:
    return call.page("webhook_endpoint")


@route("GET", "/v1/webhook_endpoints/{}", accepted.PLAIN)
def retrieve(call: Call) -> Obj:
    return call.show(call.find("webhook_endpoint", call.ids[0]))


@route("POST", "/v1/webhook_endpoints/{}", accepted.ENDPOINT_UPDATE)
def update(call: Call) -> Obj:
    endpoint, given = call.find("webhook_endpoint", call.ids[0]), call.params
    if "url" in given:
        _check_url(given["url"])
    for name in ("url", "enabled_events", "description"):
        if name in given:
            endpoint[name] = given[name] or None
    if "disabled" in given:
        endpoint["status"] = "disabled" if given["disabled"] else "enabled"
    if "metadata" in given:
        endpoint["metadata"] = shapes.relabel(endpoint["metadata"], given["metadata"])
    return call.show(call.world.put(endpoint))


@route("DELETE", "/v1/webhook_endpoints/{}", accepted.NOTHING)
def delete(call: Call) -> Obj:
    endpoint = call.find("webhook_endpoint", call.ids[0])
    call.world.store.remove("webhook_endpoint", endpoint["id"])
    return {"id": endpoint["id"], "object": "webhook_endpoint", "deleted": True}


@route("GET", "/v1/events", accepted.EVENT_LIST)
def list_events(call: Call) -> Obj:
    """``delivery_success`` false: those that an endpoint has not accepted (yet)."""
    given = call.params
    kind, kinds, arrived = given.get("type"), given.get("types"), given.get("delivery_success")
    if kind and kinds:
        raise StripeError("You may only specify one of these parameters: type, types.")
    return call.page(
        "event",
        lambda event: (
            kind in (None, event["type"])
            and (kinds is None or event["type"] in kinds)
            and arrived in (None, event["pending_webhooks"] == 0)
        ),
    )


@route("GET", "/v1/events/{}", accepted.PLAIN)
def retrieve_event(call: Call) -> Obj:
    return call.show(call.find("event", call.ids[0]))


def _check_url(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise StripeError(
            "Invalid URL: An explicit scheme (such as https) must be provided.", code="url_invalid", param="url"
        )
