"""The billing portal: what a customer may change alone. Every change is one that a program could ask the API for."""

from collections.abc import Callable, Mapping
from html import escape

from ..billing import OVER, card_of, full_price, items_of, plan_change
from ..errors import ControlError
from ..store import Obj
from ..world import World
from .asking import ask
from .cards import keep_card
from .invoice import PAY_SAID, pay_invoice
from .parts import (
    Asked,
    Shown,
    button,
    choices,
    day,
    days,
    document,
    every,
    go,
    hidden,
    link,
    money,
    name_of,
    notice,
    price_name,
    said,
    status,
    table,
)

_SHOWN_INVOICES = 12

_SAID = PAY_SAID | {
    "changed": ("Your subscription is changed.", "good"),
    "planned": ("Your subscription changes at the end of its period.", "good"),
    "unplanned": ("The planned change is dropped.", "good"),
    "same": ("That is what you have already; nothing was changed.", "good"),
    "not_paid": ("Your card was declined, so nothing was changed.", "bad"),
    "ending": ("Your subscription ends with its period.", "good"),
    "ended": ("Your subscription has ended.", "good"),
    "kept": ("Your subscription goes on.", "good"),
    "resumed": ("Your subscription is resumed.", "good"),
    "card": ("Your payment method is changed.", "good"),
}

_CARDS = {
    "ok": ("Card that works", "Every payment succeeds."),
    "declined": ("Card that is declined", "It can be kept, but every payment with it fails."),
    "none": ("No card", "There is nothing to pay with."),
}


def portal_page(world: World, asked: Asked, session: Obj) -> Shown:
    customer = world.need("customer", session["customer"])
    if customer.get("deleted"):
        raise ControlError("The customer of this page has been deleted.", status=404)
    if asked.method == "POST":
        verb = _VERBS.get(asked.given.get("do", ""))
        if verb is None:
            raise ControlError("there is no such button on this page", status=400)
        return _after(session, verb(world, customer, asked.given))
    return Shown(_page(world, asked, session, customer))


def _after(session: Obj, outcome: str) -> Shown:
    """Where a flow leads when it is done, else back here, with all of it."""
    after = (session["flow"] or {}).get("after_completion") or {}
    if after.get("type") == "redirect" and _SAID[outcome][1] == "good":
        return go(after["redirect"]["return_url"])
    return go(f"/portal/{session['id']}?all=1&said={outcome}")


# the buttons; each answers with a key of _SAID


def _change(world: World, customer: Obj, given: Mapping[str, str]) -> str:
    subscription, item = _own_item(world, customer, given)
    price, quantity = given.get("price", ""), _quantity(given.get("quantity", "1"))
    if price not in {offer["id"] for offer in _offers(world, subscription, item)}:
        raise ControlError("that plan is not offered here", status=400)
    if (price, quantity) == (item["price"]["id"], item["quantity"]):
        return "same"
    if given.get("when") == "period_end":
        plan_change(world, subscription, item, price=price, quantity=quantity)
        return "planned"
    after = world.need("price", price)
    dearer = after["unit_amount"] * quantity > full_price(item)
    restarts = after["recurring"]["interval"] != item["price"]["recurring"]["interval"]
    if subscription["status"] == "active" and (dearer or restarts) and card_of(world, subscription) != "ok":
        return "not_paid"
    edit = {"id": item["id"], "price": price, "quantity": quantity}
    ask(world, "POST", _path(subscription), items=[edit], proration_behavior="always_invoice")
    _drop_plan(world, subscription, item)
    return "changed"


def _unplan(world: World, customer: Obj, given: Mapping[str, str]) -> str:
    _drop_plan(world, *_own_item(world, customer, given))
    return "unplanned"


def _end(world: World, customer: Obj, given: Mapping[str, str]) -> str:
    ask(world, "POST", _path(_own(world, customer, given)), cancel_at_period_end=True)
    return "ending"


def _end_now(world: World, customer: Obj, given: Mapping[str, str]) -> str:
    ask(world, "DELETE", _path(_own(world, customer, given)))
    return "ended"


