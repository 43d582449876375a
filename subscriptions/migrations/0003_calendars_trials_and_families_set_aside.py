"""Terms in a calendar, one trial per tenant, an add-on's own hold, families that the clock sets aside."""

import django.db.models.deletion
from django.db import migrations, models

import subscriptions.models
from subscriptions.migrations._evidence import evidence

TRACKED = (
    "type", "status", "plan_id", "price_id", "term_start", "term_end", "anniversary", "time_zone", "term_deadline",
    "grace_end", "suspension_end", "on_hold", "own_hold", "auto_renews", "cancel_at_term_end", "ended_at",
    "end_reason",
)  # fmt: skip

FORMER = tuple(column for column in TRACKED if column not in ("anniversary", "time_zone", "own_hold"))

# What was sold before has its first term's beginning as its anniversary, and trials are counted as they began.
BACKFILL = """
UPDATE subscriptions AS s
   SET anniversary = coalesce((entry.changes->'term_start'->>1)::timestamptz, s.term_start)
  FROM subscription_audit AS entry WHERE entry.subscription_id = s.id AND entry.version = 1;
UPDATE subscriptions SET anniversary = term_start WHERE anniversary IS NULL;
UPDATE subscriptions AS s SET trial_ordinal = trial.ordinal
  FROM (SELECT subscription_id AS id, row_number() OVER (PARTITION BY tenant_id ORDER BY subscription_id) AS ordinal
          FROM subscription_audit WHERE version = 1 AND changes->'type'->>1 = 'TRIAL') AS trial
 WHERE trial.id = s.id;
SET CONSTRAINTS ALL IMMEDIATE;
"""

# A name that no clock knows would stop the sweep of its family: refused where it is written.
TIME_ZONES = """
ALTER TABLE subscriptions ADD CONSTRAINT its_time_zone_is_known
    CHECK ((time_zone = 'UTC' OR time_zone LIKE '%/%')
           AND (timestamptz '2026-01-01 00:00+00' AT TIME ZONE time_zone) IS NOT NULL);
ALTER TABLE tenants ADD CONSTRAINT a_tenants_time_zone_is_known
    CHECK ((time_zone = 'UTC' OR time_zone LIKE '%/%')
           AND (timestamptz '2026-01-01 00:00+00' AT TIME ZONE time_zone) IS NOT NULL);
"""

NO_TIME_ZONES = """
ALTER TABLE subscriptions DROP CONSTRAINT its_time_zone_is_known;
ALTER TABLE tenants DROP CONSTRAINT a_tenants_time_zone_is_known;
"""

IDENTITY = """
DROP TRIGGER identity_never_changes ON subscriptions;
CREATE TRIGGER identity_never_changes BEFORE UPDATE ON subscriptions FOR EACH ROW
    WHEN ((OLD.id, OLD.number, OLD.tenant_id, OLD.parent_id, OLD.trial_ordinal)
          IS DISTINCT FROM (NEW.id, NEW.number, NEW.tenant_id, NEW.parent_id, NEW.trial_ordinal))
    EXECUTE FUNCTION subscriptions_keep_their_identity();
"""

FORMER_IDENTITY = IDENTITY.replace(", OLD.trial_ordinal", "").replace(", NEW.trial_ordinal", "")


