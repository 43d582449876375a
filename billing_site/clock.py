"""Every recurring job of the service: what, how often, why. Beat sends them; any worker does them.

Each is safe to run late, twice, and in two workers at once.
"""

from dataclasses import dataclass

from django.conf import settings

from billing_site.celery import app


@dataclass(frozen=True)
class Job:
    task: str
    every_seconds: float
    why: str


JOBS = {
    "advance subscriptions": Job(
        "subscriptions.tasks.advance_subscriptions",
        settings.LIFECYCLE_INTERVAL_SECONDS,
        "Terms, grace periods and suspensions end by the clock.",
    ),
    "slots follow": Job(
        "entitlements.tasks.follow_subscriptions",
        settings.LIFECYCLE_INTERVAL_SECONDS,
        "Devices leave subscriptions that are over; who is parked returns where room came by the clock.",
    ),
    "seal the audit": Job(
        "subscriptions.tasks.seal_audit",
        60.0,
        "What was sealed cannot be rewritten unnoticed: the sooner, the less is left unsealed.",
    ),
    "schedule notices": Job(
        "notifications.tasks.schedule_notices",
        settings.LIFECYCLE_INTERVAL_SECONDS,
        "What happened and what comes near becomes notices, read off audit entries and terms.",
    ),
    "deliver notices": Job(
        "notifications.tasks.deliver_notices",
        15.0,
        "Notices whose time has come, and those whose last try failed, are mailed.",
    ),
    "sweep the inbox": Job(
        "webhooks.tasks.sweep_inbox",
        settings.INBOX_SWEEP_SECONDS,
        "Stripe events whose poke was lost, whose worker died or whose retry is due are applied.",
    ),
    "reconcile with Stripe": Job(
        "webhooks.tasks.reconcile",
        settings.RECONCILE_INTERVAL_SECONDS,
        "What Stripe has and what we have are compared, all of it: a lost event is found, and brought here.",
    ),
    "ask about terms that are settling": Job(
        "webhooks.tasks.ask_about_settling",
        60.0,
        "A term is over and its renewal may be paid: before the clock acts on it, Stripe is asked.",
    ),
    "tell Stripe": Job(
        "webhooks.tasks.tell_stripe",
        settings.INBOX_SWEEP_SECONDS,
        "What staff, a terminal or the clock changed or ended here is so at Stripe, too: nobody pays for nothing.",
    ),
    "forget quota keys": Job(
        "entitlements.tasks.forget_quota_keys",
        3600.0,
        "A use of a quota is told from its repeat for a week; older keys only take up room.",
    ),
}

app.conf.beat_schedule = {
    name: {
        "task": job.task,
        "schedule": job.every_seconds,
        # One that waited longer than its interval in a full queue has a successor: let it go.
        "options": {"expires": max(job.every_seconds, 30.0)},
    }
    for name, job in JOBS.items()
}
