"""From what is kept to what is answered: private keys off, references expanded, the old shape or an override on top."""

import copy
from typing import Any

from .errors import StripeError
from .generations import downgraded, is_old
from .ids import ACCOUNT_ID
from .invoices import payments_of
from .shapes import account, list_of, payment_method
from .store import Obj
from .world import World, outer, public

# fields that hold the id of another object; the kind of the other, by the field's name
_REFERENCES = {
    "subscription": "subscription",
    "schedule": "subscription_schedule",
    "released_subscription": "subscription",
    "customer": "customer",
    "invoice": "invoice",
    "latest_invoice": "invoice",
    "product": "product",
    "default_price": "price",
    "price": "price",
    "payment_intent": "payment_intent",
    "charge": "charge",
    "test_clock": "test_helpers.test_clock",
    "latest_charge": "charge",
    "default_payment_method": "payment_method",
    "payment_method": "payment_method",
    "on_behalf_of": "account",
    "configuration": "billing_portal.configuration",
}
_NEVER = {("subscription_item", "subscription"), ("line_item", "invoice"), ("billing_portal.session", "customer")}
_DEPTH = 4


def render(world: World, obj: Obj, *, expand: list[str] | None = None, version: str | None = None) -> Obj:
    """Raises StripeError for an expansion that Stripe does not offer."""
    shown = public(obj)
    override = world.store.get("override", str(obj.get("id")))
    for path in expand or []:
        steps = path.split(".")
        if len(steps) - steps.count("data") > _DEPTH:
            raise StripeError("You cannot expand more than 4 levels of a property", param="expand")
        _expand(world, shown, steps, path)
    if is_old(version):
        shown = downgraded(shown)
    return overridden(shown, override["value"]) if override else shown


def render_list(
    world: World, objects: list[Obj], url: str, *, has_more: bool, expand: list[str] | None, version: str | None
) -> Obj:
    inner = []
    for path in expand or []:
        if not path.startswith("data."):
            hint = f"You may want to try expanding 'data.{path}' instead."
            raise StripeError(f"This property cannot be expanded ({path}). {hint}", param="expand")
        inner.append(path.removeprefix("data."))
    plain = not is_old(version) and not any("." in path for path in inner) and not world.store.all("override")
    if plain:  # what is inside stays as it is, so it need not be copied
        shown = [_expanded(world, outer(obj), inner) for obj in objects]
    else:
        shown = [render(world, obj, expand=inner, version=version) for obj in objects]
    return list_of(shown, url, has_more=has_more)


def _expanded(world: World, shown: Obj, expand: list[str]) -> Obj:
    for path in expand:
        _expand(world, shown, [path], path)
    return shown


def overridden(shown: Obj, value: Obj) -> Obj:
    """What a test wants to see instead: groups merge, everything else (null too) replaces.

    ``$remove`` is a list of keys to leave out, ``$generation`` "2024" the old shape.
    """
    changes = copy.deepcopy(value)
    if str(changes.pop("$generation", "")) == "2024":
        shown = downgraded(shown)
    return _merged(shown, changes)


def _merged(shown: Obj, changes: Obj) -> Obj:
    for key in changes.pop("$remove", []):
        shown.pop(key, None)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(shown.get(key), dict)
        shown[key] = _merged(shown[key], value) if both else value
    return shown


def _expand(world: World, place: Any, steps: list[str], path: str) -> None:
    if isinstance(place, list):
        for inner in place:
            _expand(world, inner, steps, path)
        return
    if not isinstance(place, dict):
        return
    name, rest = steps[0], steps[1:]
    kind = place.get("object", "")
    if name not in place:
        included = _include(world, kind, name, place)
        if included is None:
            if (kind, name) in _INCLUDABLE or kind == "":
                return
            raise StripeError(f"This property cannot be expanded ({path}).", param="expand")
        place[name] = included
    value = place[name]
    if isinstance(value, str):
        if name not in _REFERENCES or (kind, name) in _NEVER:
            raise StripeError(f"This property cannot be expanded ({path}).", param="expand")
        place[name] = value = _find(world, _REFERENCES[name], value, place)
        if rest and isinstance(value, dict):
            place[name] = value = public(value)
    elif not rest and value is not None and name not in _REFERENCES and (kind, name) not in _INCLUDABLE:
        raise StripeError(f"This property cannot be expanded ({path}).", param="expand")
    if rest:
        _expand(world, value, rest, path)


_INCLUDABLE = {
    ("invoice", "payments"),
    ("invoice", "confirmation_secret"),
    ("customer", "subscriptions"),
    ("customer", "sources"),
    ("customer", "tax_ids"),
    ("checkout.session", "line_items"),
}


def _include(world: World, kind: str, name: str, place: Obj) -> Obj | None:
    """Lists that an object has but shows only on request."""
    match kind, name:
        case "invoice", "payments":
            payments = [public(payment) for payment in payments_of(world, place["id"])]
            return list_of(payments, f"/v1/invoice_payments?invoice={place['id']}")
        case "invoice", "confirmation_secret":
            for payment in payments_of(world, place["id"]):
                intent = world.need("payment_intent", payment["payment"]["payment_intent"])
                return {"client_secret": intent["client_secret"], "type": "payment_intent"}
            return None
        case "customer", "subscriptions":
            live = [
                public(subscription)
                for subscription in world.store.all("subscription").values()
                if subscription["customer"] == place["id"] and subscription["status"] != "canceled"
            ]
            return list_of(live[::-1], f"/v1/customers/{place['id']}/subscriptions")
        case "customer", "sources" | "tax_ids":
            return list_of([], f"/v1/customers/{place['id']}/{name}")
        case "checkout.session", "line_items":
            kept = world.need("checkout.session", place["id"])
            return list_of(copy.deepcopy(kept["_line_items"]), f"/v1/checkout/sessions/{place['id']}/line_items")
    return None


def _find(world: World, kind: str, object_id: str, place: Obj) -> Obj | str:
    if kind == "account" or object_id == ACCOUNT_ID:
        return account()
    if kind == "payment_method":
        return payment_method(object_id, place.get("customer") or place.get("id"))
    found = world.store.get(kind, object_id)
    return outer(found) if found else object_id
