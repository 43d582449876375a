"""Which way imports point, who reads the clock and the environment, which jobs there are: read off the source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing_site import clock
from billing_site.celery import app

ROOT = Path(__file__).resolve().parent.parent

# What each part may import of the others. What is not named here imports nothing of ours.
MAY_IMPORT: dict[str, set[str]] = {
    "subscriptions": set(),
    "entitlements": {"subscriptions"},
    "webhooks": {"subscriptions", "entitlements"},
    "notifications": {"subscriptions"},
    "billing_site": {"subscriptions", "entitlements", "webhooks", "notifications"},
}
MAIL = {"smtplib", "email", "django.core.mail"}
STRIPE, ELSEWHERE = {"stripe", "djstripe"}, {"rest_framework", "drf_spectacular", "celery.app"}
EDGES = {"tasks.py", "commands", "api", "admin", "intake.py", "ops.py", "returning.py", "billing_pages"}
READS_THE_CLOCK = {"timezone.now", "datetime.now", "datetime.utcnow", "datetime.today", "date.today", "time.time"}
READS_THE_ENVIRONMENT = {"os.environ", "os.getenv", "os.environb"}
SIGNALS = {"django.db.models.signals", "django.dispatch", "django.core.signals", "djstripe.event_handlers"}


def modules(root: Path) -> Iterator[tuple[Path, ast.Module]]:
    """What runs: of every part, without migrations. Paths are relative to the root."""
    for part in MAY_IMPORT:
        for path in sorted((root / part).rglob("*.py")):
            if not any(folder.endswith("migrations") for folder in path.relative_to(root).parts):
                yield path.relative_to(root), ast.parse(path.read_text())


def imports(module: ast.Module, path: Path) -> set[str]:
    """What is imported anywhere in it, inside functions too: `a.b` and `a.b.c` for `from a.b import c`."""
    found: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*path.parts[: -node.level], *([node.module] if node.module else [])])
            name = base if node.level else node.module or ""
            found |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and names(node.func) in {
            "importlib.import_module",
            "import_module",
            "__import__",
        }:
            found |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def names(node: ast.AST) -> str:
    """`a.b.c` of an expression that is one."""
    if isinstance(node, ast.Attribute):
        return f"{names(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def violations(root: Path) -> list[str]:
    found = []
    for path, module in modules(root):
        part, imported = path.parts[0], imports(module, path)
        for name in sorted(imported):
            used = name.partition(".")[0]
            if used in MAY_IMPORT and used != part and used not in MAY_IMPORT[part]:
                found.append(f"{path} imports {used}")
            if part == "subscriptions" and within(name, MAIL | STRIPE | ELSEWHERE):
                found.append(f"{path} imports {name}")
            if within(name, {"stripe"}) and path != Path("webhooks/stripe_api.py"):
                found.append(f"{path} imports {name}")
            if within(name, SIGNALS):
                found.append(f"{path} listens to signals: {name}")
        for node in ast.walk(module):
            found += [f"{path}:{node.lineno} {what}" for what in _habits(path, node)]  # type: ignore[attr-defined]
    return sorted(set(found))


def _habits(path: Path, node: ast.AST) -> Iterator[str]:
    at_the_edge, is_local = EDGES & set(path.parts), path.parts[:2] == ("billing_site", "local")
    if isinstance(node, ast.Attribute | ast.Name):
        name = names(node)
        last = ".".join(name.split(".")[-2:])
        if last in READS_THE_CLOCK and not (at_the_edge or is_local):
            yield f"reads the clock: {last}"
        if name in READS_THE_ENVIRONMENT and not (is_local or path == Path("billing_site/settings.py")):
            yield "reads the environment"
    if isinstance(node, ast.Call) and names(node.func) == "receiver":
        yield "listens to signals"


# They tell Django where the settings are, before there are settings; what else they touch is looked at below.
NAME_THE_SETTINGS = re.compile(r"billing_site/(celery|wsgi)\.py:\d+ reads the environment")


def test_imports_point_one_way_and_only_edges_read_the_clock_and_the_environment() -> None:
    assert [found for found in violations(ROOT) if not NAME_THE_SETTINGS.fullmatch(found)] == []


def test_the_two_that_touch_the_environment_only_name_the_settings() -> None:
    for name in ("celery.py", "wsgi.py"):
        calls = [
            [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            for node in ast.walk(ast.parse((ROOT / "billing_site" / name).read_text()))
            if isinstance(node, ast.Call) and names(node.func).startswith("os.environ")
        ]
        assert calls == [["DJANGO_SETTINGS_MODULE", "billing_site.settings"]]


ASKS_THE_TIME = "from django.utils import timezone\nnow = timezone.now()"


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("subscriptions/a.py", "import webhooks.inbox", " imports webhooks"),
        ("subscriptions/a.py", "from entitlements import slots", " imports entitlements"),
        ("entitlements/a.py", "from webhooks.models import StripeEvent", " imports webhooks"),
        ("webhooks/a.py", "from notifications import delivery", " imports notifications"),
        ("notifications/a.py", "import webhooks", " imports webhooks"),
        ("notifications/a.py", "from billing_site import clock", " imports billing_site"),
        ("webhooks/a.py", "def late():\n    import billing_site.urls", " imports billing_site"),
        ("subscriptions/a.py", "import importlib\nimportlib.import_module('webhooks')", " imports webhooks"),
        ("subscriptions/a.py", "from django.core import mail", " imports django.core.mail"),
        ("subscriptions/a.py", "import djstripe.models", " imports djstripe.models"),
        ("subscriptions/a.py", "import rest_framework", " imports rest_framework"),
        ("webhooks/a.py", "import stripe", " imports stripe"),
        ("billing_site/api/a.py", "from stripe import Webhook", " imports stripe.Webhook"),
        ("webhooks/inbox.py", ASKS_THE_TIME, ":2 reads the clock: timezone.now"),
        ("subscriptions/a.py", "import datetime\ndatetime.datetime.now()", ":2 reads the clock: datetime.now"),
        ("billing_site/banner.py", "import os\nos.environ['A']", ":2 reads the environment"),
        ("webhooks/a.py", "import os\nos.getenv('A')", ":2 reads the environment"),
        ("notifications/a.py", "import django.db.models.signals", " listens to signals: django.db.models.signals"),
        ("notifications/a.py", "@receiver(renewed)\ndef tell(**_): ...", ":1 listens to signals"),
    ],
)  # fmt: skip
def test_the_reader_of_the_source_sees(path: str, source: str, found: str, tmp_path: Path) -> None:
    assert f"{path}{found}" in violations(written(tmp_path, path, source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("webhooks/stripe_api.py", "import stripe"),
        ("billing_site/a.py", "import subscriptions, entitlements, webhooks, notifications"),
        ("subscriptions/tasks.py", ASKS_THE_TIME),
        ("webhooks/management/commands/a.py", ASKS_THE_TIME),
        ("billing_site/settings.py", "import os\nos.environ['A']"),
        ("billing_site/local/a.py", "import os\nos.environ['A']"),
        ("subscriptions/migrations/0001_initial.py", "import webhooks"),
    ],
)
def test_the_reader_of_the_source_lets_pass(path: str, source: str, tmp_path: Path) -> None:
    assert violations(written(tmp_path, path, source)) == []


def written(root: Path, path: str, source: str) -> Path:
    (root / path).parent.mkdir(parents=True)
    (root / path).write_text(source)
    return root


# --- the clock's jobs ------------------------------------------------------------------------------------------------

# Told of their work by whoever makes it (webhooks/poke.py), not by the clock.
POKED = {"webhooks.tasks.drain_inbox"}


def ours() -> set[str]:
    app.autodiscover_tasks(force=True)
    return {name for name in app.tasks if name.partition(".")[0] in MAY_IMPORT}


def test_every_job_of_the_clock_is_a_task_with_an_interval_and_a_reason() -> None:
    assert {job.task for job in clock.JOBS.values()} - ours() == set()
    for name, job in clock.JOBS.items():
        assert 0 < job.every_seconds <= 86_400, name
        assert job.why.endswith("."), name


def test_every_task_is_done_by_the_clock_or_poked() -> None:
    assert ours() == {job.task for job in clock.JOBS.values()} | POKED


def test_beat_sends_every_job_at_its_interval() -> None:
    sent = {entry["task"]: entry["schedule"] for entry in app.conf.beat_schedule.values()}
    assert sent == {job.task: job.every_seconds for job in clock.JOBS.values()}
