"""Account, customers, products, prices."""

from . import accepted, shapes
from .billing import OVER, cancel
from .calls import Call, route
from .errors import StripeError, missing_param, no_such
from .store import Obj


@route("GET", "/v1/account", accepted.PLAIN)
def account(call: Call) -> Obj:
    return shapes.account()


# customers


@route("POST", "/v1/customers", accepted.CUSTOMER_CREATE)
def create_customer(call: Call) -> Obj:
    if "test_clock" in call.params:
        clock = call.refer("test_helpers.test_clock", call.params["test_clock"], param="test_clock")
        call.now = clock["frozen_time"]
    return call.show(call.world.put(shapes.customer(call.params, now=call.now)))


@route("GET", "/v1/customers", accepted.CUSTOMER_LIST)
def list_customers(call: Call) -> Obj:
    email, clock = call.params.get("email"), call.params.get("test_clock")

    def wanted(customer: Obj) -> bool:
        live = not customer.get("deleted")
        return live and email in (None, customer["email"]) and customer["test_clock"] == clock

    return call.page("customer", wanted)


@route("GET", "/v1/customers/{}", accepted.PLAIN)
def retrieve_customer(call: Call) -> Obj:
    found = call.world.store.get("customer", call.ids[0])
    if found is None:
        raise no_such("customer", call.ids[0])
    return call.show(found)  # a deleted one is answered too, as {"deleted": true}


@route("POST", "/v1/customers/{}", accepted.CUSTOMER_UPDATE)
def update_customer(call: Call) -> Obj:
    customer, given = call.find("customer", call.ids[0]), call.params
    customer |= {
        name: given[name] or None
        for name in ("description", "email", "name", "phone", "source")
        if name in given and name != "source"
    }
    customer |= {name: given[name] for name in ("balance", "preferred_locales") if name in given}
    if "address" in given:
        customer["address"] = shapes.address(given["address"])
    if "source" in given:
        customer["default_source"] = given["source"]
    if "tax_exempt" in given:
        customer["tax_exempt"] = given["tax_exempt"] or "none"
    if "metadata" in given:
        customer["metadata"] = shapes.relabel(customer["metadata"], given["metadata"])
    settings = given.get("invoice_settings", {})
    customer["invoice_settings"] |= {name: value or None for name, value in settings.items()}
    return call.show(call.world.put(customer))


@route("DELETE", "/v1/customers/{}", accepted.NOTHING)
def delete_customer(call: Call) -> Obj:
    customer = call.find("customer", call.ids[0])
    for subscription in call.world.store.all("subscription").values():
        if subscription["customer"] == customer["id"] and subscription["status"] not in OVER:
            cancel(call.world, subscription, now=call.now)
    return call.world.put({"id": customer["id"], "object": "customer", "deleted": True})


# products


@route("POST", "/v1/products", accepted.PRODUCT_CREATE)
def create_product(call: Call) -> Obj:
    given = call.params
    if given.get("id") and call.world.store.get("product", given["id"]):
        raise StripeError(f"Product already exists: {given['id']}", code="resource_already_exists", param="id")
    product = call.world.put(shapes.product(given, now=call.now))
    if "default_price_data" in given:
        price = shapes.price(given["default_price_data"], product_id=product["id"], now=call.now)
        product["default_price"] = call.world.put(price)["id"]
    return call.show(call.world.put(product))


@route("GET", "/v1/products", accepted.PRODUCT_LIST)
def list_products(call: Call) -> Obj:
    active, ids = call.params.get("active"), call.params.get("ids")
    return call.page("product", lambda p: active in (None, p["active"]) and (ids is None or p["id"] in ids))


@route("GET", "/v1/products/{}", accepted.PLAIN)
def retrieve_product(call: Call) -> Obj:
    return call.show(call.find("product", call.ids[0]))


@route("POST", "/v1/products/{}", accepted.PRODUCT_UPDATE)
def update_product(call: Call) -> Obj:
    product, given = call.find("product", call.ids[0]), call.params
    if given.get("default_price"):
        call.refer("price", given["default_price"], param="default_price")
    for name in ("active", "default_price", "description", "name", "statement_descriptor", "unit_label", "url"):
        if name in given:
            product[name] = None if given[name] == "" else given[name]
    for name in ("images", "marketing_features"):
        if name in given:
            product[name] = given[name] or []
    if "metadata" in given:
        product["metadata"] = shapes.relabel(product["metadata"], given["metadata"])
    return call.show(call.world.put(product | {"updated": call.now}))


# prices


@route("POST", "/v1/prices", accepted.PRICE_CREATE)
def create_price(call: Call) -> Obj:
    given = call.params
    if "unit_amount" not in given:
        if not given.get("unit_amount_decimal", "").isdigit():
            raise missing_param("unit_amount")
        given["unit_amount"] = int(given["unit_amount_decimal"])
    _claim_lookup_key(call, given)
    if "product" in given:
        product = call.refer("product", given["product"])
    elif "product_data" in given:
        product = call.world.put(shapes.product(given["product_data"], now=call.now))
    else:
        raise missing_param("product")
    return call.show(call.world.put(shapes.price(given, product_id=product["id"], now=call.now)))


@route("GET", "/v1/prices", accepted.PRICE_LIST)
def list_prices(call: Call) -> Obj:
    given = call.params
    keys, interval = given.get("lookup_keys"), given.get("recurring", {}).get("interval")
    return call.page(
        "price",
        lambda price: (
            (keys is None or price["lookup_key"] in keys)
            and (interval is None or (price["recurring"] or {}).get("interval") == interval)
            and all(given.get(name) in (None, price[name]) for name in ("active", "currency", "product", "type"))
        ),
    )


@route("GET", "/v1/prices/{}", accepted.PLAIN)
def retrieve_price(call: Call) -> Obj:
    return call.show(call.find("price", call.ids[0]))


@route("POST", "/v1/prices/{}", accepted.PRICE_UPDATE)
def update_price(call: Call) -> Obj:
    price, given = call.find("price", call.ids[0]), call.params
    _claim_lookup_key(call, given, owner=price["id"])
    for name in ("active", "lookup_key", "nickname", "tax_behavior"):
        if name in given:
            price[name] = None if given[name] == "" else given[name]
    if "metadata" in given:
        price["metadata"] = shapes.relabel(price["metadata"], given["metadata"])
    return call.show(call.world.put(price))


def _claim_lookup_key(call: Call, given: Obj, *, owner: str = "") -> None:
    """A lookup key names one active price; ``transfer_lookup_key`` takes it from its present holder."""
    key = given.get("lookup_key")
    for price in call.world.store.all("price").values() if key else ():
        if price["lookup_key"] == key and price["id"] != owner:
            if not given.get("transfer_lookup_key"):
                message = f"A price (`{price['id']}`) already uses that lookup key."
                raise StripeError(message, param="lookup_key")
            call.world.put(price | {"lookup_key": None})
