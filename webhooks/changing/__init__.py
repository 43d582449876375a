"""What a customer changes of what Stripe bills: Stripe is told first, and what is true there then is brought here.

So a customer's click, Stripe's portal and Stripe's dashboard end in the same state: `truth` brings all three. Where
Stripe refuses, or does not answer, nothing has changed here. What Stripe does not bill is cancelled and resumed by the
verbs of `lifecycle`; the rest of it is staff's to change.

Nothing is locked and no transaction is open while Stripe is asked. Every verb says how it shall be, not what to add, so
it is safe to repeat; a double click is one request to Stripe, for both clicks have the same idempotency key: that of
the caller, or one of the last ticket, which is another once anything was heard from Stripe.

Every verb raises IllegalTransition for what is over, BeingTold, StripeUnavailable, StripeRefused, Unmappable.
"""

from webhooks.changing.asked import AskedBy, ChangeAt, WishedChange
from webhooks.changing.ending import cancel, pause, resume
from webhooks.changing.previewing import Preview, preview
from webhooks.changing.scheduling import change, unschedule

__all__ = [
    "AskedBy",
    "ChangeAt",
    "Preview",
    "WishedChange",
    "cancel",
    "change",
    "pause",
    "preview",
    "resume",
    "unschedule",
]
