"""The processes of the demo: the command line of each, its log and its pid file."""

from billing_site.local import ports
from billing_site.local.environment import DEMO
from billing_site.local.mail_catcher import MailCatcher
from billing_site.local.postgres import Postgres
from billing_site.local.process import Process, Traces, module
from billing_site.local.valkey import Valkey

LOGS, PIDS = DEMO / "logs", DEMO / "pids"


def database(port: int) -> Postgres:
    return Postgres(DEMO / "postgres", port=port, **_traces("postgres"))


def broker(port: int) -> Valkey:
    return Valkey(DEMO / "valkey", port=port, **_traces("valkey"))


def mail(smtp_port: int, http_port: int) -> MailCatcher:
    return MailCatcher(DEMO / "mail", smtp_port=smtp_port, http_port=http_port, **_traces("mail"))


def sandbox(port: int, env: dict[str, str]) -> Process:
    """The stand-in for Stripe. It signs its webhooks with the first of our secrets and calls our own endpoint."""
    arguments = {
        "--port": str(port),
        "--state": str(DEMO / "stripe.json"),
        "--webhook-url": f"{env['DEMO_URL']}/webhook/stripe",
        "--webhook-secret": env["STRIPE_WEBHOOK_SECRET"].split(",")[0],
        "--api-key": env["STRIPE_SECRET_KEY"],
    }
    command_line = module("tests.stripe_sandbox", *(word for pair in arguments.items() for word in pair))
    return Process("stripe", command_line, env=env, **_traces("stripe"))


def command(name: str, env: dict[str, str], *arguments: str) -> Process:
    """A `manage.py` command; it runs once."""
    return Process(name, module("django", name, *arguments), env=env, **_traces(name))


def web(env: dict[str, str]) -> Process:
    options = (
        f"--bind {ports.LOCALHOST}:{env['PORT']} --worker-class gthread --workers 2 --threads 8 "
        "--preload --graceful-timeout 5 --access-logfile - --no-control-socket"
    )
    return Process(
        "web", module("gunicorn", *options.split(), "billing_site.wsgi:application"), env=env, **_traces("web")
    )


def worker(env: dict[str, str]) -> Process:
    return _celery("worker", env, "--concurrency", "2", "--without-mingle", "--without-gossip")


def beat(env: dict[str, str]) -> Process:
    return _celery("beat", env, "--scheduler", "billing_site.beat.SteadyScheduler")


DJANGO = (web, worker, beat)


def _celery(name: str, env: dict[str, str], *options: str) -> Process:
    arguments = ("-A", "billing_site.celery:app", name, "--loglevel", "INFO", *options)
    return Process(name, module("celery", *arguments), env=env, **_traces(name))


def _traces(name: str) -> Traces:
    return {"log": LOGS / f"{name}.log", "pid_file": PIDS / f"{name}.json"}
