"""A stand-in for Stripe: a process of its own that keeps customers, prices, subscriptions and invoices, bills them as
time passes, and rings the webhook.

Where to read what:

=================  ===========================================================================
``__main__``       the command line
``server``         HTTP: one request in, one answer out, and the faults that the knobs ask for
``api``            keys, versions, idempotency, routing of ``/v1``; one ``*_routes`` module per family
``accepted``       the tables of parameters each route takes (``params`` reads them)
``billing``        the rules: what a payment, a failure and a cancellation do
``deadlines``      what the passing of time does; ``agenda`` knows what is next, ``clock_routes`` has test clocks
``changes``        a change of a subscription, previewed or made by one computation; ``proration`` its arithmetic
``schedules``      what a subscription will be in its next phases
``checkouts``      sessions and what they make; ``payment_links`` those that nobody's program began
``payments``       charges, refunds and disputes; ``cards`` whether a card works
``shapes``         the objects as API version 2026-05-27.dahlia shows them; ``paper`` and ``invoices`` for invoices
``generations``    the same objects as a version of 2024 showed them
``world``          everything together behind one lock; ``store`` keeps it
``deliveries``     signed webhooks, retries, and what can go wrong on the way
``traffic``        rate limits, and keys of requests that are still being answered
``knobs``          every fault and policy that can be switched on
``control``        ``/_sandbox/``: the side door for tests; ``pages``: the same for people
``seeding``        ten thousand subscriptions at once, for benchmarks
``client``         what tests and the demo use to start and steer it
=================  ===========================================================================

Standard library only, so that it starts in an instant and stands on nothing that it is used to test.
"""
