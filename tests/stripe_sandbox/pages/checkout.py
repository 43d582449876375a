"""The page to which a checkout session sends the customer."""

from collections.abc import Iterable
from html import escape

from .. import checkout_routes
from ..cards import keep_card
from ..errors import ControlError, StripeError
from ..ordering import trial_end_from
from ..periods import DAY, add_interval, next_end
from ..store import Obj
from ..world import World
from .parts import Asked, Shown, choices, day, document, every, go, link, money, notice, price_name, said

_SAID = {
    "declined": ("Your card was declined. Nothing was bought; choose another way to pay.", "bad"),
    "email": ("Please enter an e-mail address, such as anna@example.com.", "bad"),
}

# what a customer may choose: label, hint, the card that is kept for renewals
_WAYS = {
    "works": ("Card that works", "Every payment succeeds.", "ok"),
    "declined": ("Card that is declined", "Nothing is bought; this page stays open.", ""),
    "fails_later": ("Card that works today only", "Accepted now; every later payment is declined.", "declined"),
    "debit": ("Bank debit that settles later", "Complete but unpaid, until the home page says how it ended.", "ok"),
    "nothing": ("No card", "The trial needs none.", "none"),
}


def checkout_page(world: World, asked: Asked, session: Obj) -> Shown:
    if asked.method == "POST" and session["status"] == "open":
        return _pay(world, asked, session)
    return Shown(_closed(session) if session["status"] != "open" else _open(world, asked, session))


def _pay(world: World, asked: Asked, session: Obj) -> Shown:
    here, way, now = f"/checkout/{session['id']}", asked.given.get("way", ""), world.time_of(session)
    if way not in _ways(session, now=now):
        raise ControlError("choose one of the ways to pay that the page shows", status=400)
    if not session["customer"]:
        email, name = (asked.given.get(word, "").strip()[:500] for word in ("email", "name"))
        world.put(session | {"_email": email, "_name": name})  # kept, so that nobody types it twice
        session = world.need("checkout.session", session["id"])
        if not 0 < email.find("@") < len(email) - 1:
            return go(f"{here}?said=email")
    if way == "declined":
        return go(f"{here}?said=declined")
    checkout_routes.complete(world, session, now=now, settled=way != "debit")
    keep_card(world, world.need("customer", session["customer"]), _WAYS[way][2])
    return go(_success(session))


def _open(world: World, asked: Asked, session: Obj) -> str:
    now, products = world.time_of(session), world.store.all("product")
    due, rows = due_today(session, now=now), []
    for line in session["_line_items"]:
        each = f"{money(line['price']['unit_amount'], line['currency'])} / {every(line['price']['recurring'])}"
        rows.append(
            f"<tr><td>{line['quantity']} × {escape(price_name(line['price'], products))}"
            f'<br><span class="quiet">{each}</span></td>'
            f'<td class="number">{money(line["amount_total"], line["currency"])}</td></tr>'
        )
    later = "".join(f"<p>Then {text}.</p>" for text in _later(session, now=now))
    offered = _ways(session, now=now)
    ways = choices("way", ((way, *_WAYS[way][:2]) for way in offered), offered[0])
    label = (
        f"Pay {money(due, session['currency'])}" if due else "Start the trial" if _trial(session, now) else "Subscribe"
    )
    back = session["cancel_url"]
    leave = f'<p><a href="{link(back)}">Go back without paying</a></p>' if back else ""
    return document(
        "Checkout",
        f"""<main><h1>Checkout</h1><p class="about">Stripe sandbox: no money moves.</p>
{said(_SAID, asked)}<table aria-label="What is bought"><tbody>{"".join(rows)}
<tr class="sum"><th scope="row">Due today</th><td class="number">{money(due, session["currency"])}</td></tr></tbody>
</table>{_trial_words(session, now=now)}{later}
<form method="post" action="/checkout/{session["id"]}">{_who(world, session)}
<fieldset><legend>How to pay</legend>{ways}</fieldset>
<p><button class="main">{label}</button></p></form>{leave}</main>""",
        width="narrow",
    )


