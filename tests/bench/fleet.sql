-- Tenants `fleet-1`, `fleet-2`, … as the table `fleet` says: one main subscription each, that serves from 2026 on and has
-- slots of three tiers; and their devices `<tenant>-<number>`, each in a slot, the tiers in turns. Every tier has six
-- features, every plan as well.
INSERT INTO plans (code, name, type, grace_days, suspension_days, is_sold, terms_in)
VALUES ('fleet', 'Fleet', 'MAIN', 14, NULL, true, 'utc');

INSERT INTO device_tiers (code, name, position, is_default)
SELECT code, initcap(code), place, place = 1
  FROM unnest(ARRAY['basic', 'standard', 'premium']) WITH ORDINALITY AS tier (code, place);
INSERT INTO features (code, name, kind)
SELECT 'feature-' || n, 'Feature ' || n, CASE WHEN n <= 4 THEN 'SWITCH' ELSE 'QUOTA' END FROM generate_series(1, 6) AS n;
INSERT INTO tier_features (tier_id, feature_id, amount)
SELECT tier.id, feature.id, CASE feature.kind WHEN 'SWITCH' THEN 1 ELSE 1000 * tier.position END
  FROM device_tiers AS tier, features AS feature;
INSERT INTO plan_features (plan_id, feature_id, amount)
SELECT plans.id, feature.id, CASE feature.kind WHEN 'SWITCH' THEN 1 ELSE 1000000 END FROM plans, features AS feature;

INSERT INTO tenants (id, slug, name, billing_email, contact_email, time_zone)
SELECT place, 'fleet-' || place, 'Fleet ' || place, 'billing@fleet.example', '', 'UTC' FROM fleet;
SELECT setval(pg_get_serial_sequence('tenants', 'id'), max(place)) FROM fleet;

INSERT INTO subscriptions (id, number, tenant_id, plan_id, type, status, term_start, term_end, anniversary, time_zone,
                           term_deadline, on_hold, own_hold, auto_renews, cancel_at_term_end, end_reason, version)
SELECT place, 'SUB-F' || place, place, plans.id, 'MAIN', 'ACTIVE', '2026-01-01Z', '2099-01-01Z', '2026-01-01Z', 'UTC',
       '2099-01-01Z', false, false, false, false, '', 1
  FROM fleet, plans ORDER BY place;
SELECT setval(pg_get_serial_sequence('subscriptions', 'id'), max(place)) FROM fleet;

INSERT INTO devices (tenant_id, device_id, transaction_id)
SELECT place, 'fleet-' || place || '-' || n, 1 FROM fleet, generate_series(1, fleet.devices) AS n ORDER BY n, place;

INSERT INTO tier_allocations (subscription_id, tenant_id, tier_id, slot_limit, slots_used, is_open)
SELECT place, place, tier.id, 10000000, (fleet.devices + 3 - tier.position) / 3, true FROM fleet, device_tiers AS tier
 ORDER BY place, tier.position;
INSERT INTO slot_assignments (allocation_id, tier_id, device_id, tenant_id, assigned_at, assigned_by, source_id, reason,
                              released_by, ended, end_reason)
SELECT a.id, a.tier_id, d.id, d.tenant_id, '2026-01-02Z', 'apikey:1', '', '', '', '', ''
  FROM (SELECT *, row_number() OVER (PARTITION BY tenant_id ORDER BY id) AS n FROM devices) AS d
  JOIN device_tiers AS tier ON tier.position = (d.n - 1) % 3 + 1
  JOIN tier_allocations AS a ON a.tenant_id = d.tenant_id AND a.tier_id = tier.id;

INSERT INTO subscription_audit (subscription_id, tenant_id, version, action, effective_at, actor, source_id, reason,
                                changes, transaction_id)
SELECT s.id, s.tenant_id, 1, 'started', s.term_start, 'staff:1', '', 'bench',
       '{"status": [null, "ACTIVE"]}' ||
       (SELECT jsonb_object_agg('slots.' || tier.code, jsonb_build_array(0, a.slot_limit))
          FROM tier_allocations AS a JOIN device_tiers AS tier ON tier.id = a.tier_id WHERE a.subscription_id = s.id), 1
  FROM subscriptions AS s ORDER BY s.id;
