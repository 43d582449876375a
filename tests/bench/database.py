"""A migrated database of the benchmark's own on the server that DATABASE_URL names; dropped at the end."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from billing_site.local.process import CHECKOUT, module


@contextmanager
def scratch_database() -> Iterator[str]:
    """Its URL."""
    given = os.environ["DATABASE_URL"]
    name = f"bench_{os.getpid()}"
    url = urlunsplit(urlsplit(given)._replace(path=f"/{name}"))
    with psycopg.connect(given, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            env = dict(os.environ) | {"DATABASE_URL": url}
            subprocess.run(module("django", "migrate", "--verbosity", "0"), env=env, cwd=CHECKOUT, check=True)
            yield url
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
