"""Which request a change came by, and seals over the audit that only grow, like the audit itself."""

from django.db import migrations, models

ONLY_GROW = """
CREATE FUNCTION audit_seals_only_grow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_seals is append-only: % is refused', TG_OP
        USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'seals_only_grow';
END $$;
CREATE TRIGGER seals_only_grow BEFORE UPDATE OR DELETE ON audit_seals
    FOR EACH STATEMENT EXECUTE FUNCTION audit_seals_only_grow();
CREATE TRIGGER seals_are_never_emptied BEFORE TRUNCATE ON audit_seals
    FOR EACH STATEMENT EXECUTE FUNCTION audit_seals_only_grow();
"""


class Migration(migrations.Migration):

    dependencies = [
        ('subscriptions', '0004_indexes_that_are_read'),
    ]

    operations = [
        migrations.CreateModel(
            name='AuditSeal',
            fields=[
                ('number', models.BigIntegerField(help_text='1, 2, 3, … without a gap.', primary_key=True, serialize=False)),
                ('era', models.BigIntegerField(help_text='The number of the first seal since transactions were last counted anew: a restore begins an era.')),
                ('cluster', models.BigIntegerField(help_text='The database cluster that counted the transactions; empty for what was found restored.', null=True)),
                ('after_transaction_id', models.BigIntegerField(help_text='The range begins after this place…')),
                ('after_id', models.BigIntegerField()),
                ('until_transaction_id', models.BigIntegerField(help_text='…and ends with this one: both are of their era.')),
                ('until_id', models.BigIntegerField()),
                ('greatest_id', models.BigIntegerField(help_text='The greatest id of an entry sealed in this era so far.')),
                ('count', models.PositiveIntegerField(help_text='How many entries.')),
                ('entries', models.BinaryField(help_text='For each entry, in order: its id (8 bytes) and its digest (32).')),
                ('salt', models.BinaryField(help_text='Makes the nonces, so that nobody can guess an entry from its digest.')),
                ('sealed_at', models.DateTimeField()),
                ('previous', models.CharField(help_text='The digest of the seal before; zeros in the first.', max_length=64)),
                ('digest', models.CharField(help_text='SHA-256 over all of this but the salt.', max_length=64)),
            ],
            options={
                'db_table': 'audit_seals',
                'ordering': ['number'],
            },
        ),
        migrations.AddField(
            model_name='auditentry',
            name='address',
            field=models.GenericIPAddressField(blank=True, help_text='Where that request came from.', null=True),
        ),
        migrations.AddField(
            model_name='auditentry',
            name='request_id',
            field=models.CharField(blank=True, db_default='', default='', help_text='The web request that caused it, if one did.', max_length=64),
        ),
        migrations.AddIndex(
            model_name='auditentry',
            index=models.Index(condition=models.Q(('source_id', ''), _negated=True), fields=['source_id'], name='audit_by_source'),
        ),
        migrations.AddConstraint(
            model_name='auditseal',
            constraint=models.UniqueConstraint(fields=('previous',), name='a_seal_is_followed_by_one'),
        ),
        migrations.AddConstraint(
            model_name='auditseal',
            constraint=models.CheckConstraint(condition=models.Q(('count__gt', 0)), name='a_seal_has_entries'),
        ),
        migrations.RunSQL(ONLY_GROW, "DROP FUNCTION audit_seals_only_grow CASCADE"),
    ]
