"""What each route accepts. A parameter that is not here is refused as unknown, also where real Stripe would know it:
a stand-in that silently ignored a parameter would let a caller believe in it. Held to Stripe's own list by a test.
"""

from .params import Either, Flag, Group, Labels, Many, Shape, Text, Whole

TEXT, WHOLE, FLAG, LABELS = Text(), Whole(), Flag(), Labels()
TIME, COUNT = Whole(least=0), Whole(least=0)
CLEAR = Text(("",))
META: dict[str, Shape] = {"metadata": LABELS}
EXPAND: dict[str, Shape] = {"expand": Many(TEXT)}
RANGE = Either((Group(dict.fromkeys(("gt", "gte", "lt", "lte"), WHOLE)), TIME))
PAGE: dict[str, Shape] = EXPAND | {"limit": Whole(1, 100), "starting_after": TEXT, "ending_before": TEXT}
DATED: dict[str, Shape] = PAGE | {"created": RANGE}

INTERVALS = ("day", "week", "month", "year")
STATUSES = ("active", "canceled", "incomplete", "incomplete_expired", "past_due", "paused", "trialing", "unpaid")
PRORATION = Text(("always_invoice", "create_prorations", "none"))
COLLECTION = Text(("charge_automatically", "send_invoice"))
EVERY: dict[str, Shape] = {"interval": Text(INTERVALS), "interval_count": Whole(least=1)}
RECURRING = Group(EVERY | {"usage_type": Text(("licensed",))}, required=("interval",))
ADDRESS = Group(dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state"), TEXT))

# customers

CUSTOMER_UPDATE = Group(
    EXPAND
    | META
    | {
        "address": Either((ADDRESS, CLEAR)),
        "balance": WHOLE,
        "description": TEXT,
        "email": TEXT,
        "invoice_settings": Group({"default_payment_method": TEXT, "footer": TEXT}),
        "name": TEXT,
        "phone": TEXT,
        "preferred_locales": Many(TEXT),
        "source": TEXT,
        "tax_exempt": Text(("", "exempt", "none", "reverse")),
    }
)
CUSTOMER_CREATE = Group({**CUSTOMER_UPDATE.fields, "payment_method": TEXT, "test_clock": TEXT})
CUSTOMER_LIST = Group(DATED | {"email": TEXT, "test_clock": TEXT})

# catalogue

PRODUCT_UPDATE = Group(
    EXPAND
    | META
    | {
        "active": FLAG,
        "default_price": TEXT,
        "description": TEXT,
        "images": Either((Many(TEXT), CLEAR)),
        "marketing_features": Either((Many(Group({"name": TEXT}, required=("name",))), CLEAR)),
        "name": TEXT,
        "statement_descriptor": TEXT,
        "unit_label": TEXT,
        "url": TEXT,
    }
)
_DEFAULT_PRICE = Group(
    META
    | {
        "currency": TEXT,
        "recurring": Group(EVERY, required=("interval",)),
        "tax_behavior": Text(("exclusive", "inclusive", "unspecified")),
        "unit_amount": COUNT,
    },
    required=("currency", "unit_amount"),
)
PRODUCT_CREATE = Group(
    {
        **{name: shape for name, shape in PRODUCT_UPDATE.fields.items() if name != "default_price"},
        "id": TEXT,
        "default_price_data": _DEFAULT_PRICE,
    },
    required=("name",),
)
PRODUCT_LIST = Group(DATED | {"active": FLAG, "ids": Many(TEXT)})

PRICE_UPDATE = Group(
    EXPAND
    | META
    | {
        "active": FLAG,
        "lookup_key": TEXT,
        "nickname": TEXT,
        "tax_behavior": Text(("exclusive", "inclusive", "unspecified")),
        "transfer_lookup_key": FLAG,
    }
)
PRICE_CREATE = Group(
    {
        **PRICE_UPDATE.fields,
        "billing_scheme": Text(("per_unit",)),
        "currency": TEXT,
        "product": TEXT,
        "product_data": Group(
            META | {"id": TEXT, "name": TEXT, "active": FLAG, "unit_label": TEXT}, required=("name",)
        ),
        "recurring": RECURRING,
        "unit_amount": COUNT,
        "unit_amount_decimal": TEXT,
    },
    required=("currency",),
)
PRICE_LIST = Group(
    DATED
    | {
        "active": FLAG,
        "currency": TEXT,
        "lookup_keys": Many(TEXT),
        "product": TEXT,
        "recurring": Group({"interval": Text(INTERVALS)}),
        "type": Text(("one_time", "recurring")),
    }
)

# subscriptions

_TRIAL_SETTINGS = Group(
    {
        "end_behavior": Group(
            {"missing_payment_method": Text(("cancel", "create_invoice", "pause"))},
            required=("missing_payment_method",),
        )
    },
    required=("end_behavior",),
)
_SUBSCRIPTION: dict[str, Shape] = (
    EXPAND
    | META
    | {
        "automatic_tax": Group({"enabled": FLAG}, required=("enabled",)),
        "cancel_at": Either((Text(("", "min_period_end", "max_period_end")), TIME)),
        "cancel_at_period_end": FLAG,
        "collection_method": COLLECTION,
        "days_until_due": Whole(least=0),
        "default_payment_method": TEXT,
        "description": TEXT,
        "off_session": FLAG,
        "payment_behavior": Text(
            ("allow_incomplete", "default_incomplete", "error_if_incomplete", "pending_if_incomplete")
        ),
        "payment_settings": Group(
            {"payment_method_types": Many(TEXT), "save_default_payment_method": Text(("off", "on_subscription"))}
        ),
        "proration_behavior": PRORATION,
        "trial_end": Either((Text(("now",)), TIME)),
        "trial_settings": _TRIAL_SETTINGS,
    }
)
_BILLING_MODE = Group({"type": Text(("classic", "flexible"))}, required=("type",))
SUBSCRIPTION_CREATE = Group(
    _SUBSCRIPTION
    | {
        "billing_cycle_anchor": TIME,
        "billing_mode": _BILLING_MODE,
        "currency": TEXT,
        "customer": TEXT,
        "items": Many(Group(META | {"price": TEXT, "quantity": COUNT})),
        "trial_period_days": Whole(1, 730),
    },
    required=("customer",),
)
SUBSCRIPTION_UPDATE = Group(
    _SUBSCRIPTION
    | {
        "billing_cycle_anchor": Text(("now", "unchanged")),
        "cancellation_details": Group({"comment": TEXT, "feedback": TEXT}),
        "items": Many(Group(META | {"deleted": FLAG, "id": TEXT, "price": TEXT, "quantity": COUNT})),
        "pause_collection": Either(
            (
                Group(
                    {"behavior": Text(("keep_as_draft", "mark_uncollectible", "void")), "resumes_at": TIME},
                    required=("behavior",),
                ),
                CLEAR,
            )
        ),
        "proration_date": TIME,
    }
)
SUBSCRIPTION_CANCEL = Group(
    EXPAND | {"cancellation_details": Group({"comment": TEXT, "feedback": TEXT}), "invoice_now": FLAG, "prorate": FLAG}
)
SUBSCRIPTION_RESUME = Group(
    EXPAND | {"billing_cycle_anchor": Text(("now", "unchanged")), "proration_behavior": PRORATION}
)
SUBSCRIPTION_LIST = Group(
    DATED
    | {
        "collection_method": COLLECTION,
        "current_period_end": RANGE,
        "current_period_start": RANGE,
        "customer": TEXT,
        "price": TEXT,
        "status": Text((*STATUSES, "ended", "all")),
        "test_clock": TEXT,
    }
)

# schedules

_PHASE = Group(
    META
    | {
        "description": TEXT,
        "duration": Group(EVERY, required=("interval",)),
        "end_date": TIME,
        "items": Many(Group(META | {"price": TEXT, "quantity": COUNT})),
        "proration_behavior": PRORATION,
        "start_date": Either((Text(("now",)), TIME)),
    },
    required=("items",),
)
SCHEDULE_CREATE = Group(EXPAND | META | {"from_subscription": TEXT}, required=("from_subscription",))
SCHEDULE_UPDATE = Group(
    EXPAND
    | META
    | {"end_behavior": Text(("cancel", "release")), "phases": Many(_PHASE), "proration_behavior": PRORATION}
)
SCHEDULE_LIST = Group(
    DATED | {"customer": TEXT, "scheduled": FLAG} | dict.fromkeys(("canceled_at", "completed_at", "released_at"), RANGE)
)

# invoices

INVOICE_LIST = Group(
    DATED
    | {
        "collection_method": COLLECTION,
        "customer": TEXT,
        "status": Text(("draft", "open", "paid", "uncollectible", "void")),
        "subscription": TEXT,
    }
)
_PREVIEWED: dict[str, Shape] = {
    "billing_cycle_anchor": Text(("now", "unchanged")),
    "cancel_at": Either((Text(("", "min_period_end", "max_period_end")), TIME)),
    "cancel_at_period_end": FLAG,
    "cancel_now": FLAG,
    "items": Many(Group(META | {"deleted": FLAG, "id": TEXT, "price": TEXT, "quantity": COUNT})),
    "proration_behavior": PRORATION,
    "proration_date": TIME,
    "trial_end": Either((Text(("now",)), TIME)),
}
INVOICE_PREVIEW = Group(
    EXPAND | {"customer": TEXT, "subscription": TEXT, "subscription_details": Group(_PREVIEWED)},
    required=("subscription",),
)
INVOICE_PAY = Group(EXPAND | {"off_session": FLAG, "paid_out_of_band": FLAG, "payment_method": TEXT, "source": TEXT})
INVOICE_PAYMENT_LIST = Group(
    DATED
    | {
        "invoice": TEXT,
        "payment": Group({"payment_intent": TEXT, "type": Text(("payment_intent",))}, required=("type",)),
        "status": Text(("canceled", "open", "paid")),
    }
)

# money taken and given back

CHARGE_LIST = Group(DATED | {"customer": TEXT, "payment_intent": TEXT})
REFUND_CREATE = Group(
    EXPAND
    | META
    | {
        "amount": Whole(least=1),
        "charge": TEXT,
        "payment_intent": TEXT,
        "reason": Text(("duplicate", "fraudulent", "requested_by_customer")),
    }
)
REFUND_LIST = DISPUTE_LIST = Group(DATED | {"charge": TEXT, "payment_intent": TEXT})
LABELLED = Group(EXPAND | META)

# checkout and portal

CHECKOUT_CREATE = Group(
    EXPAND
    | META
    | {
        "allow_promotion_codes": FLAG,
        "automatic_tax": Group({"enabled": FLAG}, required=("enabled",)),
        "billing_address_collection": Text(("auto", "required")),
        "cancel_url": TEXT,
        "client_reference_id": TEXT,
        "customer": TEXT,
        "customer_email": TEXT,
        "customer_update": Group(dict.fromkeys(("address", "name", "shipping"), Text(("auto", "never")))),
        "expires_at": TIME,
        "line_items": Many(Group(META | {"price": TEXT, "quantity": Whole(least=1)})),
        "locale": TEXT,
        "mode": Text(("payment", "setup", "subscription")),
        "payment_method_collection": Text(("always", "if_required")),
        "payment_method_types": Many(TEXT),
        "subscription_data": Group(
            META
            | {
                "billing_cycle_anchor": TIME,
                "billing_mode": _BILLING_MODE,
                "description": TEXT,
                "proration_behavior": Text(("create_prorations", "none")),
                "trial_end": TIME,
                "trial_period_days": Whole(1, 730),
                "trial_settings": _TRIAL_SETTINGS,
            }
        ),
        "success_url": TEXT,
        "tax_id_collection": Group({"enabled": FLAG}, required=("enabled",)),
        "ui_mode": Text(("hosted_page",)),
    },
)
CHECKOUT_LIST = Group(DATED | {"customer": TEXT, "status": Text(("complete", "expired", "open")), "subscription": TEXT})
PORTAL_CREATE = Group(
    EXPAND
    | {
        "customer": TEXT,
        "locale": TEXT,
        "return_url": TEXT,
        "flow_data": Group(
            {
                "type": Text(
                    (
                        "payment_method_update",
                        "subscription_cancel",
                        "subscription_update",
                        "subscription_update_confirm",
                    )
                ),
                "subscription_cancel": Group({"subscription": TEXT}, required=("subscription",)),
                "subscription_update": Group({"subscription": TEXT}, required=("subscription",)),
                "subscription_update_confirm": Group(
                    {
                        "subscription": TEXT,
                        "items": Many(Group({"id": TEXT, "price": TEXT, "quantity": COUNT}, required=("id",))),
                    },
                    required=("items", "subscription"),
                ),
                "after_completion": Group(
                    {
                        "type": Text(("hosted_confirmation", "portal_homepage", "redirect")),
                        "redirect": Group({"return_url": TEXT}, required=("return_url",)),
                    },
                    required=("type",),
                ),
            },
            required=("type",),
        ),
    },
    required=("customer",),
)

# test clocks

CLOCK_CREATE = Group(EXPAND | {"frozen_time": TIME, "name": TEXT}, required=("frozen_time",))
CLOCK_ADVANCE = Group(EXPAND | {"frozen_time": TIME}, required=("frozen_time",))

# webhook endpoints and events

ENDPOINT_CREATE = Group(
    EXPAND
    | META
    | {"api_version": TEXT, "connect": FLAG, "description": TEXT, "enabled_events": Many(TEXT), "url": TEXT},
    required=("enabled_events", "url"),
)
ENDPOINT_UPDATE = Group(
    EXPAND | META | {"description": TEXT, "disabled": FLAG, "enabled_events": Many(TEXT), "url": TEXT}
)
EVENT_LIST = Group(DATED | {"delivery_success": FLAG, "type": TEXT, "types": Many(TEXT)})

# what answers without parameters of its own
PLAIN = Group(EXPAND)
NOTHING = Group()
PAGED = Group(PAGE)
