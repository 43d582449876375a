"""The billing portal: what a customer may see and change alone."""

from collections.abc import Mapping
from html import escape

from ..billing import OVER
from ..cards import card_of
from ..errors import ControlError
from ..items import items_of
from ..store import Obj
from ..world import World
from .asking import ask
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
from .portal_verbs import CARDS, SAID, VERBS, offers, planned_for, wanted_change

_SHOWN_INVOICES = 12


def portal_page(world: World, asked: Asked, session: Obj) -> Shown:
    customer = world.need("customer", session["customer"])
    if customer.get("deleted"):
        raise ControlError("The customer of this page has been deleted.", status=404)
    if asked.method == "POST":
        verb = VERBS.get(asked.given.get("do", ""))
        if verb is None:
            raise ControlError("there is no such button on this page", status=400)
        return _after(session, verb(world, customer, asked.given))
    return Shown(_page(world, asked, session, customer))


def _after(session: Obj, outcome: str) -> Shown:
    """Where a flow leads when it is done, else back here, with all of it."""
    after = (session["flow"] or {}).get("after_completion") or {}
    if after.get("type") == "redirect" and SAID[outcome][1] == "good":
        return go(after["redirect"]["return_url"])
    return go(f"/portal/{session['id']}?all=1&said={outcome}")


def _page(world: World, asked: Asked, session: Obj, customer: Obj) -> str:
    here = f"/portal/{session['id']}"
    flow = None if asked.given.get("all") else session["flow"]
    own = [s for s in reversed(world.store.all("subscription").values()) if s["customer"] == customer["id"]]
    own.sort(key=lambda subscription: subscription["status"] in OVER)
    if "item" in asked.given:
        body = _review(world, here, customer, asked.given)
    else:
        body = _flow(world, here, flow, customer, own) if flow else _everything(world, here, customer, own)
    leave = f'<p><a href="{link(session["return_url"])}">Return</a></p>' if session["return_url"] else ""
    part = flow or "item" in asked.given
    everything = f'<p><a href="{here}?all=1">All of your billing</a></p>' if part else ""
    return document(
        "Billing",
        f"""<main><h1>Billing</h1><p class="about">For {name_of(customer)}. Stripe sandbox: no money moves.</p>{leave}
{said(SAID, asked)}{body}{everything}</main>""",
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
            return _review(world, here, customer, _asked_for(subscription, flow[kind]))
        case _:
            forms = _change_forms(world, here, subscription)
            return f'<h2>Change your subscription</h2><section class="card">{head}{forms}</section>'


def _asked_for(subscription: Obj, flow: Obj) -> dict[str, str]:
    """The change that a program has put together, as the form would have it."""
    wanted = flow["items"][0]
    item = next((item for item in items_of(subscription) if item["id"] == wanted["id"]), items_of(subscription)[0])
    fields = {"subscription": subscription["id"], "item": item["id"]}
    price, quantity = wanted["price"] or item["price"]["id"], wanted["quantity"] or item["quantity"]
    return fields | {"price": price, "quantity": str(quantity), "when": "now"}


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
        planned = planned_for(world, subscription).get(item["id"])
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
    planned = planned_for(world, subscription).get(item["id"])
    for price in offers(world, subscription, item):
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
    about = {"subscription": subscription["id"], "item": item["id"]}
    drop = f"<p>{button(here, 'Drop the planned change', do='unplan', **about)}</p>" if planned else ""
    return f"""<form method="get" action="{here}">{hidden(about)}
<div class="field"><label for="price-{item["id"]}">Plan</label>
<select id="price-{item["id"]}" name="price">{options}</select></div>
<div class="field"><label for="quantity-{item["id"]}">Quantity</label><input id="quantity-{item["id"]}" name="quantity"
type="number" min="1" max="999999" required value="{item["quantity"]}"></div>
<fieldset><legend>When</legend>{choices("when", when, "now", of=item["id"])}</fieldset>
<button>Continue</button></form>{drop}"""


def _review(world: World, here: str, customer: Obj, given: Mapping[str, str]) -> str:
    """What a change comes to, as the API previews it, and the button that confirms it."""
    wanted = wanted_change(world, customer, given)
    if wanted.is_none:
        return notice(SAID["same"][0])
    item, price = wanted.item, wanted.price
    name, now = escape(price_name(price, world.store.all("product"))), world.time_of(wanted.subscription)
    each = f"{money(price['unit_amount'], price['currency'])} / {every(price['recurring'])}"
    if wanted.at_period_end:
        cost = f"<p>Nothing is due today. It changes on {day(item['current_period_end'])}.</p>"
    else:
        about = {"subscription": wanted.subscription["id"], "subscription_details": wanted.edit}
        paper = ask(world, "POST", "/v1/invoices/create_preview", **about)
        cost = _due_today(paper) if paper["created"] <= now else "<p>Nothing is due today. It changes at once.</p>"
    fields = {"do": "change", "subscription": wanted.subscription["id"], "item": item["id"], "price": price["id"]}
    fields |= {"quantity": str(wanted.quantity), "when": "period_end" if wanted.at_period_end else "now"}
    return f"""<h2>Confirm your change</h2><section class="card">
<p class="quiet">From {item["quantity"]} × {escape(price_name(item["price"], world.store.all("product")))}</p>
<h3>To {wanted.quantity} × {name}</h3><p class="quiet">{each}</p>{cost}
<form method="post" action="{here}">{hidden(fields)}<p><button class="main">Confirm</button></p></form></section>"""


def _due_today(paper: Obj) -> str:
    rows = "".join(
        f"<tr><td>{escape(line['description'])}</td>"
        f'<td class="number">{money(line["amount"], line["currency"])}</td></tr>'
        for line in paper["lines"]["data"]
    )
    credit = "<p>The rest is credited to the next invoices.</p>" if paper["total"] < 0 else ""
    return f"""<table aria-label="What it costs"><tbody>{rows}<tr class="sum"><th scope="row">Due today</th>
<td class="number">{money(paper["amount_due"], paper["currency"])}</td></tr></tbody></table>{credit}"""


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
    cards = choices("card", ((card, *words) for card, words in CARDS.items()), chosen)
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
