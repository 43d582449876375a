"""The first page: everything there is, with its verbs; the deliveries, the knobs and the time."""

from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape

from ..billing import OVER
from ..clock_routes import KIND as CLOCK
from ..errors import ControlError
from ..invoices import unpaid_of
from ..items import items_of
from ..payments import CLOSED, charge_of
from ..store import Obj
from ..world import World
from .home_verbs import INTERVALS, SAID, VERBS
from .knob_board import knob_board
from .parts import (
    TONES,
    Asked,
    Shown,
    button,
    days,
    document,
    go,
    identity,
    moment,
    money,
    name_of,
    price_name,
    said,
    status,
    table,
)

_LATEST = 30  # of each kind are shown
_LAST_DELIVERIES = 10  # are shown at once, the others when asked for
_SECTIONS = {
    "checkouts": "Checkouts",
    "subscriptions": "Subscriptions",
    "invoices": "Invoices",
    "time": "Time",
    "knobs": "Knobs",
    "deliveries": "Webhook deliveries",
    "over": "Start over",
}


def home_page(world: World, asked: Asked) -> Shown:
    if asked.method == "POST":
        verb = VERBS.get(asked.given.get("do", ""))
        if verb is None:
            raise ControlError("there is no such button on this page", status=400)
        return go(verb(world, asked.given))
    with world.lock:
        return Shown(_home(world, asked))


def _home(world: World, asked: Asked) -> str:
    target = f"Events go to <code>{escape(world.config.webhook_url)}</code>." if world.config.webhook_url else ""
    nav = "".join(f'<li><a href="#{section}">{title}</a></li>' for section, title in _SECTIONS.items())
    shown = {
        "checkouts": _checkouts(world),
        "subscriptions": _subscriptions(world),
        "invoices": _invoices(world),
        "deliveries": _deliveries(world),
        "knobs": knob_board(world.knobs),
        "time": _time(world),
        "over": f"""<details><summary>Forget everything</summary><p>Every customer, price, subscription, event and knob
goes, and the time is the real one again.</p>
{button("/_sandbox/reset", "Yes, forget everything", css="danger")}</details>""",
    }
    body = "".join(
        f'<section aria-labelledby="{section}"><h2 id="{section}">{title}</h2>{shown[section]}</section>'
        for section, title in _SECTIONS.items()
    )
    return document(
        "Home",
        f"""<header><h1>Stripe sandbox</h1><p class="about">A stand-in for Stripe; no money moves. {target}
<br>It is {moment(world.now())} UTC here{_ahead(world)}.</p><nav aria-label="Sections"><ul>{nav}</ul></nav></header>
<main>{said(SAID, asked)}{body}</main>""",
    )


def _ahead(world: World) -> str:
    offset = world.clock_offset
    if not offset:
        return ""
    length = f"{abs(offset) / 86_400:.1f} days" if abs(offset) >= 86_400 else f"{abs(offset)} s"
    return f", {length} {'ahead of' if offset > 0 else 'behind'} the real time"


def _checkouts(world: World) -> str:
    open_, awaited = [], []
    for session in reversed(world.store.all("checkout.session").values()):
        total = money(session["amount_total"], session["currency"])
        about = session["id"][-6:]
        who = _who(world, session["customer"]) or escape(str(session["customer_email"] or "somebody new"))
        if session["status"] == "open":
            page = f'<a href="/checkout/{session["id"]}">Pay {total}</a>'
            expire = button("/", "Expire", about=about, do="expire", session=session["id"])
            open_.append((page, who, _things(session), moment(session["expires_at"]), expire))
        elif session["status"] == "complete" and session["payment_status"] == "unpaid" and not _bounced(world, session):
            base = f"/_sandbox/checkout/{session['id']}/arrive"
            verbs = button(base, "It arrives", about=about, back="/#checkouts", succeeded="true")
            verbs += button(base, "It fails", about=about, back="/#checkouts", succeeded="false")
            awaited.append((total, who, _things(session), verbs))
    shown = table(
        ("Total", "Customer", "What", "Expires", ""), open_[:_LATEST], caption="Open", empty="No checkout is open."
    )
    if awaited:
        heads = ("Total", "Customer", "What", "The money")
        shown += "<h3>Bank debits on their way</h3>" + table(heads, awaited[:_LATEST], caption="On their way", empty="")
    return shown + _more(len(open_))


