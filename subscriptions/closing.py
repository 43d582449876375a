"""A tenant that is no customer any more: everything it has ends, and nothing can be started until it is reopened.

Reading goes on: who it was, what it had and why it ended stay to be seen. The database refuses to start anything for a
tenant that is closed (migration 0008), so whoever starts something at the same moment comes first, and is ended with
the rest, or is refused.
"""

from datetime import datetime

from django.db import transaction
from django.db.models import Q, QuerySet

from subscriptions import lifecycle, terms
from subscriptions.audit import Actor, check_reason
from subscriptions.errors import TenantNotFound
from subscriptions.models import THIS_TRANSACTION, AuditEntry, Subscription, Tenant
from subscriptions.states import Action, EndReason, Status


class _Grew(Exception):
    """Somebody started something for the tenant before its row was locked."""


def close(
    tenant_id: int, *, actor: Actor, now: datetime, reason: str, source_id: str = ""
) -> tuple[bool, list[AuditEntry]]:
    """End every subscription of the tenant at once, and start none afterwards. Whether it was open until now, and an
    entry for each subscription that ended, with the reason. A tenant that is closed stays as it is.

    Raises ReasonMissing, TenantNotFound, InvalidTerm for a `now` without a time zone.
    """
    check_reason(actor, reason)
    terms.aware(now, "now")
    while True:
        try:
            with transaction.atomic():
                return _close(tenant_id, actor, now, reason, source_id)
        except _Grew:  # the savepoint has given back the locks: in the order of everybody, once more
            continue


def _close(tenant_id: int, actor: Actor, now: datetime, reason: str, source_id: str) -> tuple[bool, list[AuditEntry]]:
    locked = [*_roots(tenant_id).select_for_update(no_key=True)]
    tenant = Tenant.objects.select_for_update().filter(pk=tenant_id).first()  # whoever starts something waits for this
    if tenant is None:
        raise TenantNotFound
    if tenant.closed_at is not None:
        return False, []
    roots = [*_roots(tenant_id)]
    if {*roots} - {*locked}:
        raise _Grew
    for root in roots:
        lifecycle.expire(root, why=EndReason.CANCELLED, actor=actor, now=now, source_id=source_id, reason=reason)
    Tenant.objects.filter(pk=tenant_id).update(closed_at=now)
    families = Q(subscription__in=roots) | Q(subscription__parent__in=roots)
    written = AuditEntry.objects.filter(families, transaction_id=THIS_TRANSACTION, action=Action.EXPIRED)
    return True, [*written.filter(changes__has_key="status").select_related("subscription").order_by("pk")]


def reopen(tenant_id: int, *, actor: Actor, reason: str) -> bool:
    """Let a tenant that was closed by mistake buy again; whether it was closed. What ended then stays ended.

    Raises ReasonMissing, TenantNotFound.
    """
    check_reason(actor, reason)
    if not Tenant.objects.filter(pk=tenant_id).exists():
        raise TenantNotFound
    return bool(Tenant.objects.filter(pk=tenant_id, closed_at__isnull=False).update(closed_at=None))


def _roots(tenant_id: int) -> "QuerySet[Subscription, int]":
    """Of the tenant's families that live, in the order in which they are locked."""
    live = Subscription.objects.filter(tenant=tenant_id, parent=None).exclude(status=Status.EXPIRED)
    return live.order_by("pk").values_list("pk", flat=True)
