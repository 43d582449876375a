"""The page that an invoice names as its own, and how a person pays one."""

from html import escape

from ..errors import StripeError
from ..store import Obj
from ..world import World
from .asking import ask
from .parts import Asked, Shown, button, day, days, document, go, identity, money, said, status

PAY_SAID = {
    "paid": ("Paid. Thank you.", "good"),
    "declined": ("Your card was declined. The invoice stays open.", "bad"),
    "no_card": ("There is no card to pay with. Choose one first.", "bad"),
}


def pay_invoice(world: World, invoice_id: str) -> str:
    """What came of it, a key of PAY_SAID. Raises StripeError for an invoice that is not to be paid."""
    try:
        ask(world, "POST", f"/v1/invoices/{invoice_id}/pay")
    except StripeError as error:
        outcomes = {"card_declined": "declined", "resource_missing": "no_card", "invoice_already_paid": "paid"}
        if error.code not in outcomes:
            raise
        return outcomes[error.code]
    return "paid"


def invoice_page(world: World, asked: Asked, invoice: Obj) -> Shown:
    here = f"/invoice/{invoice['id']}"
    if asked.method == "POST":
        return go(f"{here}?said={pay_invoice(world, invoice['id'])}")
    lines = "".join(
        f'<tr><td>{escape(line["description"])}<br><span class="quiet">'
        f"{days(line['period']['start'], line['period']['end'])}</span></td>"
        f'<td class="number">{money(line["amount"], line["currency"])}</td></tr>'
        for line in invoice["lines"]["data"]
    )
    pay = f"Pay {money(invoice['amount_remaining'], invoice['currency'])}"
    shown = f"<p>{button(here, pay, css='main')}</p>" if invoice["status"] == "open" else ""
    body = f"""<main><h1>Invoice {escape(invoice["number"])}</h1>
<p class="about">{escape(invoice["customer_name"] or invoice["customer"])}, {day(invoice["created"])},
{status(invoice["status"])}<br>{identity(invoice["id"])}</p>{said(PAY_SAID, asked)}
<table aria-label="What is charged"><tbody>{lines}<tr class="sum"><th scope="row">Total</th>
<td class="number">{money(invoice["total"], invoice["currency"])}</td></tr></tbody></table>{shown}</main>"""
    return Shown(document(f"Invoice {invoice['number']}", body, width="narrow"))