def _bounced(world: World, session: Obj) -> bool:
    """The debit of a completed checkout has failed already."""
    invoice = world.store.get("invoice", session["invoice"] or "")
    return bool(invoice and invoice["attempt_count"])


def _subscriptions(world: World) -> str:
    products, rows = world.store.all("product"), []
    for subscription in _newest(world.store.all("subscription")):
        items = "<br>".join(
            f"{item['quantity']} × {escape(price_name(item['price'], products))}, "
            f"{days(item['current_period_start'], item['current_period_end'])}"
            for item in items_of(subscription)
        )
        ends = f"<br>ends {moment(subscription['cancel_at'])}" if subscription["cancel_at"] else ""
        rows.append(
            (
                f"{_who(world, subscription['customer'])}<br>{identity(subscription['id'])}",
                items,
                status(subscription["status"]) + ends,
                _verbs(world, subscription),
            )
        )
    heads = ("Customer", "Items and period", "Status", "What happens")
    shown = table(heads, rows, caption="Subscriptions", empty="No subscriptions yet.")
    return shown + _more(len(world.store.all("subscription")))


def _verbs(world: World, subscription: Obj) -> str:
    about = subscription["id"][-6:]
    portal = button("/", "Portal", about=about, do="portal", customer=subscription["customer"])
    if subscription["status"] in OVER:
        return portal
    fresh = subscription["status"] == "active" and not unpaid_of(world, subscription["id"])
    base = f"/_sandbox/subscriptions/{subscription['id']}"

    def verb(name: str, label: str, **given: str) -> str:
        return button(f"{base}/{name}", label, about=about, back="/#subscriptions", **given)

    shown = verb("pay", "Renew, paid" if fresh else "Pay") + verb("fail", "Payment fails")
    shown += verb("unpaid", "Unpaid") + verb("pause", "Pause")
    if subscription["cancel_at"]:
        shown += verb("keep", "Keep")
    else:
        shown += verb("cancel", "Cancel at period end", at_period_end="true")
    return shown + verb("cancel", "Cancel now") + portal


def _invoices(world: World) -> str:
    everything = list(reversed(world.store.all("invoice").values()))
    rows = []
    for invoice in sorted(everything, key=lambda invoice: invoice["status"] != "open")[:_LATEST]:
        again = invoice["next_payment_attempt"]
        waits = f"<br>tried again {moment(again)}" if again and invoice["status"] == "open" else ""
        rows.append(
            (
                f'<a href="/invoice/{invoice["id"]}">{escape(invoice["number"])}</a><br>{moment(invoice["created"])}',
                _who(world, invoice["customer"]),
                money(invoice["total"], invoice["currency"]),
                status(invoice["status"]) + waits + _money_back(world, invoice),
                _invoice_verbs(world, invoice),
            )
        )
    heads = ("Invoice", "Customer", "Total", "Status", "What happens")
    return table(heads, rows, caption="Invoices", empty="No invoices yet.") + _more(len(everything))


def _charge(world: World, invoice: Obj) -> Obj | None:
    try:
        return charge_of(world, invoice) if invoice["status"] == "paid" else None
    except ControlError:  # nothing was due, or it was paid past Stripe
        return None


def _money_back(world: World, invoice: Obj) -> str:
    """What was given back of it, and whether the bank wants it back."""
    charge, words = _charge(world, invoice), []
    if charge and charge["amount_refunded"]:
        words.append(f"refunded {money(charge['amount_refunded'], charge['currency'])}")
    if charge and charge["disputed"]:
        words += [f"dispute: {quarrel['status'].replace('_', ' ')}" for quarrel in _disputes(world, charge)]
    return "".join(f"<br>{word}" for word in words)


def _disputes(world: World, charge: Obj) -> list[Obj]:
    return [quarrel for quarrel in world.store.all("dispute").values() if quarrel["charge"] == charge["id"]]