def _keep(world: World, customer: Obj, given: Mapping[str, str]) -> str:
    ask(world, "POST", _path(_own(world, customer, given)), cancel_at_period_end=False)
    return "kept"


def _resume(world: World, customer: Obj, given: Mapping[str, str]) -> str:
    subscription = _own(world, customer, given)
    ask(world, "POST", f"{_path(subscription)}/resume")
    return "resumed" if subscription["status"] == "active" else "declined"


def _card(world: World, customer: Obj, given: Mapping[str, str]) -> str:
    if given.get("card") not in _CARDS:
        raise ControlError("choose one of the cards that the page shows", status=400)
    keep_card(world, customer, given["card"])
    return "card"


def _pay(world: World, customer: Obj, given: Mapping[str, str]) -> str:
    invoice = world.store.get("invoice", given.get("invoice", ""))
    if invoice is None or invoice["customer"] != customer["id"]:
        raise ControlError("there is no such invoice here", status=404)
    return pay_invoice(world, invoice["id"])


_VERBS: dict[str, Callable[[World, Obj, Mapping[str, str]], str]] = {
    "change": _change,
    "unplan": _unplan,
    "end": _end,
    "end_now": _end_now,
    "keep": _keep,
    "resume": _resume,
    "card": _card,
    "pay": _pay,
}


def _own(world: World, customer: Obj, given: Mapping[str, str]) -> Obj:
    """Raises ControlError (404) for what belongs to somebody else."""
    found = world.store.get("subscription", given.get("subscription", ""))
    if found is None or found["customer"] != customer["id"]:
        raise ControlError("there is no such subscription here", status=404)
    return found


def _own_item(world: World, customer: Obj, given: Mapping[str, str]) -> tuple[Obj, Obj]:
    subscription = _own(world, customer, given)
    for item in items_of(subscription):
        if item["id"] == given.get("item"):
            return subscription, item
    raise ControlError("there is no such part of the subscription", status=404)


def _path(subscription: Obj) -> str:
    return f"/v1/subscriptions/{subscription['id']}"


def _drop_plan(world: World, subscription: Obj, item: Obj) -> None:
    if subscription.get("_planned", {}).pop(item["id"], None):
        world.put(subscription)


def _quantity(word: str) -> int:
    if not word.isascii() or not word.isdigit() or not 1 <= int(word[:9]) <= 999_999:
        raise ControlError("the quantity is a whole number from 1 to 999999", status=400)
    return int(word)


def _offers(world: World, subscription: Obj, item: Obj) -> list[Obj]:
    """Prices that the item may have: those on sale in its currency, and its own. Its own product's come first."""
    elsewhere = {other["price"]["id"] for other in items_of(subscription)} - {item["price"]["id"]}
    products = world.store.all("product")
    found = [
        price
        for price in world.store.all("price").values()
        if price["type"] == "recurring"
        and price["currency"] == subscription["currency"]
        and price["id"] not in elsewhere
        and ((price["active"] and products[price["product"]]["active"]) or price["id"] == item["price"]["id"])
    ]
    return sorted(found, key=lambda price: price["product"] != item["price"]["product"])


# the page


def _page(world: World, asked: Asked, session: Obj, customer: Obj) -> str:
    here = f"/portal/{session['id']}"
    flow = None if asked.given.get("all") else session["flow"]
    own = [s for s in reversed(world.store.all("subscription").values()) if s["customer"] == customer["id"]]
    own.sort(key=lambda subscription: subscription["status"] in OVER)
    body = _flow(world, here, flow, customer, own) if flow else _everything(world, here, customer, own)
    leave = f'<p><a href="{link(session["return_url"])}">Return</a></p>' if session["return_url"] else ""
    everything = f'<p><a href="{here}?all=1">All of your billing</a></p>' if flow else ""
    return document(
        "Billing",
        f"""<main><h1>Billing</h1><p class="about">For {name_of(customer)}. Stripe sandbox: no money moves.</p>{leave}
{said(_SAID, asked)}{body}{everything}</main>""",
        width="medium",
    )


