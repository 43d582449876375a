-- 1,000,000 subscriptions of 800,000 tenants: 800,000 MAIN and 200,000 ADDON, in ten groups of 100,000 scattered over the
-- tables. Group g's terms end g hours into February 2026, a tenth of them each minute; a family is all of one minute.
INSERT INTO plans (code, name, type, grace_days, suspension_days, is_sold, terms_in)
SELECT 'bench-' || kind || '-' || n, 'Bench', kind, CASE n WHEN 0 THEN NULL ELSE 14 END, NULL, true, 'utc'
  FROM unnest(ARRAY['MAIN', 'ADDON']) AS kind, generate_series(0, 2) AS n;

INSERT INTO tenants (slug, name, billing_email, contact_email, time_zone)
SELECT 'bench-' || n, 'Bench ' || n, 'billing@bench.example', '', 'UTC' FROM generate_series(0, 799999) AS n;

CREATE TEMPORARY TABLE born AS
SELECT n, family, (family::bigint * 7919 / 13) % 10 AS of_group, n >= 800000 AS is_addon
  FROM generate_series(0, 999999) AS n,
       LATERAL (SELECT CASE WHEN n < 800000 THEN n ELSE (n - 800000) * 4 + 1 END AS family) AS f;

INSERT INTO subscriptions (id, number, tenant_id, parent_id, plan_id, type, status, term_start, term_end, anniversary,
                           time_zone, term_deadline, on_hold, own_hold, auto_renews, cancel_at_term_end, end_reason,
                           version)
SELECT born.n + 1, 'SUB-B' || born.n, tenants.id, CASE WHEN is_addon THEN family + 1 END, plans.id, plans.type, 'ACTIVE',
       '2026-01-01Z', at, '2026-01-01Z', 'UTC', at, false, false, false, false, '', 1
  FROM born CROSS JOIN LATERAL (SELECT timestamptz '2026-02-01Z' + of_group * interval '1 hour'
                                   + family / 100 % 10 * interval '5 minutes' AS at) AS a
  JOIN tenants ON tenants.slug = 'bench-' || family
  JOIN plans ON plans.code = 'bench-' || CASE WHEN is_addon THEN 'ADDON' ELSE 'MAIN' END || '-' || born.n % 3
 ORDER BY born.n;
SELECT setval(pg_get_serial_sequence('subscriptions', 'id'), 1000001);

INSERT INTO subscription_audit (subscription_id, tenant_id, version, action, effective_at, actor, source_id, reason,
                                changes, transaction_id)
SELECT id, tenant_id, 1, 'started', term_start, 'staff:1', '', 'bench', '{"status": [null, "ACTIVE"]}', 1
  FROM subscriptions ORDER BY id;

DROP TABLE born;
