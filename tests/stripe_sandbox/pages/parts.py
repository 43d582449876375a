"""What the pages are put together from. Whatever comes from outside is escaped here or by who calls ``escape``."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from urllib.parse import parse_qsl, quote, urlsplit

from ..store import Obj
from .style import STYLE

TONES = {"active": "good", "trialing": "good", "past_due": "wait", "incomplete": "wait", "paused": "wait"}
TONES |= {"paid": "good", "open": "wait", "draft": "wait", "delivered": "good"}


@dataclass(frozen=True)
class Asked:
    """What a browser asked for: ``given`` are the fields of the form, or of the address when nothing was posted."""

    method: str
    path: str
    query: str = ""
    body: str = ""
    given: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        text = self.body if self.method == "POST" else self.query
        object.__setattr__(self, "given", dict(parse_qsl(text, keep_blank_values=True)))


@dataclass(frozen=True)
class Shown:
    """A page, or with ``location`` the way to another."""

    body: str = ""
    status: int = 200
    location: str = ""


def go(url: str) -> Shown:
    """See other; only to web addresses and our own pages."""
    return Shown(status=303, location=quote(web_address(url), safe="%/:=&?~#+!$,;'@()*[]"))


def document(title: str, body: str, *, width: str = "wide") -> str:
    """``width``: narrow, medium or wide."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} – Stripe sandbox</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>
<body class="{width}">{body}</body></html>"""


def refusal(status: int, why: str, *, back: str = "/") -> Shown:
    body = f'<main><h1>That was not possible</h1>{notice(why, "bad")}<p><a href="{link(back)}">Go back</a></p></main>'
    return Shown(document("Not possible", body, width="narrow"), status)


def notice(text: str, tone: str = "good") -> str:
    """One sentence on what just happened; read out at once if it is bad news."""
    role = "alert" if tone == "bad" else "status"
    return f'<p class="notice {tone}" role="{role}">{escape(text)}</p>' if text else ""


def said(sentences: dict[str, tuple[str, str]], asked: Asked) -> str:
    """The notice that the address names, out of a fixed list: an address cannot put words into a page."""
    text, tone = sentences.get(asked.given.get("said", "") if asked.method == "GET" else "", ("", ""))
    return notice(text, tone)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str, empty: str) -> str:
    """Cells are HTML. On a narrow screen every row becomes a box, and each cell says its heading."""
    shown = list(rows)
    if not shown:
        return f'<p class="empty">{escape(empty)}</p>'
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in heads)
    body = "".join(
        "<tr>" + "".join(_cell(word, cell) for word, cell in zip(heads, row, strict=True)) + "</tr>" for row in shown
    )
    named = f'aria-label="{escape(caption)}"'
    return f'<table class="stack" {named}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cell(head: str, cell: str) -> str:
    named = f' data-head="{escape(head)}"' if head and cell else ""
    return f"<td{named}>{cell}</td>"


def button(action: str, label: str, *, css: str = "", about: str = "", **given: str) -> str:
    """A form that is one button; ``about`` tells those who do not see the row which thing it concerns."""
    named = f' aria-label="{escape(label)}: {escape(about)}"' if about else ""
    style = f' class="{css}"' if css else ""
    return (
        f'<form class="inline" method="post" action="{escape(action)}">{hidden(given)}'
        f"<button{style}{named}>{escape(label)}</button></form>"
    )


def hidden(given: dict[str, str]) -> str:
    return "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">' for name, value in given.items()
    )


def choices(name: str, options: Iterable[tuple[str, str, str]], chosen: str, *, of: str = "") -> str:
    """Radio buttons: (value, label, hint). ``of`` tells them from those of another form on the page."""
    return "".join(
        f'<div class="choice"><input type="radio" name="{name}" id="{name}{of}-{value}" value="{value}" required'
        f'{" checked" if value == chosen else ""}><label for="{name}{of}-{value}">{escape(label)}'
        f'<span class="hint">{escape(hint)}</span></label></div>'
        for value, label, hint in options
    )


def status(word: str, tone: str = "") -> str:
    return f'<span class="status {tone or TONES.get(word, "bad")}">{escape(word.replace("_", " "))}</span>'


def identity(object_id: str) -> str:
    return f'<span class="id">{escape(object_id)}</span>'


def web_address(url: str | None) -> str:
    """The address if it is one of the web or of a page of ours, else the home page."""
    if not url or url.startswith(("//", "/\\")):
        return "/"
    return url if url.startswith("/") or urlsplit(url).scheme in ("http", "https") else "/"


def link(url: str | None) -> str:
    """For an ``href``: only web addresses, and pages of ours, become links."""
    return escape(web_address(url))


def name_of(customer: Obj) -> str:
    return escape(str(customer.get("name") or customer.get("email") or customer["id"]))


def money(amount: int | None, currency: str) -> str:
    cents = abs(amount or 0)
    sign = "−" if (amount or 0) < 0 else ""
    return f"{sign}{cents // 100}.{cents % 100:02d} {escape(currency.upper())}"


def every(recurring: Obj) -> str:
    """ "month", "3 months"."""
    count = recurring["interval_count"]
    return str(recurring["interval"]) if count == 1 else f"{count} {recurring['interval']}s"


def price_name(price: Obj, products: dict[str, Obj]) -> str:
    """The product's name and, where it has one, the price's own. Not escaped."""
    product = products.get(price["product"], {}).get("name") or price["product"]
    own = price["nickname"] or price["lookup_key"]
    return f"{product}, {own}" if own and own != product else str(product)


def day(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"


def days(start: int, end: int) -> str:
    return f"{day(start)} – {day(end)}"


def moment(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"
