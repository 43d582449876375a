"""A subscription's verbs together with what its slots do and what Stripe is told: what the terminal and the back office
carry out.
"""

from datetime import datetime

from django.db import connection, transaction

from entitlements.follow import follow
from entitlements.limits import Park
from subscriptions import closing
from subscriptions.audit import Actor
from subscriptions.management.verbs import VERBS, By, Options
from subscriptions.models import AuditEntry
from webhooks.outgoing import telling

MAY_PARK = ("activate", "change-plan")  # the verbs after which there may be fewer slots than devices


def carry_out(verb: str, name: str, options: Options, by: By, *, dry_run: bool = False) -> list[AuditEntry]:
    """Do what a row of VERBS says, to what `name` names; every entry that was written.

    `options["park"]` says whether devices that find no slot are parked: else a smaller plan is refused, SlotsInUse.
    Raises what the verb raises.
    """
    park = Park(options.get("park") or Park.NOBODY)

    def then(entries: list[AuditEntry]) -> bool:
        telling.tell(entries, now=by.now)
        return follow(entries, actor=by.actor, now=by.now, park=park, source_id=by.source_id, reason=by.reason)

    return VERBS[verb].carry_out(name, options, by, then=then, dry_run=dry_run)


def close_tenant(
    tenant_id: int, *, actor: Actor, now: datetime, reason: str, source_id: str = "", dry_run: bool = False
) -> list[AuditEntry]:
    """Close a tenant: its subscriptions end, their devices park, and whatever its customer has at Stripe is to end.
    One transaction; the entries of the subscriptions that ended. Raises what `closing.close` raises.
    """
    with transaction.atomic():
        is_new, entries = closing.close(tenant_id, actor=actor, now=now, reason=reason, source_id=source_id)
        if is_new:
            telling.tell(entries, now=now)
            telling.tell_closed(tenant_id, actor=actor, reason=reason, now=now)
            if entries:
                follow(entries, actor=actor, now=now, source_id=source_id, reason=reason)
        if dry_run:
            connection.check_constraints()  # a commit would
            transaction.set_rollback(True)
    return entries


def reopen_tenant(tenant_id: int, *, actor: Actor, reason: str, dry_run: bool = False) -> bool:
    """Undo a closing that was a mistake; whether it was closed. What ended with it stays ended."""
    with transaction.atomic():
        was_closed = closing.reopen(tenant_id, actor=actor, reason=reason)
        if dry_run:
            transaction.set_rollback(True)
    return was_closed
