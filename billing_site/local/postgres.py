"""An embedded PostgreSQL that the application uses as a plain role, exactly as it would in production."""

import json
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import psycopg
from psycopg import sql

from billing_site.local import ports
from billing_site.local.environment import write_privately
from billing_site.local.postgres_place import Place
from billing_site.local.process import Process, stop_leftover

ROLE = DATABASE = "termkeeper"
_CONFIGURATION = {
    "listen_addresses": ports.LOCALHOST,
    "unix_socket_directories": "",  # a deep checkout would pass the 107 bytes a socket path may have
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "scram_iterations": "64",  # random passwords gain nothing from slow hashing; every new connection pays for it
}


class Postgres:
    """A server whose cluster lives in ``directory``; data stay there from one start to the next.

    ``url`` names the plain role ``termkeeper`` and its own database: neither superuser nor exempt from row security.
    ``may_create_databases`` is for test runs, which make their own; ``configuration`` is added to what we always set.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        may_create_databases: bool = False,
        log: Path | None = None,
        pid_file: Path | None = None,
        configuration: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.directory = directory.resolve()
        self.configuration = {**_CONFIGURATION, **configuration}
        self.may_create_databases = may_create_databases
        self.port = ports.free(port)
        self._pid_file = pid_file or self.directory / "postgres.json"
        self.process = Process(
            "postgres",
            [],
            log=log or self.directory / "postgres.log",
            env=_plain_environment(),
            cwd=Path("/"),
            pid_file=self._pid_file,
            stop_signal=signal.SIGINT,  # "fast": roll back, disconnect, write a checkpoint
            patience_seconds=20,
        )

    @property
    def url(self) -> str:
        return f"postgres://{ROLE}:{self._passwords[ROLE]}@{ports.LOCALHOST}:{self.port}/{DATABASE}"

    @property
    def superuser_url(self) -> str:
        """For looking in from outside. Never for the application: row security does not apply to it."""
        return f"postgres://postgres:{self._passwords['postgres']}@{ports.LOCALHOST}:{self.port}/{DATABASE}"

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        stop_leftover(self._pid_file)
        place = Place(self.directory)
        self._passwords = _passwords(self.directory / "passwords.json")
        if not (place.cluster / "PG_VERSION").exists():
            _initialise(place, self._passwords["postgres"], self.process.log)
        self.process.user = place.user
        self.process.argv = [place.program("postgres"), "-D", str(place.cluster), "-p", str(self.port)]
        for name, value in self.configuration.items():
            self.process.argv += ["-c", f"{name}={value}"]
        self.process.start()
        self.process.wait_ready(self._accepts, seconds=60)
        try:
            self._give_the_application_its_role()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Safe to repeat; ``start`` afterwards finds the same data on the same port."""
        self.process.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            host=ports.LOCALHOST,
            port=self.port,
            user="postgres",
            password=self._passwords["postgres"],
            dbname="postgres",
            connect_timeout=5,
            autocommit=True,
        )

    def _accepts(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _give_the_application_its_role(self) -> None:
        role, database = sql.Identifier(ROLE), sql.Identifier(DATABASE)
        createdb = sql.SQL("CREATEDB" if self.may_create_databases else "NOCREATEDB")
        with self._connect() as connection:
            if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [ROLE]).rowcount:
                connection.execute(sql.SQL("CREATE ROLE {}").format(role))
            connection.execute(
                sql.SQL("ALTER ROLE {} LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE {} PASSWORD {}").format(
                    role, createdb, sql.Literal(self._passwords[ROLE])
                )
            )
            if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).rowcount:
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, role))


def _initialise(place: Place, password: str, log: Path) -> None:
    """Make an empty cluster. It gets its name when it is complete: being interrupted leaves nothing half made."""
    unfinished = place.cluster.with_name("cluster.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    place.hand_over(unfinished)
    with tempfile.NamedTemporaryFile("w") as password_file:
        password_file.write(password)
        password_file.flush()
        place.hand_over(Path(password_file.name))
        where = [place.program("initdb"), "-D", str(unfinished), "-U", "postgres", "--pwfile", password_file.name]
        what = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8"]
        env = _plain_environment()
        Process("initdb", where + what, log=log, env=env, cwd=Path("/"), user=place.user).finish(seconds=120)
    unfinished.rename(place.cluster)


def _passwords(path: Path) -> dict[str, str]:
    if not path.exists():
        write_privately(path, json.dumps({name: secrets.token_hex(24) for name in ("postgres", ROLE)}))
    found: dict[str, str] = json.loads(path.read_text())
    return found


def _plain_environment() -> dict[str, str]:
    """Without PG* variables, which initdb and postgres would obey, and with messages the code can rely on."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
