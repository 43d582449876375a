"""Identifiers that look like Stripe's: a prefix that names the kind, and letters and digits nobody can guess."""

import random

API_VERSION = "2026-05-27.dahlia"
OLD_API_VERSION = "2024-06-20"
ACCOUNT_ID = "acct_1SandboxTermkeeper"

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

_DICE = random.Random()  # nobody has to be kept from guessing here

# kind -> prefix, how many random characters follow it
_FORMS = {
    "customer": ("cus_", 14),
    "product": ("prod_", 14),
    "price": ("price_1", 23),
    "subscription_schedule": ("sub_sched_1", 23),
    "subscription": ("sub_1", 23),
    "subscription_item": ("si_", 14),
    "invoice": ("in_1", 23),
    "upcoming_invoice": ("upcoming_in_1", 23),
    "line_item": ("il_1", 23),
    "invoice_payment": ("inpay_1", 23),
    "charge": ("ch_3", 23),
    "refund": ("re_3", 23),
    "dispute": ("du_1", 23),
    "test_helpers.test_clock": ("clock_1", 23),
    "payment_intent": ("pi_3", 23),
    "checkout.session": ("cs_test_", 58),
    "payment_link": ("plink_1", 23),
    "item": ("li_1", 23),
    "billing_portal.session": ("bps_1", 23),
    "webhook_endpoint": ("we_1", 23),
    "event": ("evt_1", 23),
    "request": ("req_", 14),
    "delivery": ("dlv_", 14),
    "webhook_secret": ("whsec_", 32),
}


def new_id(kind: str) -> str:
    prefix, length = _FORMS[kind]
    return prefix + "".join(_DICE.choices(_ALPHABET, k=length))


def kind_of(object_id: str) -> str | None:
    """The kind that an id's prefix promises; None for ids that callers chose themselves."""
    for kind, (prefix, _) in _FORMS.items():
        if object_id.startswith(prefix.rstrip("13")):
            return kind
    return None