def _invoice_verbs(world: World, invoice: Obj) -> str:
    about, back = invoice["number"], "/#invoices"
    if invoice["status"] == "open":
        return button("/", "Pay", about=about, do="pay", invoice=invoice["id"])
    charge = _charge(world, invoice)
    if charge is None:
        return ""
    shown = ""
    if charge["amount_refunded"] < charge["amount"] and not charge["disputed"]:
        shown += button("/", "Refund", about=about, do="refund", charge=charge["id"])
        shown += button(f"/_sandbox/invoices/{invoice['id']}/dispute", "The bank disputes it", about=about, back=back)
    for quarrel in _disputes(world, charge):
        if quarrel["status"] not in CLOSED:
            door = f"/_sandbox/disputes/{quarrel['id']}/close"
            shown += button(door, "Dispute won", about=about, back=back, status="won")
            shown += button(door, "Dispute lost", about=about, back=back, status="lost")
    return shown


def _deliveries(world: World) -> str:
    pending = world.deliveries.pending()
    waiting = f"{pending['queued']} waiting, {pending['held']} held."
    flush = button("/_sandbox/flush", "Deliver all now", back="/#deliveries", timeout_seconds="5")
    rows = []
    for attempt in list(world.deliveries.attempts)[: -_LATEST - 1 : -1]:
        answered = attempt["status"] or escape(str(attempt["error"] or ""))
        rows.append(
            (
                f"{datetime.fromtimestamp(attempt['at'], UTC):%H:%M:%S}",
                escape(attempt["type"]),
                identity(attempt["object"]),
                str(attempt["attempt"] + 1),
                f"{status(attempt['outcome'], TONES.get(attempt['outcome'], 'bad'))} {answered}",
            )
        )
    heads = ("At (real time)", "Event", "About", "Attempt", "Answer")
    shown = table(heads, rows[:_LAST_DELIVERIES], caption="Last deliveries", empty="Nothing has been delivered yet.")
    if rows[_LAST_DELIVERIES:]:
        older = table(heads, rows[_LAST_DELIVERIES:], caption="Earlier deliveries", empty="")
        shown += f"<details><summary>Earlier ones</summary>{older}</details>"
    return f'<p>{waiting} {flush}<a href="/#deliveries">Reload</a></p>{shown}'


def _time(world: World) -> str:
    steps = "".join(button("/", f"On by 1 {interval}", do="advance", interval=interval) for interval in INTERVALS)
    still = "" if world.knobs.auto_renew else "<p>The clock does not bill: a knob says so.</p>"
    now = f"{datetime.fromtimestamp(world.now(), UTC):%Y-%m-%dT%H:%M}"
    real = button("/", "Back to the real time", do="real_time") if world.clock_offset else ""
    return f"""<p>It is {moment(world.now())} UTC{_ahead(world)}. What falls due is done at once.</p>{still}
<p>{steps}</p>
<form method="post" action="/" class="row"><input type="hidden" name="do" value="set_time">
<div class="field"><label for="at">Set the time (UTC)</label>
<input id="at" name="at" type="datetime-local" required value="{now}"></div><button>Set</button></form>
{real}{_test_clocks(world)}"""


def _test_clocks(world: World) -> str:
    """Customers on a test clock live in its time, not in the one above."""
    rows = []
    for clock in _newest(world.store.all(CLOCK)):
        name = clock["name"] or clock["id"]
        own = [c for c in world.store.all("customer").values() if c.get("test_clock") == clock["id"]]
        steps = "".join(
            button("/", f"On by 1 {interval}", about=name, do="advance_clock", clock=clock["id"], interval=interval)
            for interval in INTERVALS
        )
        rows.append((escape(name), moment(clock["frozen_time"]), "<br>".join(map(name_of, own)), steps))
    heads = ("Test clock", "Its time", "Customers", "What happens")
    return f"<h3>Test clocks</h3>{table(heads, rows, caption='Test clocks', empty='')}" if rows else ""


def _newest(objects: dict[str, Obj]) -> list[Obj]:
    return list(reversed(objects.values()))[:_LATEST]


def _more(count: int) -> str:
    return f'<p class="quiet">{count - _LATEST} older ones are not shown.</p>' if count > _LATEST else ""


def _who(world: World, customer_id: str | None) -> str:
    customer = world.store.get("customer", customer_id or "")
    return name_of(customer) if customer else ""


def _things(session: Obj) -> str:
    lines: Iterable[Obj] = session["_line_items"]
    return "<br>".join(f"{line['quantity']} × {escape(line['description'])}" for line in lines)