def _closed(session: Obj) -> str:
    if session["status"] == "complete":
        paid = session["payment_status"] != "unpaid"
        text = "Everything is bought." if paid else "The bank debit is on its way; there is nothing more to do here."
        target, label = _success(session), "Continue"
    else:
        text, target, label = "It can no longer be paid.", session["cancel_url"], "Go back"
    way = f'<p><a href="{link(target)}">{label}</a></p>' if target else ""
    words = f"This checkout is {session['status']}"
    return document(words, f"<main><h1>{escape(words)}</h1><p>{text}</p>{way}</main>", width="narrow")


def _who(world: World, session: Obj) -> str:
    if session["customer"]:
        customer = world.need("customer", session["customer"])
        known = ", ".join(filter(None, (customer.get("name"), customer.get("email")))) or customer["id"]
        return f"<p>For {escape(known)}.</p>"
    email, name = session.get("_email", session["customer_email"]) or "", session.get("_name", "")
    return f"""<div class="field"><label for="email">E-mail</label>
<input id="email" name="email" type="email" autocomplete="email" required value="{escape(email)}"></div>
<div class="field"><label for="name">Name</label>
<input id="name" name="name" autocomplete="name" value="{escape(name)}"></div>"""


def _success(session: Obj) -> str:
    return str(session["success_url"]).replace("{CHECKOUT_SESSION_ID}", session["id"])


# what it costs, and when


def due_today(session: Obj, *, now: int) -> int:
    """In minor units: nothing in a trial; with a later anchor the share of the interval until then."""
    data = session["_subscription_data"]
    anchor = data.get("billing_cycle_anchor")
    if _trial(session, now):
        return 0
    if anchor is None or anchor <= now:
        return int(session["amount_total"])
    if data.get("proration_behavior") == "none":
        return 0
    total = 0
    for line in session["_line_items"]:
        interval, count = line["price"]["recurring"]["interval"], line["price"]["recurring"]["interval_count"]
        end = next_end(anchor, now, interval, count)
        total += line["amount_total"] * (end - now) // (end - add_interval(end, interval, -count))
    return total


def _ways(session: Obj, *, now: int) -> list[str]:
    """Money that is on its way needs money; no card is for what costs nothing yet, where the session allows it."""
    if due_today(session, now=now):
        return ["works", "declined", "fails_later", "debit"]
    free = session["payment_method_collection"] == "if_required"
    return ["works", "declined", "fails_later", *(["nothing"] if free else [])]


def _trial(session: Obj, now: int) -> int | None:
    """When the trial that begins now ends. None without one, also if the end that was set has passed meanwhile."""
    try:
        return trial_end_from(session["_subscription_data"], now=now)
    except StripeError:
        return None


def _trial_words(session: Obj, *, now: int) -> str:
    ends = _trial(session, now)
    if not ends:
        return ""
    length = -(-(ends - now) // DAY)
    return notice(f"{length} {'day' if length == 1 else 'days'} free, until {day(ends)}.")


def _later(session: Obj, *, now: int) -> Iterable[str]:
    """What follows today's payment, once per rhythm."""
    totals: dict[str, int] = {}
    firsts: dict[str, int] = {}
    data = session["_subscription_data"]
    anchor = _trial(session, now) or data.get("billing_cycle_anchor")
    for line in session["_line_items"]:
        recurring = line["price"]["recurring"]
        rhythm = every(recurring)
        totals[rhythm] = totals.get(rhythm, 0) + line["amount_total"]
        end = next_end(anchor or now, now, recurring["interval"], recurring["interval_count"])
        firsts[rhythm] = _trial(session, now) or end
    for rhythm, total in totals.items():
        yield f"{money(total, session['currency'])} every {rhythm}, from {day(firsts[rhythm])}"
