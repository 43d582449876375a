"""The side door for people: one page to watch and press buttons on, and the pages that Stripe would host.

=================  ===========================================================
``home``           everything there is, deliveries, knobs, time; ``home_verbs`` what its buttons do
``knob_board``     the knobs in words
``checkout``       ``/checkout/cs_…``: buy, be declined, leave
``portal``         ``/portal/bps_…``: change, cancel, card, invoices; ``portal_verbs`` what its buttons do
``invoice``        ``/invoice/in_…``
``parts``          what pages are put together from; ``style`` how they look
``asking``         how a page changes things: as a program would
=================  ===========================================================

A form posts to its own page, which answers with the way to the page that shows the result. No script, nothing from
elsewhere.
"""

import sys
import traceback

from ..errors import ControlError, StripeError
from ..world import World
from .checkout import checkout_page
from .home import home_page
from .invoice import invoice_page
from .parts import Asked, Shown, document, go, refusal
from .portal import portal_page

__all__ = ["Asked", "Shown", "answer", "go", "refusal"]


def answer(world: World, asked: Asked) -> Shown:
    """A page, or the way to one; a refusal is a page too."""
    try:
        return _answer(world, asked)
    except (ControlError, StripeError) as error:
        return refusal(error.status, str(error), back=asked.path)
    except Exception:
        traceback.print_exc(file=sys.stderr)
        return refusal(500, "The sandbox itself failed; its traceback is on stderr.", back=asked.path)


def _answer(world: World, asked: Asked) -> Shown:
    if asked.method not in ("GET", "HEAD", "POST"):
        return refusal(405, f"Pages are read and posted to; {asked.method} is neither.")
    steps = asked.path.strip("/").split("/")
    if steps == [""]:
        return home_page(world, asked)  # takes the lock itself: the time and the knobs must not wait under it
    with world.changing():
        match steps:
            case ["checkout", session_id] if session := world.store.get("checkout.session", session_id):
                return checkout_page(world, asked, session)
            case ["portal", session_id] if session := world.store.get("billing_portal.session", session_id):
                return portal_page(world, asked, session)
            case ["invoice", invoice_id] if invoice := world.store.get("invoice", invoice_id):
                return invoice_page(world, asked, invoice)
    body = '<main><h1>There is no such page</h1><p><a href="/">The sandbox</a></p></main>'
    return Shown(document("Not here", body, width="narrow"), 404)
