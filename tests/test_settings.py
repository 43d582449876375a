"""A missing or malformed setting is one clear line at start-up. Each in a process of its own, as it would start."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHECK = [sys.executable, "manage.py", "check"]
ONLY_SETTINGS = [sys.executable, "-c", "import billing_site.settings"]

MALFORMED = {
    "SECRET_KEY": ["short"],
    "DEBUG": ["perhaps", "2"],
    "DATABASE_URL": ["nonsense", "mysql://u:p@h/d", "postgres://u:p@h:port/d", "sqlite:///db"],
    "DATABASE_PREPARES": ["perhaps"],
    "REDIS_URL": ["nonsense", "http://127.0.0.1"],
    "STRIPE_API_BASE": ["api.stripe.com"],
    "STRIPE_LIVE_MODE": ["maybe"],
    "STRIPE_AUTOMATIC_TAX": ["maybe"],
    "EMAIL_URL": ["nonsense", "pigeon://coop", "smtp://host:port"],
    "DEFAULT_FROM_EMAIL": ["nobody"],
    "GRACE_DAYS": ["-1", "1.5", "two", "3651"],
    "SUSPENSION_DAYS": ["-1", "x"],
    "SETTLEMENT_HOURS": ["-1", "x"],
    "NOTICE_DAYS": ["0", "30,x", "-7", ","],
    "LIFECYCLE_INTERVAL_SECONDS": ["0", "-1", "nan", "inf", "x"],
    "INBOX_SWEEP_SECONDS": ["0", "x"],
    "INBOX_LEASE_SECONDS": ["0", "x"],
    "SNAPSHOT_KEYS": ["c2hvcnQ", "not a key", ",", f"{'A' * 43},{'A' * 43}"],
    "SNAPSHOT_SECONDS": ["0", "-1", "1.5", "x", "86401"],
}
REQUIRED = ["SECRET_KEY", "DATABASE_URL", "REDIS_URL"]


def started(command: list[str], **environment: str) -> tuple[int, str]:
    """Exit code and what it said on standard error."""
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr.strip()


def refuses(said: tuple[int, str], name: str, why: str) -> None:
    assert said == (1, f"Termkeeper cannot start: {name} {why} (see .env.example)")


# Each case in a child of one process that has Django imported already: thirty starts from nothing would take a minute.
FORKING = """
import json, os, sys
import django.urls, environ
for name, value in json.load(sys.stdin):
    read, write = os.pipe()
    if not (child := os.fork()):
        os.dup2(write, 2)
        os.environ[name] = value
        import billing_site.settings
        sys.exit(0)
    os.close(write)
    said = open(read).read()
    print(json.dumps([name, value, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said]))
"""


def test_every_malformed_variable_is_one_line_that_names_it_and_not_its_value() -> None:
    cases = [(name, value) for name, values in MALFORMED.items() for value in values]
    done = subprocess.run(
        [sys.executable, "-u", "-c", FORKING],
        input=json.dumps(cases),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(cases)
    for name, value, code, said in found:
        why = r"(is malformed|has a value that is not allowed)"
        assert re.fullmatch(rf"Termkeeper cannot start: {name} {why} \(see \.env\.example\)\n", said), (
            name,
            value,
            said,
        )
        assert code == 1, (name, value)


def test_every_missing_variable_is_one_line_that_names_it() -> None:
    for name in REQUIRED:
        refuses(started(ONLY_SETTINGS, **{name: ""}), name, "is not set")


@pytest.mark.parametrize(
    "command",
    [
        CHECK,
        [sys.executable, "manage.py", "advance_subscriptions"],
        [sys.executable, "-m", "gunicorn", "--check-config", "billing_site.wsgi:application"],
        [sys.executable, "-c", "import billing_site.celery as c; c.app.finalize(); c.app.conf.broker_url"],
    ],
    ids=["manage.py", "a command", "gunicorn", "celery"],
)
def test_every_way_to_start_says_the_same_line(command: list[str]) -> None:
    code, said = started(command, DATABASE_URL="")
    assert code != 0
    assert "Termkeeper cannot start: DATABASE_URL is not set (see .env.example)" in said.splitlines()
    assert "Traceback" not in said


def test_what_is_well_formed_starts() -> None:
    given = {name: "" for name in MALFORMED if name not in REQUIRED}
    assert started(ONLY_SETTINGS, **given) == (0, "")


# --- .env.example ----------------------------------------------------------------------------------------------------


def read_by_the_settings() -> set[str]:
    return {
        str(node.args[0].value)
        for node in ast.walk(ast.parse((ROOT / "billing_site" / "settings.py").read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "read"
        if isinstance(node.args[0], ast.Constant)
    }


def read_by_compose() -> set[str]:
    return set(re.findall(r"(?<!\$)\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))


def explained() -> dict[str, tuple[str, str]]:
    """Name → its example value and the comment above it."""
    found, comment = {}, ""
    for line in (ROOT / ".env.example").read_text().splitlines():
        if variable := re.fullmatch(r"#?([A-Z_]+)=(.*)", line):
            found[variable[1]] = (variable[2], comment)
        else:
            comment = line
    return found


def test_every_variable_is_explained_and_nothing_else() -> None:
    assert set(explained()) == read_by_the_settings() | read_by_compose()
    for name, (_, comment) in explained().items():
        assert re.match(r"# \w.{15,}\.$", comment), name


def test_the_shown_defaults_are_the_defaults() -> None:
    """A process with the file's values says what one without them says."""
    shown = {name: value for name, (value, _) in explained().items() if value and name in read_by_the_settings()}
    constants = sorted({*shown} - {"EMAIL_URL"})
    script = f"import billing_site.settings as s; print([getattr(s, n) for n in {constants}], s.EMAIL['EMAIL_BACKEND'])"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with_them, without = (
        subprocess.run(
            [sys.executable, "-c", script],
            env=env | {name: value if given else "" for name, value in shown.items()},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for given in (True, False)
    )
    assert with_them == without