def _everything(world: World, here: str, customer: Obj, own: list[Obj]) -> str:
    shown = "".join(_subscription(world, here, subscription) for subscription in own)
    none = '<p class="empty">You have no subscription.</p>'
    return f"""<h2>Subscriptions</h2>{shown or none}
<h2 id="card">Payment method</h2>{_card_form(world, here, customer)}
<h2>Invoices</h2>{_invoices(world, here, customer)}"""


def _flow(world: World, here: str, flow: Obj, customer: Obj, own: list[Obj]) -> str:
    """Only the section that the link was made for."""
    kind = flow["type"]
    if kind == "payment_method_update":
        return f"<h2>Payment method</h2>{_card_form(world, here, customer)}"
    wanted = (flow.get(kind) or {}).get("subscription")
    subscription = next((s for s in own if s["id"] == wanted), None)
    if subscription is None:
        return notice("The subscription that this link was made for is not here.", "bad")
    head = _head(world, subscription)
    if subscription["status"] in OVER:
        return f'<section class="card">{head}</section>'
    match kind:
        case "subscription_cancel":
            form = _end_form(here, subscription)
            return f'<h2>Cancel your subscription</h2><section class="card">{head}{form}</section>'
        case "subscription_update_confirm":
            form = _confirm_form(world, here, subscription, flow[kind])
            return f'<h2>Confirm your change</h2><section class="card">{head}{form}</section>'
        case _:
            forms = _change_forms(world, here, subscription)
            return f'<h2>Change your subscription</h2><section class="card">{head}{forms}</section>'


def _subscription(world: World, here: str, subscription: Obj) -> str:
    head = _head(world, subscription)
    if subscription["status"] in OVER:
        return f'<section class="card">{head}</section>'
    resume = ""
    if subscription["status"] == "paused":
        resume = f"<p>{button(here, 'Resume', do='resume', subscription=subscription['id'])}</p>"
    return f"""<section class="card">{head}{resume}
<details><summary>Change plan or quantity</summary>{_change_forms(world, here, subscription)}</details>
<details{" open" if subscription["cancel_at"] else ""}><summary>Cancel</summary>
{_end_form(here, subscription)}</details></section>"""


def _head(world: World, subscription: Obj) -> str:
    products, lines = world.store.all("product"), []
    for item in items_of(subscription):
        price = item["price"]
        each = f"{money(price['unit_amount'], price['currency'])} / {every(price['recurring'])}"
        name = escape(price_name(price, products))
        period = days(item["current_period_start"], item["current_period_end"])
        lines.append(f'<h3>{item["quantity"]} × {name}</h3><p class="quiet">{each}; this period: {period}</p>')
        planned = subscription.get("_planned", {}).get(item["id"])
        if planned and subscription["status"] not in OVER:
            to = escape(price_name(world.need("price", planned["price"]), products))
            lines.append(f"<p>From {day(item['current_period_end'])}: {planned['quantity']} × {to}.</p>")
    words = [status(subscription["status"])]
    if subscription["status"] == "trialing":
        words.append(f"the trial ends on {day(subscription['trial_end'])}")
    if subscription["cancel_at"] and subscription["status"] not in OVER:
        words.append(f"<strong>ends on {day(subscription['cancel_at'])}</strong>")
    return f"{''.join(lines)}<p>{', '.join(words)}</p>"


def _change_forms(world: World, here: str, subscription: Obj) -> str:
    if subscription["status"] == "incomplete":
        return "<p>It can be changed when its first payment is there.</p>"
    return "".join(_change_form(world, here, subscription, item) for item in items_of(subscription))


