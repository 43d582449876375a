"""The side door for people: one page to watch and press buttons on, and the pages Stripe would host."""

from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from urllib.parse import urlsplit

from .billing import OVER, items_of
from .invoices import unpaid_of
from .knobs import Knobs
from .store import Obj
from .world import World

_LATEST = 30

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #888; --accent: #0b5fff; }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem }
p.about { color: var(--quiet); margin: .2rem 0 0 }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th { text-align: left; font-weight: 600; font-size: .8rem; color: var(--quiet) }
th, td { padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
code, td.id { font: .85em ui-monospace, monospace } td.id { overflow-wrap: anywhere; min-width: 9rem }
form { display: inline } button { font: inherit; font-size: .85rem; padding: .1rem .6rem; margin: 0 .2rem .2rem 0;
  border: 1px solid var(--line); border-radius: .3rem; background: none; color: inherit; cursor: pointer }
button:hover, button:focus-visible { border-color: var(--accent) }
button.main { background: var(--accent); border-color: var(--accent); color: #fff; font-size: 1rem;
  padding: .4rem 1.2rem }
.status { font-weight: 600 } .good { color: #197a35 } .bad { color: #c0271a } .wait { color: #9a6700 }
@media (prefers-color-scheme: dark) { .good { color: #4cc26b } .bad { color: #ff7b72 } .wait { color: #e3b341 } }
.knobs { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .6rem 1rem }
.knobs label { display: block; font-size: .8rem; color: var(--quiet) }
.knobs input, .knobs select { font: inherit; width: 100%; padding: .15rem .3rem }
.empty { color: var(--quiet) } .box { max-width: 32rem; margin: 4rem auto }
"""

_TONE = {"active": "good", "trialing": "good", "past_due": "wait", "incomplete": "wait", "paused": "wait"}

# the knobs a person turns, each with a word on what it does; tests have all of them at /_sandbox/knobs
_SHOWN_KNOBS = {
    "deliver": "webhooks are sent (off: held)",
    "duplicate": "copies of each delivery",
    "delay_seconds": "seconds before each delivery",
    "reorder": "shuffle in batches of",
    "drop": "share of deliveries lost (0 to 1)",
    "corrupt": "share with a bad signature (0 to 1)",
    "timestamp_offset": "seconds added to signatures' time",
    "latency_seconds": "seconds before each API answer",
    "card": "cards of customers: ok, declined, none",
    "after_dunning": "after dunning: unpaid, cancel, past_due",
    "auto_renew": "the clock bills",
}


def answer(world: World, path: str) -> tuple[int, str]:
    """Status and HTML."""
    with world.lock:
        match path.strip("/").split("/"):
            case [""]:
                return 200, _home(world)
            case ["checkout", session_id] if session := world.store.get("checkout.session", session_id):
                return 200, _checkout(world, session)
            case ["portal", session_id] if session := world.store.get("billing_portal.session", session_id):
                return 200, _portal(world, session)
            case ["invoice", invoice_id] if invoice := world.store.get("invoice", invoice_id):
                return 200, _invoice(world, invoice)
    return 404, _document(
        "Not here", '<div class="box"><h1>There is no such page</h1><p><a href="/">The sandbox</a></p></div>'
    )


def _home(world: World) -> str:
    now = datetime.fromtimestamp(world.now(), UTC)
    target = f"Events go to <code>{escape(world.config.webhook_url)}</code>." if world.config.webhook_url else ""
    ahead = f" ({world.clock_offset} s ahead)" if world.clock_offset else ""
    pending = world.deliveries.pending()
    waiting = f"{pending['queued']} waiting, {pending['held']} held"
    return _document(
        "Stripe sandbox",
        f"""<h1>Stripe sandbox</h1>
<p class="about">A stand-in for Stripe; no money moves. It is {now:%Y-%m-%d %H:%M:%S} UTC here{ahead}. {target}</p>
<h2>Subscriptions</h2>{_subscriptions(world)}
<h2>Open checkouts</h2>{_open_checkouts(world)}
<h2>Knobs</h2>{_knobs(world.knobs)}
<h2>Last deliveries <small>({waiting}) {_button("/_sandbox/flush", "Deliver all now")}</small></h2>{_deliveries(world)}
<h2>Time</h2>
<form method="post" action="/_sandbox/clock"><label>Seconds ahead of the real clock
<input name="offset_seconds" value="{world.clock_offset}" size="10"></label>
<button>Set, and bill what falls due</button></form>
<h2>Start over</h2>{_button("/_sandbox/reset", "Forget everything")}""",
    )


def _subscriptions(world: World, *, customer: str | None = None, back: str = "/") -> str:
    rows = []
    for subscription in reversed(world.store.all("subscription").values()):
        if customer not in (None, subscription["customer"]):
            continue
        owner = world.need("customer", subscription["customer"])
        status = subscription["status"]
        tone = _TONE.get(status, "bad")
        ends = f"<br>ends {_day(subscription['cancel_at'])}" if subscription["cancel_at"] else ""
        items = "<br>".join(_item(item) for item in items_of(subscription))
        rows.append(
            f"""<tr><td>{escape(owner.get("name") or owner.get("email") or owner["id"])}</td>
<td class="id">{subscription["id"]}</td><td>{items}</td>
<td><span class="status {tone}">{escape(status)}</span>{ends}</td><td>{_buttons(world, subscription, back)}</td></tr>"""
        )
    return _table(("Customer", "Subscription", "Items and period", "Status", ""), rows, "No subscriptions yet.")


def _item(item: Obj) -> str:
    price = item["price"]
    name = escape(price["nickname"] or price["lookup_key"] or price["id"])
    return f"{item['quantity']} &times; {name}, {_days(item['current_period_start'], item['current_period_end'])}"


def _buttons(world: World, subscription: Obj, back: str) -> str:
    if subscription["status"] in OVER:
        return ""
    owes = bool(unpaid_of(world, subscription["id"]))
    fresh = subscription["status"] == "active" and not owes
    ending = subscription["cancel_at"] is not None
    offered = [
        ("pay", "Renew, paid" if fresh else "Pay"),
        ("fail", "Payment fails"),
        ("unpaid", "Unpaid"),
        ("pause", "Pause"),
    ]
    base = f"/_sandbox/subscriptions/{subscription['id']}"
    shown = "".join(_button(f"{base}/{verb}", label, back=back) for verb, label in offered)
    if ending:
        shown += _button(f"{base}/keep", "Keep", back=back)
    else:
        shown += _button(f"{base}/cancel", "Cancel at period end", back=back, at_period_end="true")
    return shown + _button(f"{base}/cancel", "Cancel now", back=back)


def _open_checkouts(world: World) -> str:
    rows = [
        f'<tr><td class="id"><a href="/checkout/{session["id"]}">{session["id"][:24]}…</a></td>'
        f"<td>{_money(session['amount_total'], session['currency'])}</td><td>{_moment(session['created'])}</td></tr>"
        for session in reversed(world.store.all("checkout.session").values())
        if session["status"] == "open"
    ]
    return _table(("Session", "Total", "Made"), rows[:_LATEST], "None.")


def _knobs(knobs: Knobs) -> str:
    values = knobs.plain()
    fields = []
    for name, meaning in _SHOWN_KNOBS.items():
        value = values[name]
        shown = str(value).lower() if isinstance(value, bool) else escape(str(value))
        fields.append(f'<label>{meaning}<input name="{name}" value="{shown}"></label>')
    faults = f"<p>{len(knobs.errors)} API fault(s) are set.</p>" if knobs.errors else ""
    return f"""<form method="post" action="/_sandbox/knobs"><div class="knobs">{"".join(fields)}</div>{faults}
<p><button>Turn the knobs</button></p></form>"""


def _deliveries(world: World) -> str:
    rows = []
    for attempt in list(world.deliveries.attempts)[: -_LATEST - 1 : -1]:
        tone = "good" if attempt["outcome"] == "delivered" else "bad"
        said = attempt["status"] or escape(str(attempt["error"]))
        rows.append(
            f"""<tr><td>{datetime.fromtimestamp(attempt["at"], UTC):%H:%M:%S}</td><td>{escape(attempt["type"])}</td>
<td class="id">{escape(attempt["object"])}</td><td>{attempt["attempt"] + 1}</td>
<td><span class="status {tone}">{attempt["outcome"]}</span> {said}</td></tr>"""
        )
    return _table(("At", "Event", "About", "Attempt", "Answer"), rows, "Nothing has been delivered yet.")


# what Stripe would host


def _checkout(world: World, session: Obj) -> str:
    if session["status"] != "open":
        return _document("Checkout", f'<div class="box"><h1>This checkout is {session["status"]}</h1></div>')
    lines = "".join(
        f"<tr><td>{line['quantity']} &times; {escape(line['description'])}</td>"
        f"<td>{_money(line['amount_total'], line['currency'])} / {line['price']['recurring']['interval']}</td></tr>"
        for line in session["_line_items"]
    )
    base = f"/_sandbox/checkout/{session['id']}/complete"
    leave = (
        f'<p><a href="{_link(session["cancel_url"])}">Go back without paying</a></p>' if session["cancel_url"] else ""
    )
    return _document(
        "Checkout",
        f"""<div class="box"><h1>Checkout</h1><p class="about">Stripe sandbox: no money moves.</p>
<table>{lines}<tr><th>Due today</th><td>{_money(session["amount_total"], session["currency"])}</td></tr></table>
<p>{_button(base, "Pay", main=True)} {_button(base, "Pay by bank debit (settles later)", settled="false")}</p>
{leave}</div>""",
    )


def _portal(world: World, session: Obj) -> str:
    subscriptions = _subscriptions(world, customer=session["customer"], back=f"/portal/{session['id']}")
    leave = f'<p><a href="{_link(session["return_url"])}">Return</a></p>' if session["return_url"] else ""
    return _document("Billing portal", f"<h1>Billing portal</h1><h2>Subscriptions</h2>{subscriptions}{leave}")


def _invoice(world: World, invoice: Obj) -> str:
    lines = "".join(
        f"<tr><td>{escape(line['description'])}</td><td>{_days(line['period']['start'], line['period']['end'])}</td>"
        f"<td>{_money(line['amount'], line['currency'])}</td></tr>"
        for line in invoice["lines"]["data"]
    )
    return _document(
        f"Invoice {invoice['number']}",
        f"""<div class="box"><h1>Invoice {escape(invoice["number"])}</h1>
<p class="about">{escape(invoice["customer_name"] or invoice["customer"])}, {_day(invoice["created"])},
{invoice["status"]}</p>
<table>{lines}<tr><th>Total</th><td></td><td>{_money(invoice["total"], invoice["currency"])}</td></tr></table></div>""",
    )


# words and tags


def _document(title: str, body: str) -> str:
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>
<body>{body}</body></html>"""


def _table(heads: Iterable[str], rows: list[str], empty: str) -> str:
    if not rows:
        return f'<p class="empty">{empty}</p>'
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _button(action: str, label: str, *, main: bool = False, back: str = "/", **given: str) -> str:
    hidden = "".join(
        f'<input type="hidden" name="{k}" value="{escape(v)}">' for k, v in {"back": back, **given}.items()
    )
    css = ' class="main"' if main else ""
    return f'<form method="post" action="{action}">{hidden}<button{css}>{escape(label)}</button></form>'


def _link(url: str) -> str:
    """Only web addresses become links."""
    return escape(url) if urlsplit(url).scheme in ("http", "https") else "/"


def _money(amount: int | None, currency: str) -> str:
    return f"{(amount or 0) // 100}.{(amount or 0) % 100:02d} {currency.upper()}"


def _day(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"


def _days(start: int, end: int) -> str:
    return f"{_day(start)} &ndash; {_day(end)}"


def _moment(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"
