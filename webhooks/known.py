"""What we know about a Stripe subscription before anything is locked: one statement. Every event asks it, and
to have the ORM make it anew took longer than all the rest: it is written out.
"""

import json
from typing import Any

from django.db import connection

from subscriptions.models import Plan, PlanPrice, Subscription
from subscriptions.states import Status, Type
from webhooks.converge import Known, Scheduled
from webhooks.models import Checkout, Telling
from webhooks.stripe_state import Wanted

_COLUMNS = [field.attname for field in Subscription._meta.concrete_fields]
_SCHEDULED = ("schedule_id", "scheduled_at", "scheduled_price_id", "scheduled_quantity")
_RULES_OF_A_PLAN = ("id", "type", "grace_days", "suspension_days", "terms_in")

# Nothing in it is read but by a key.
_KNOWN = f"""
    WITH sold AS MATERIALIZED (
        SELECT stripe_price_id, plan_price_id, slot_pack_id FROM stripe_prices
         WHERE stripe_price_id = ANY(%(prices)s::text[])
    ), whose AS MATERIALIZED (
        SELECT subscriber_id AS tenant_id FROM djstripe_customer WHERE id = %(customer)s
    ), trial AS MATERIALIZED (
        SELECT s.id FROM whose JOIN subscriptions AS s ON s.tenant_id = whose.tenant_id
         WHERE s.type = '{Type.TRIAL}' AND s.status <> '{Status.EXPIRED}'
           AND NOT EXISTS (SELECT FROM stripe_links WHERE subscription_id = s.id)
         ORDER BY s.id LIMIT 1
    ), main AS MATERIALIZED (
        SELECT s.id, s.term_end, s.cancel_at_term_end OR NOT s.auto_renews AS ends
          FROM whose JOIN subscriptions AS s ON s.tenant_id = whose.tenant_id
         WHERE s.type = '{Type.MAIN}' AND s.status <> '{Status.EXPIRED}' LIMIT 1
    ), checkout AS MATERIALIZED (
        SELECT c.state, renewed.id AS renews_id  -- what is over cannot go on: what was paid for begins anew
          FROM stripe_checkouts AS c JOIN whose ON whose.tenant_id = c.tenant_id
          LEFT JOIN subscriptions AS renewed ON renewed.id = c.renews_id AND renewed.status <> '{Status.EXPIRED}'
         WHERE c.id = %(checkout)s
    ), link AS MATERIALIZED (
        SELECT * FROM stripe_links WHERE stripe_subscription_id = %(link)s
    ), ours AS MATERIALIZED (
        SELECT s.* FROM link JOIN subscriptions AS s ON s.id = coalesce(link.subscription_id, (
            SELECT renews_id FROM checkout
             WHERE %(has_begun)s AND NOT EXISTS (SELECT FROM stripe_links WHERE subscription_id = renews_id)))
    ), family AS MATERIALIZED (
        SELECT id FROM ours UNION SELECT addon.id FROM ours JOIN subscriptions AS addon ON addon.parent_id = ours.id
        UNION SELECT id FROM trial
    ), plans_sold AS MATERIALIZED (
        SELECT sold.stripe_price_id, price.id AS price_id, plans.*
          FROM sold JOIN plan_prices AS price ON price.id = sold.plan_price_id JOIN plans ON plans.id = price.plan_id
    )
    SELECT link.applied_ticket, {", ".join(f"link.{name}" for name in _SCHEDULED)},
           (SELECT tenant_id FROM whose LIMIT 1), (SELECT id FROM trial),
           (SELECT id FROM main), (SELECT term_end FROM main), (SELECT ends FROM main),
           EXISTS (SELECT FROM plan_slots WHERE plan_id IN (SELECT id FROM plans_sold))
           OR EXISTS (SELECT FROM plan_features WHERE plan_id IN (SELECT id FROM plans_sold))
           OR EXISTS (SELECT FROM tier_allocations AS a JOIN family ON family.id = a.subscription_id WHERE a.is_open)
           OR EXISTS (SELECT FROM subscription_features AS f JOIN family ON family.id = f.subscription_id)
           OR EXISTS (SELECT FROM sold WHERE slot_pack_id IS NOT NULL),
           (SELECT jsonb_agg(jsonb_build_array(stripe_price_id, price_id, {", ".join(_RULES_OF_A_PLAN)}))
              FROM plans_sold),
           (SELECT jsonb_object_agg(stripe_price_id, slot_pack_id) FROM sold WHERE slot_pack_id IS NOT NULL),
           (SELECT jsonb_agg(jsonb_build_array(pack_id, quantity)) FROM subscription_packs
             WHERE subscription_id = link.subscription_id),
           (SELECT array_agg(aspect) FROM stripe_tellings
             WHERE link_id = link.stripe_subscription_id AND state <> '{Telling.State.DONE}'),
           EXISTS (SELECT FROM ours JOIN subscriptions AS addon ON addon.parent_id = ours.id
                     JOIN stripe_links AS its ON its.subscription_id = addon.id),
           (SELECT state FROM checkout),
           {", ".join(f"ours.{column}" for column in _COLUMNS)}
      FROM link LEFT JOIN ours ON true"""


def known_of(state: Wanted) -> Known:
    """All that converging needs to know, in one statement. No lock here: finishing notices who was overtaken."""
    coming = [price_id for price_id, _ in state.coming.items] if state.coming else []
    parameters: dict[str, Any] = {
        "link": state.stripe_subscription_id,
        "customer": state.customer_id,
        "checkout": state.checkout_id or 0,
        "has_begun": state.status not in (None, Status.EXPIRED),  # a renewal never paid leaves ours as it is
        "prices": [*{*(item.price_id for item in state.items), *coming}],
    }
    with connection.cursor() as cursor:
        cursor.execute(_KNOWN, parameters)
        row = cursor.fetchone()
    applied_ticket, *scheduled = row[:5]
    tenant_id, trial_id, main_id, main_end, main_ends, has_slots = row[5:11]
    plans, packs, packs_held, untold, has_addons, checkout = row[11:17]
    columns = row[17:]
    return Known(
        subscription=Subscription.from_db(None, _COLUMNS, columns) if columns[0] else None,
        applied_ticket=applied_ticket,
        tenant_id=tenant_id,
        trial_id=trial_id,
        main=(main_id, main_end) if main_id else None,
        main_ends=bool(main_ends),
        has_addons_at_stripe=has_addons,
        has_slots=has_slots,
        prices={
            stripe_price: PlanPrice(pk=price, plan=Plan(**dict(zip(_RULES_OF_A_PLAN, rules, strict=True))))
            for stripe_price, price, *rules in json.loads(plans or "[]")
        },
        packs=json.loads(packs or "{}"),
        packs_held=dict(json.loads(packs_held or "[]")),
        untold=frozenset(untold or ()),
        checkout_is_open=checkout == Checkout.State.OPEN,
        scheduled=Scheduled(*scheduled),
    )
