"""dj-stripe's migrations, with a short cut for databases that have none of them yet.

Used through ``MIGRATION_MODULES = {"djstripe": "webhooks.djstripe_migrations"}``. ``__path__`` also holds upstream's
directory, so Django finds upstream's migrations and ours together. ``0001_squashed`` replaces upstream's first three:
a fresh database runs only ours (seconds instead of minutes), one that has applied all three sees ours as applied, and
one that has applied some goes on with upstream's.

Upgrading dj-stripe needs nothing done here: a new upstream migration runs after ours. Do not name ``0001_squashed``
in another app's ``dependencies``; name upstream's (``("djstripe", "0003_2_11")``), which stay when ours is written
anew. ``tests/test_djstripe_migrations.py`` holds all of this.

Write ours anew, replacing every migration upstream has by then, only when a fresh ``migrate`` has become slow again,
or when a test says that upstream changed a migration it had released::

    python -m webhooks.djstripe_migrations._generate
    python -m webhooks.djstripe_migrations._generate --check-schema

The second line builds the tables both ways in two temporary PostgreSQL databases (about a minute and a half, and a
role that may CREATE DATABASE) and compares them.
"""

from djstripe import migrations as upstream

__path__.extend(upstream.__path__)