def _change_form(world: World, here: str, subscription: Obj, item: Obj) -> str:
    products, groups = world.store.all("product"), dict[str, str]()
    planned = subscription.get("_planned", {}).get(item["id"])
    for price in _offers(world, subscription, item):
        each = f"{money(price['unit_amount'], price['currency'])} / {every(price['recurring'])}"
        chosen = " selected" if price["id"] == item["price"]["id"] else ""
        option = f'<option value="{price["id"]}"{chosen}>{escape(price_name(price, products))}: {each}</option>'
        groups[price["product"]] = groups.get(price["product"], "") + option
    options = "".join(
        f'<optgroup label="{escape(products[product]["name"])}">{inner}</optgroup>' for product, inner in groups.items()
    )
    when = (
        ("now", "Now", "What it costs more for the rest of the period is charged at once."),
        ("period_end", "At the end of the period", f"From {day(item['current_period_end'])}; nothing is charged now."),
    )
    about = {"do": "change", "subscription": subscription["id"], "item": item["id"]}
    drop = f"<p>{button(here, 'Drop the planned change', **(about | {'do': 'unplan'}))}</p>" if planned else ""
    return f"""<form method="post" action="{here}">{hidden(about)}
<div class="field"><label for="price-{item["id"]}">Plan</label>
<select id="price-{item["id"]}" name="price">{options}</select></div>
<div class="field"><label for="quantity-{item["id"]}">Quantity</label><input id="quantity-{item["id"]}" name="quantity"
type="number" min="1" max="999999" required value="{item["quantity"]}"></div>
<fieldset><legend>When</legend>{choices("when", when, "now", of=item["id"])}</fieldset>
<button>Change</button></form>{drop}"""


def _confirm_form(world: World, here: str, subscription: Obj, asked: Obj) -> str:
    """A change that a program has put together, and that only has to be confirmed."""
    wanted, item = (asked.get("items") or [{}])[0], items_of(subscription)[0]
    item = next((i for i in items_of(subscription) if i["id"] == wanted.get("id")), item)
    price = world.store.get("price", wanted.get("price") or item["price"]["id"]) or item["price"]
    quantity = str(wanted.get("quantity") or item["quantity"])
    name = escape(price_name(price, world.store.all("product")))
    each = f"{money(price['unit_amount'], price['currency'])} / {every(price['recurring'])}"
    about = {"do": "change", "subscription": subscription["id"], "item": item["id"]}
    fields = hidden(about | {"price": price["id"], "quantity": quantity, "when": "now"})
    return f"""<p>Changes at once to <strong>{escape(quantity)} × {name}</strong>, {each}.</p>
<form method="post" action="{here}">{fields}<button class="main">Confirm</button></form>"""


def _end_form(here: str, subscription: Obj) -> str:
    about = {"subscription": subscription["id"]}
    now = button(here, "Cancel now", css="danger", do="end_now", **about)
    if subscription["cancel_at"]:
        keep = button(here, "Keep the subscription", do="keep", **about)
        return f"<p>It ends on {day(subscription['cancel_at'])}.</p><p>{keep}{now}</p>"
    end = max(item["current_period_end"] for item in items_of(subscription))
    later = button(here, f"Cancel at the end of the period, {day(end)}", do="end", **about)
    return f"<p>{later}{now}</p>"


def _card_form(world: World, here: str, customer: Obj) -> str:
    chosen = card_of(world, {"customer": customer["id"], "default_payment_method": None})
    cards = choices("card", ((card, *words) for card, words in _CARDS.items()), chosen)
    return f"""<form method="post" action="{here}">{hidden({"do": "card"})}
<fieldset><legend>Pay with</legend>{cards}</fieldset><button>Update</button></form>"""


def _invoices(world: World, here: str, customer: Obj) -> str:
    own = [i for i in reversed(world.store.all("invoice").values()) if i["customer"] == customer["id"]]
    own.sort(key=lambda invoice: invoice["status"] != "open")
    rows = []
    for invoice in own[:_SHOWN_INVOICES]:
        number = escape(invoice["number"])
        pay = button(here, "Pay", about=invoice["number"], do="pay", invoice=invoice["id"])
        rows.append(
            (
                f'<a href="/invoice/{invoice["id"]}">{number}</a>',
                day(invoice["created"]),
                money(invoice["total"], invoice["currency"]),
                status(invoice["status"]),
                pay if invoice["status"] == "open" else "",
            )
        )
    heads = ("Invoice", "Date", "Total", "Status", "")
    return table(heads, rows, caption="Invoices", empty="No invoices yet.")