class Migration(migrations.Migration):

    dependencies = [
        ('subscriptions', '0002_evidence'),
    ]

    operations = [
        migrations.CreateModel(
            name='SetAside',
            fields=[
                ('root', models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, primary_key=True, related_name='set_aside', serialize=False, to='subscriptions.subscription')),
                ('error', models.TextField(help_text='Why its last step failed, as the database said it.')),
                ('since', models.DateTimeField()),
                ('retry_at', models.DateTimeField()),
            ],
            options={
                'verbose_name': 'family set aside',
                'verbose_name_plural': 'families set aside',
                'db_table': 'families_set_aside',
                'ordering': ['since'],
            },
        ),
        migrations.AlterModelOptions(
            name='subscription',
            options={'ordering': ['-id'], 'permissions': [('grant_another_trial', 'Can grant a tenant another trial')]},
        ),
        migrations.RemoveIndex(
            model_name='subscription',
            name='subscriptions_due',
        ),
        migrations.AddField(
            model_name='plan',
            name='terms_in',
            field=models.CharField(choices=[('utc', 'UTC'), ('calendar', "The tenant's calendar")], default='utc', help_text='Whose days and months count.', max_length=16),
        ),
        migrations.AddField(
            model_name='subscription',
            name='anniversary',
            field=models.DateTimeField(null=True, help_text='Every term ends on its day of the month and time of day: the first term_start, or where a term was moved to.'),
        ),
        migrations.AddField(
            model_name='subscription',
            name='own_hold',
            field=models.BooleanField(default=False, help_text="An add-on's own hold: it stays when that of its main subscription is lifted."),
        ),
        migrations.AddField(
            model_name='subscription',
            name='time_zone',
            field=models.CharField(default='UTC', help_text='Where its days and months are counted; fixed when it was sold.', max_length=63),
        ),
        migrations.AddField(
            model_name='subscription',
            name='trial_ordinal',
            field=models.PositiveSmallIntegerField(editable=False, help_text='1 for the first trial of the tenant; more where staff granted another.', null=True),
        ),
        migrations.AddField(
            model_name='tenant',
            name='time_zone',
            field=models.CharField(default='UTC', help_text="Whose midnights and months count where a plan's terms follow the tenant's calendar: Europe/Berlin.", max_length=63, validators=[subscriptions.models.known_time_zone]),
        ),
        migrations.AlterField(
            model_name='auditentry',
            name='action',
            field=models.CharField(choices=[('started', 'Started'), ('activated', 'Activated'), ('renewed', 'Renewed'), ('grace_started', 'Grace started'), ('suspended', 'Suspended'), ('hold_lifted', 'Hold lifted'), ('cancel_scheduled', 'Cancelled at term end'), ('cancel_undone', 'Cancellation undone'), ('expired', 'Expired'), ('amended', 'Term amended'), ('plan_changed', 'Plan changed'), ('grace_extended', 'Grace extended')], max_length=32),
        ),
        migrations.RunSQL(BACKFILL, migrations.RunSQL.noop),
        migrations.AlterField(
            model_name='subscription',
            name='anniversary',
            field=models.DateTimeField(help_text='Every term ends on its day of the month and time of day: the first term_start, or where a term was moved to.'),
        ),
        migrations.AddIndex(
            model_name='subscription',
            index=models.Index(condition=models.Q(('parent__isnull', True), ('cancel_at_term_end', True), _connector='OR'), fields=['next_deadline', 'id'], name='subscriptions_due'),
        ),
        migrations.AddConstraint(
            model_name='subscription',
            constraint=models.UniqueConstraint(condition=models.Q(('trial_ordinal__isnull', False)), fields=('tenant', 'trial_ordinal'), name='one_trial_per_tenant_unless_granted'),
        ),
        migrations.AddConstraint(
            model_name='subscription',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('type', 'TRIAL'), _negated=True), ('trial_ordinal__isnull', False), _connector='OR'), name='a_trial_is_counted'),
        ),
        migrations.AddConstraint(
            model_name='subscription',
            constraint=models.CheckConstraint(condition=models.Q(('own_hold', False), models.Q(('on_hold', True), ('parent__isnull', False)), _connector='OR'), name='only_an_addon_has_a_hold_of_its_own'),
        ),
        migrations.RunSQL(TIME_ZONES, NO_TIME_ZONES),
        migrations.RunSQL(IDENTITY, FORMER_IDENTITY),
        migrations.RunSQL(evidence(TRACKED), evidence(FORMER)),
    ]
