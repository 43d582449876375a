"""The servers behind `make demo` and `make test`: they start from nothing, and nothing of them stays.

The demo is tried in a scratch checkout with a tiny Django project in place of ours; everything else in it is real.
"""

import json
import os
import shutil
import signal
import smtplib
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from textwrap import dedent

import psutil
import psycopg
import pytest
import redis

from billing_site.local import environment, ports, postgres_place
from billing_site.local.mail_catcher import MailCatcher
from billing_site.local.postgres import Postgres
from billing_site.local.process import (
    CHECKOUT,
    MARK,
    LocalServiceError,
    Process,
    stop_leftover,
    stop_marked,
    wait_until,
)
from billing_site.local.valkey import Valkey

BARE = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
"""An environment that names no server: this test run's own must not reach the servers under test."""

WHO_AM_I = "SELECT rolname, rolsuper, rolbypassrls, rolcreatedb FROM pg_roles WHERE rolname = current_user"

SCRATCH_PROJECT = {
    "billing_site/__init__.py": "",
    "billing_site/settings.py": """
        import environ
        env = environ.Env()
        SECRET_KEY, ALLOWED_HOSTS = env("SECRET_KEY"), env.list("ALLOWED_HOSTS")
        DATABASES = {"default": env.db_url("DATABASE_URL")}
        INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "billing_site"]
        ROOT_URLCONF, USE_TZ = "billing_site.urls", True
        CELERY_BROKER_URL = CELERY_REDBEAT_REDIS_URL = env("REDIS_URL")
        """,
    "billing_site/urls.py": """
        from django.http import HttpResponse
        from django.urls import path
        urlpatterns = [path("healthz", lambda request: HttpResponse("ok"))]
        """,
    "billing_site/wsgi.py": """
        from django.core.wsgi import get_wsgi_application
        application = get_wsgi_application()
        """,
    "billing_site/celery.py": """
        from celery import Celery
        app = Celery("scratch")
        app.config_from_object("django.conf:settings", namespace="CELERY")
        """,
    "billing_site/management/commands/seed_demo.py": """
        import os, sys
        from django.contrib.auth.models import User
        from django.core.management.base import BaseCommand
        class Command(BaseCommand):
            def handle(self, **options):
                if os.environ.get("SEEDING") == "fails":
                    sys.exit("there is no seed")
                User.objects.create(username=f"visitor {User.objects.count() + 1}")
                self.stdout.write(str(User.objects.count()))
        """,
    "billing_site/management/commands/demo_guide.py": """
        from django.core.management.base import BaseCommand
        class Command(BaseCommand):
            def handle(self, **options):
                self.stdout.write("Welcome to the scratch project.")
        """,
    "tests/stripe_sandbox/__main__.py": """
        import http.server, sys
        port = int(sys.argv[sys.argv.index("--port") + 1])
        http.server.HTTPServer(("127.0.0.1", port), http.server.SimpleHTTPRequestHandler).serve_forever()
        """,
}


