"""The page that shows caught mail. Mail is somebody else's text: everything is escaped, and HTML parts are caged."""

import re
from email.message import EmailMessage, MIMEPart
from email.utils import parsedate_to_datetime
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from billing_site.local import ports
from billing_site.local.caught_mail import Mailbox, read

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-src 'self'; base-uri 'none'; form-action 'none'"
MAIL_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; "
    "sandbox allow-popups allow-popups-to-escape-sandbox"
)
LISTED = 200
STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.3rem; overflow-wrap: anywhere } h2 { font-size: 1rem; margin-top: 2rem }
table { width: 100%; border-collapse: collapse } caption { text-align: left; opacity: .75; padding-bottom: .5rem }
th, td { text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid #8886 }
td { overflow-wrap: anywhere } td.date { white-space: nowrap }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #8886; border-radius: .4rem; padding: .8rem }
iframe { width: 100%; height: 34rem; border: 1px solid #8886; border-radius: .4rem; background: #fff }
"""


def server(port: int, mailbox: Mailbox) -> ThreadingHTTPServer:
    class Page(_Page):
        box = mailbox

    return ThreadingHTTPServer((ports.LOCALHOST, port), Page)


class _Page(BaseHTTPRequestHandler):
    """``/`` lists, ``/NAME`` shows one, ``/NAME/html`` is its HTML part for the frame."""

    box: Mailbox
    server_version, sys_version = "mail", ""

    def do_GET(self) -> None:
        found = {path.stem: path for path in self.box.files()}
        name, _, part = unquote(self.path.split("?")[0]).strip("/").partition("/")
        if not name:
            self._send(_list(found), PAGE_POLICY)
        elif name in found and part == "html":
            self._send(_html_part(read(found[name])), MAIL_POLICY)
        elif name in found and not part:
            self._send(_one(name, read(found[name])), PAGE_POLICY)
        else:
            self._send(_page("No such mail", '<p><a href="/">All mail</a></p>'), PAGE_POLICY, HTTPStatus.NOT_FOUND)

    def _send(self, html: str, policy: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        body = html.encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The page refreshes itself; a line for each would drown the log."""


def _page(title: str, body: str, head: str = "") -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{head}<style>{STYLE}</style></head>'
        f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>"
    )


def _list(found: dict[str, Path]) -> str:
    newest = {name: read(found[name]) for name in sorted(found, reverse=True)[:LISTED]}
    rows = "".join(
        f'<tr><td><a href="/{escape(name)}">{escape(_header(mail, "Subject") or "(no subject)")}</a></td>'
        f'<td>{escape(_header(mail, "To"))}</td><td class="date">{escape(_date(mail))}</td></tr>'
        for name, mail in newest.items()
    )
    table = f"""<table><caption>{len(found)} caught, newest first. Nothing was delivered to anybody.</caption>
        <thead><tr><th scope="col">Subject</th><th scope="col">To</th><th scope="col">Date</th></tr></thead>
        <tbody>{rows}</tbody></table>"""
    empty = "<p>No mail yet. What the service sends will appear here.</p>"
    return _page("Caught mail", table if found else empty, head='<meta http-equiv="refresh" content="5">')


def _one(name: str, mail: EmailMessage) -> str:
    text, html = mail.get_body(("plain",)), mail.get_body(("html",))
    parts = ['<p><a href="/">All mail</a></p>']
    shown = {"From": _header(mail, "From"), "To": _header(mail, "To"), "Date": _date(mail)}
    parts.append("".join(f"<div>{label}: {escape(value)}</div>" for label, value in shown.items()))
    if text is not None:
        parts.append(f"<h2>Text</h2><pre>{escape(_content(text))}</pre>")
    if html is not None:
        frame = f'src="/{escape(name)}/html" sandbox="allow-popups allow-popups-to-escape-sandbox"'
        parts.append(f'<h2>HTML</h2><iframe title="HTML part" {frame}></iframe>')
    raw = "\n".join(f"{header}: {value}" for header, value in mail.items())
    parts.append(f"<h2>Headers</h2><pre>{escape(raw)}</pre>")
    return _page(_header(mail, "Subject") or "(no subject)", "".join(parts))


def _html_part(mail: EmailMessage) -> str:
    html = mail.get_body(("html",))
    return '<base target="_blank">' + (_content(html) if html is not None else "")


def _content(part: MIMEPart) -> str:
    payload = part.get_payload(decode=True)
    charset = part.get_content_charset() or "utf-8"
    try:
        return payload.decode(charset, "replace") if isinstance(payload, bytes) else str(part.get_payload())
    except LookupError:  # a charset nobody knows
        return payload.decode("utf-8", "replace") if isinstance(payload, bytes) else ""


def _header(mail: EmailMessage, name: str) -> str:
    return re.sub(r"\s+", " ", str(mail.get(name, "")))


def _date(mail: EmailMessage) -> str:
    try:
        return parsedate_to_datetime(_header(mail, "Date")).strftime("%Y-%m-%d %H:%M:%S %z")
    except ValueError:
        return _header(mail, "Date")
