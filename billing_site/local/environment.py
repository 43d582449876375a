"""What the application finds in its environment when it runs on somebody's own machine.

A variable that is set where the command was typed always wins; an empty one counts as unset, as in the settings.
"""

import fcntl
import json
import os
import secrets
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from billing_site.local import ports
from billing_site.local.process import CHECKOUT

LOCAL = CHECKOUT / ".local"
DEMO = LOCAL / "demo"

FOR_RUNS = {
    "DJANGO_SETTINGS_MODULE": "billing_site.settings",
    "SECRET_KEY": "only-for-runs-on-a-developers-machine-0123456789abcdef",
    "DEBUG": "0",
    "ALLOWED_HOSTS": "127.0.0.1,localhost,testserver",
    "STRIPE_SECRET_KEY": "sk_test_local",
    "STRIPE_PUBLISHABLE_KEY": "pk_test_local",
    "STRIPE_WEBHOOK_SECRET": "whsec_local",
    "STRIPE_API_BASE": "http://127.0.0.1:12111",
    "STRIPE_LIVE_MODE": "0",
    "EMAIL_URL": "smtp://127.0.0.1:1025",
    "DEFAULT_FROM_EMAIL": "Termkeeper <billing@termkeeper.example>",
    "CHECKOUT_ALLOWED_HOSTS": "127.0.0.1,localhost,testserver",
}
"""For ``run``: enough to import the settings and to run the tests; nothing in it is a secret."""


CONTRACT = (
    *("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "DEBUG", "ALLOWED_HOSTS", "EMAIL_URL", "DEFAULT_FROM_EMAIL"),
    *("STRIPE_SECRET_KEY", "STRIPE_PUBLISHABLE_KEY", "STRIPE_WEBHOOK_SECRET", "STRIPE_API_BASE", "STRIPE_LIVE_MODE"),
    *("GRACE_DAYS", "SUSPENSION_DAYS", "SETTLEMENT_HOURS", "NOTICE_DAYS", "LIFECYCLE_INTERVAL_SECONDS"),
    *("INBOX_SWEEP_SECONDS", "INBOX_LEASE_SECONDS"),
    *("CHECKOUT_ALLOWED_HOSTS", "DJANGO_SETTINGS_MODULE", "PORT", "DEMO_URL", "DEMO_MAIL_URL", "DEMO_STRIPE_URL"),
)
"""The variables that the demo writes down for a shell beside it."""


def given() -> dict[str, str]:
    """The environment as it came, without what is set to nothing; our interpreter's programs are found first."""
    programs = str(Path(sys.executable).parent)
    return {name: value for name, value in os.environ.items() if value} | {
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)])
    }


class Remembered:
    """Secrets and ports that the demo chose once and keeps, so that links, logins and cookies outlive a restart."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._chosen: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}

    def secret(self, name: str, prefix: str = "") -> str:
        if name not in self._chosen:
            self._keep(name, prefix + secrets.token_hex(24))
        return self._chosen[name]

    def port(self, name: str, default: int = 0) -> int:
        """The port of last time, else the default, else a free one."""
        port = ports.free(int(self._chosen.get(name, default)))
        self._keep(name, str(port))
        return port

    def _keep(self, name: str, value: str) -> None:
        self._chosen[name] = value
        write_privately(self.path, json.dumps(self._chosen, indent=2))


def for_demo(web_port: int, remembered: Remembered) -> dict[str, str]:
    """What the demo's processes share, but for the addresses of servers that are still to be started."""
    return {
        "DJANGO_SETTINGS_MODULE": "billing_site.settings",
        "DEBUG": "0",
        "SECRET_KEY": remembered.secret("SECRET_KEY"),
        "ALLOWED_HOSTS": "127.0.0.1,localhost",
        "STRIPE_SECRET_KEY": remembered.secret("STRIPE_SECRET_KEY", "sk_test_"),
        "STRIPE_PUBLISHABLE_KEY": remembered.secret("STRIPE_PUBLISHABLE_KEY", "pk_test_"),
        "STRIPE_WEBHOOK_SECRET": remembered.secret("STRIPE_WEBHOOK_SECRET", "whsec_"),
        "STRIPE_LIVE_MODE": "0",
        "DEFAULT_FROM_EMAIL": "Termkeeper <billing@termkeeper.example>",
        "LIFECYCLE_INTERVAL_SECONDS": "15",
        "CHECKOUT_ALLOWED_HOSTS": f"127.0.0.1,localhost,127.0.0.1:{web_port},localhost:{web_port}",
    }


def write(path: Path, environment: dict[str, str]) -> None:
    """What of it is ours, as a file that a shell can read: ``set -a; . .local/demo/env``."""
    lines = [f"{name}={shlex.quote(environment[name])}" for name in CONTRACT if name in environment]
    write_privately(path, "\n".join(lines) + "\n")


def read(path: Path) -> dict[str, str]:
    pairs = (shlex.split(line)[0].partition("=") for line in path.read_text().splitlines())
    return {name: value for name, _, value in pairs}


def write_privately(path: Path, text: str) -> None:
    """Readable for nobody else at any moment."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.unlink(missing_ok=True)
    with open(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)
    unfinished.replace(path)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock if nobody else does. The kernel lets go of it when we die, however we die."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