def scratch_checkout(directory: Path) -> Path:
    """A checkout of nothing but the Makefile, this package and the scratch project."""
    shutil.copy(CHECKOUT / "Makefile", directory)
    (directory / "billing_site").mkdir()
    shutil.copy(CHECKOUT / "billing_site/beat.py", directory / "billing_site")
    package = Path("billing_site/local")
    shutil.copytree(CHECKOUT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in SCRATCH_PROJECT.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(dedent(text))
    return directory


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No demo runs in it between tests; the data of the demos that did live on."""
    directory = scratch_checkout(tmp_path_factory.mktemp("checkout"))
    yield directory
    postgres_place.remove(directory / ".local/demo/postgres")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Demo"]:
    """A demo that is up, in a checkout of its own."""
    directory = scratch_checkout(tmp_path_factory.mktemp("running"))
    with Demo(directory, GRACE_DAYS="3").up() as demo:
        yield demo
    postgres_place.remove(directory / ".local/demo/postgres")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Postgres]:
    with Postgres(tmp_path / "postgres") as server:
        yield server
    postgres_place.remove(server.directory)


@pytest.fixture(scope="module")
def catcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailCatcher]:
    with MailCatcher(tmp_path_factory.mktemp("mail")) as server:
        yield server


class Demo:
    """`python -m billing_site.local demo` in a scratch checkout, as the first process of a session."""

    def __init__(self, checkout: Path, **env: str) -> None:
        self.checkout, self.port = checkout, ports.free()
        self.output = checkout / "output"
        with self.output.open("w") as output:
            self.supervisor = subprocess.Popen(
                [sys.executable, "-m", "billing_site.local", "demo"],
                cwd=checkout,
                env=BARE | {"PORT": str(self.port)} | env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.output.read_text()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def visitors(self) -> int:
        """How many the demo data count: one more after each start."""
        return int((self.checkout / ".local/demo/logs/seed_demo.log").read_text())

    def up(self) -> "Demo":
        self.wait_for("Ctrl-C stops everything")
        return self

    def wait_for(self, words: str) -> None:
        wait_until(lambda: words in self.said or self.supervisor.poll() is not None, seconds=60)
        assert words in self.said, self.said

    def ended(self, seconds: float = 40) -> int:
        return self.supervisor.wait(seconds)

    def processes(self) -> list[psutil.Process]:
        supervisor = psutil.Process(self.supervisor.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def __enter__(self) -> "Demo":
        return self

    def __exit__(self, *failure: object) -> None:
        self.supervisor.terminate()
        self.ended()


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Which of them still run; whoever has just ended is given a moment to be gone."""

    def runs(process: psutil.Process) -> bool:
        try:
            return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    wait_until(lambda: not any(map(runs, processes)), seconds=1)
    return [process for process in processes if runs(process)]


def in_checkout(checkout: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=checkout, env=BARE | env, capture_output=True, text=True, timeout=60)


# --- the demo -------------------------------------------------------------------------------------------------------


def test_sigterm_stops_everything_and_the_next_demo_finds_the_data(checkout: Path) -> None:
    with Demo(checkout).up() as first:
        assert "Welcome to the scratch project." in first.said
        started = first.processes()
        visitors = first.visitors
        first.supervisor.terminate()
        assert first.ended() == 0
    assert len(started) > 10
    assert alive(started) == []
    assert list((checkout / ".local/demo/pids").iterdir()) == []
    with Demo(checkout) as second:
        second.wait_for("web pages")
        assert second.visitors == visitors + 1


@pytest.mark.long
def test_a_demo_recovers_from_a_killed_supervisor(checkout: Path) -> None:
    with Demo(checkout) as killed:
        killed.wait_for("database schema")
        orphans = killed.processes()[1:]
        killed.supervisor.kill()
        killed.ended()
    with Demo(checkout, SEEDING="fails") as next_one:
        assert next_one.ended() == 1
    assert "seed_demo failed" in next_one.said
    assert alive(orphans) == []


def test_a_start_that_fails_says_why_and_stops_what_had_been_started(checkout: Path) -> None:
    with Demo(checkout, SEEDING="fails") as demo:
        demo.wait_for("database schema")
        started = demo.processes()
        assert demo.ended() == 1
    assert "seed_demo failed (exit code 1)" in demo.said
    assert "there is no seed" in demo.said
    assert alive(started) == []


@pytest.mark.long
def test_a_dead_part_is_named_and_the_rest_is_stopped(checkout: Path, database: Postgres) -> None:
    given = {"DATABASE_URL": database.url, "EMAIL_URL": "smtp://127.0.0.1:9", "STRIPE_API_BASE": "http://127.0.0.1:9"}
    with Demo(checkout, **given).up() as demo:
        started = demo.processes()
        files = {file.stem: file for file in (checkout / ".local/demo/pids").iterdir()}
        os.kill(json.loads(files["worker"].read_text())["pid"], signal.SIGKILL)
        assert demo.ended() == 1
    assert files.keys() == {"valkey", "web", "worker", "beat"}, "what the environment names is not started"
    assert "worker died (exit code -9)" in demo.said
    assert alive(started) == []


def test_only_one_demo_runs_in_a_checkout_and_its_data_are_safe_meanwhile(running: "Demo") -> None:
    another = in_checkout(running.checkout, sys.executable, "-m", "billing_site.local", "demo")
    reset = in_checkout(running.checkout, sys.executable, "-m", "billing_site.local", "demo-reset")
    assert (another.returncode, reset.returncode) == (1, 1)
    assert another.stderr == f"The demo of this checkout is already running. {running.url}\n"
    assert reset.stderr == "The demo is running: stop it with Ctrl-C first.\n"
    assert urllib.request.urlopen(f"{running.url}/healthz").read() == b"ok"


def test_what_the_demo_writes_down_is_private_and_names_a_plain_role(running: "Demo") -> None:
    file = running.checkout / ".local/demo/env"
    env = environment.read(file)
    with psycopg.connect(env["DATABASE_URL"]) as connection:
        assert connection.execute(WHO_AM_I).fetchone() == ("termkeeper", False, False, False)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (env["GRACE_DAYS"], env["DEBUG"]) == ("3", "0")


def test_a_command_can_run_beside_the_demo_with_its_settings(running: "Demo") -> None:
    beside = [sys.executable, "-m", "billing_site.local", "run", "--demo", "--", "sh", "-c", "echo $GRACE_DAYS"]
    assert in_checkout(running.checkout, *beside).stdout == "3\n"


def test_a_taken_port_is_one_line_and_nothing_is_started(checkout: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with Demo(checkout, PORT=str(port)) as demo:
            assert demo.ended() == 1
    assert (
        demo.said == f"Port {port} cannot be used: address already in use. Choose another: make demo PORT={port + 1}\n"
    )


def test_a_port_that_is_none_is_one_line(checkout: Path) -> None:
    with Demo(checkout, PORT="eighty") as demo:
        assert demo.ended() == 1
    assert demo.said == "PORT=eighty is not a port: a number from 1 to 65535 is.\n"


# --- a machine that is not ready --------------------------------------------------------------------------------------


def interpreter(path: Path, pretending: str) -> str:
    """A python that is like ours but for one thing."""
    program = (
        f"import sys, runpy; {pretending}; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{program}" "$@"\n')
    path.chmod(0o755)
    return f"PYTHON={path}"


def complaint(make: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed make wrote besides its own."""
    assert make.returncode == 2, make
    lines = [line for line in make.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(lines) == 1, make.stderr
    return lines[0]


def test_no_python_is_one_line(checkout: Path) -> None:
    make = in_checkout(checkout, "make", "demo", "PYTHON=python-of-nowhere")
    assert complaint(make).startswith("There is no python-of-nowhere here. Install Python 3.11 or newer")


def test_an_old_python_is_one_line(checkout: Path, tmp_path: Path) -> None:
    old = interpreter(tmp_path / "python", "sys.version_info = (3, 9, 2)")
    assert complaint(in_checkout(checkout, "make", "test", old)).startswith("Python 3.11 or newer is needed; ")


def test_a_python_without_venv_is_one_line(checkout: Path, tmp_path: Path) -> None:
    crippled = interpreter(tmp_path / "python", "sys.modules['ensurepip'] = None")
    assert "has no ensurepip module. On Debian and Ubuntu: apt install python3." in complaint(
        in_checkout(checkout, "make", "demo", crippled)
    )


def test_no_network_is_one_line(checkout: Path, tmp_path: Path) -> None:
    python = checkout / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (checkout / "requirements-local.txt").write_text(f"a-package-that-is-not-installed==1 --hash=sha256:{'0' * 64}\n")
    offline = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "1", "PIP_CONFIG_FILE": os.devnull}
    try:
        make = in_checkout(checkout, "make", "demo", f"PYTHON={sys.executable}", **offline)
    finally:
        shutil.rmtree(checkout / ".venv")
    assert complaint(make).startswith("The package index cannot be reached.")


# --- run ------------------------------------------------------------------------------------------------------------


def run_arguments(*command: str) -> list[str]:
    return [sys.executable, "-m", "billing_site.local", "run", "--", *command]


def test_run_gives_a_command_servers_and_returns_its_exit_code(checkout: Path) -> None:
    look = "import os, psycopg, redis; psycopg.connect(os.environ['DATABASE_URL']).execute('SELECT 1'); "
    look += "redis.Redis.from_url(os.environ['REDIS_URL']).ping(); raise SystemExit(7)"
    assert in_checkout(checkout, *run_arguments("python", "-c", look)).returncode == 7
    assert list((checkout / ".local/test").iterdir()) == []


def test_run_passes_a_signal_on_and_stops_what_the_command_left(checkout: Path) -> None:
    given = {"DATABASE_URL": "postgres://nobody@127.0.0.1:9/none", "REDIS_URL": "redis://127.0.0.1:9"}
    script = "trap 'exit 5' TERM; sleep 60 & echo $!; wait"
    command = run_arguments("sh", "-c", script)
    with subprocess.Popen(command, cwd=checkout, env=BARE | given, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        left = psutil.Process(int(run.stdout.readline()))
        run.terminate()
        assert run.wait(20) == 5
    assert alive([left]) == []


# --- the servers ----------------------------------------------------------------------------------------------------


def test_the_embedded_database_is_used_as_a_plain_role_and_syncs_to_disk(database: Postgres) -> None:
    with psycopg.connect(database.url) as connection:
        assert connection.execute(WHO_AM_I).fetchone() == ("termkeeper", False, False, False)
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
        connection.execute("CREATE TABLE notes AS SELECT 'kept' AS text")
    url = database.url
    database.stop()
    database.start()
    assert database.url == url
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT text FROM notes").fetchone() == ("kept",)


def test_valkey_comes_back_on_the_same_port_with_what_was_queued(tmp_path: Path) -> None:
    with Valkey(tmp_path) as broker:
        client = redis.Redis.from_url(broker.url, decode_responses=True)
        client.rpush("queue", "one", "two")
        broker.stop()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        broker.start()
        assert client.lrange("queue", 0, -1) == ["one", "two"]


def test_valkey_asks_for_its_password(tmp_path: Path) -> None:
    with Valkey(tmp_path) as broker, socket.create_connection(("127.0.0.1", broker.port)) as stranger:
        stranger.sendall(b"PING\r\n")
        assert stranger.recv(64).startswith(b"-NOAUTH")


def mail(to: str, subject: str = "Your term ends", html: str = "") -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "billing@termkeeper.example", to, subject
    message.set_content("The grace period has begun.")
    if html:
        message.add_alternative(html, subtype="html")
    return message


def test_mail_is_caught_in_order(catcher: MailCatcher) -> None:
    catcher.mailbox.clear()
    with smtplib.SMTP("127.0.0.1", catcher.smtp_port) as client:
        for subject in ("first", "second", "drei €"):
            client.send_message(mail("ada@nordic.example", subject))
    caught = catcher.mailbox.wait_for(3)
    assert [message["Subject"] for message in caught] == ["first", "second", "drei €"]
    assert caught[0]["X-Envelope-To"] == "ada@nordic.example"
    assert caught[0].get_content().strip() == "The grace period has begun."


@pytest.mark.parametrize(("recipient", "code"), [("reject-me@x.example", 550), ("tempfail@x.example", 451)])
def test_some_recipients_are_refused_on_request(catcher: MailCatcher, recipient: str, code: int) -> None:
    before = catcher.mailbox.files()
    with (
        smtplib.SMTP("127.0.0.1", catcher.smtp_port) as client,
        pytest.raises(smtplib.SMTPRecipientsRefused) as refused,
    ):
        client.send_message(mail(recipient))
    assert refused.value.recipients[recipient][0] == code
    assert catcher.mailbox.files() == before


def test_the_mail_page_shows_foreign_text_without_running_it(catcher: MailCatcher) -> None:
    catcher.mailbox.clear()
    with smtplib.SMTP("127.0.0.1", catcher.smtp_port) as client:
        client.send_message(
            mail("ada@nordic.example", "<script>alert(1)</script>", html="<b>Grace</b><script>2</script>")
        )
    name = catcher.mailbox.files()[0].stem
    pages = {part: urllib.request.urlopen(catcher.page_url + part) for part in ("", name, f"{name}/html")}
    texts = {part: page.read().decode() for part, page in pages.items()}
    assert "&lt;script&gt;alert(1)" in texts[""]
    assert "<script>" not in texts[""] + texts[name]
    assert "<b>Grace</b>" in texts[f"{name}/html"]
    assert "sandbox" in pages[f"{name}/html"].headers["Content-Security-Policy"]


# --- one process ----------------------------------------------------------------------------------------------------

FAMILY = "sleep 60 & trap '' TERM; echo born; while :; do sleep 1; done"


def test_stopping_a_process_ends_its_whole_group_even_if_it_will_not(tmp_path: Path) -> None:
    stubborn = Process("stubborn", ["sh", "-c", FAMILY], log=tmp_path / "log", patience_seconds=0.1)
    stubborn.start()
    stubborn.wait_ready(lambda: "born" in stubborn.logged(), seconds=10)
    family = [psutil.Process(stubborn.pid), *psutil.Process(stubborn.pid).children()]
    stubborn.stop()
    assert len(family) >= 2
    assert alive(family) == []


def test_a_process_that_dies_at_once_says_why(tmp_path: Path) -> None:
    process = Process("brief", ["sh", "-c", "echo no such luck; exit 3"], log=tmp_path / "log")
    process.start()
    with pytest.raises(LocalServiceError, match=r"(?s)brief stopped at once \(exit code 3\).*no such luck"):
        process.wait_ready(lambda: False, seconds=10)


def test_a_leftover_is_stopped_but_not_a_stranger_with_its_number(tmp_path: Path) -> None:
    note = tmp_path / "sleeper.json"
    sleeper = Process("sleeper", ["sleep", "60"], log=tmp_path / "log", pid_file=note)
    sleeper.start()
    noted = json.loads(note.read_text())
    note.write_text(json.dumps(noted | {"started": noted["started"] - 1000}))
    assert not stop_leftover(note)
    assert sleeper.running
    note.write_text(json.dumps(noted))
    assert stop_leftover(note)
    assert not sleeper.running


def test_a_grandchild_that_left_the_group_is_found_by_its_mark(tmp_path: Path) -> None:
    env = os.environ | {MARK: str(tmp_path)}
    runaway = subprocess.Popen(["sleep", "60"], env=env, start_new_session=True)
    found = psutil.Process(runaway.pid)
    wait_until(lambda: MARK in found.environ(), seconds=5)  # the kernel fills it in just after exec has succeeded
    assert stop_marked(tmp_path) == 1
    assert alive([found]) == []


def test_a_signal_that_comes_while_a_process_is_spawned_is_not_lost(tmp_path: Path) -> None:
    """Python drops what a handler raises in a hook around a fork, and there are such hooks (in logging, in random)."""
    program = f"""
        import os, signal
        from pathlib import Path
        from billing_site.local import signals
        from billing_site.local.process import Process
        os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGTERM))
        child = Process("child", ["sleep", "60"], log=Path({str(tmp_path / "log")!r}))
        with signals.noted():
            child.start()
            try:
                child.wait_ready(lambda: False, seconds=60)
            except signals.Interrupted as interrupted:
                print(interrupted, child.running)
        """
    assert in_checkout(CHECKOUT, sys.executable, "-c", dedent(program)).stdout == "SIGTERM False\n"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = f"""
        import os, signal, sys
        from pathlib import Path
        from billing_site.local.process import Process
        child = Process("child", ["sleep", "60"], log=Path({str(tmp_path / "log")!r}))
        child.start()
        print(child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    parent = in_checkout(CHECKOUT, sys.executable, "-c", dedent(program))
    child = int(parent.stdout)
    assert wait_until(lambda: not psutil.pid_exists(child), seconds=10)
