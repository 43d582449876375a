"""A subscription's verbs together with what its slots do: what the terminal and the back office carry out."""

from functools import partial

from entitlements.follow import follow
from entitlements.limits import Park
from subscriptions.management.verbs import VERBS, By, Options
from subscriptions.models import AuditEntry

MAY_PARK = ("activate", "change-plan")  # the verbs after which there may be fewer slots than devices


def carry_out(verb: str, name: str, options: Options, by: By, *, dry_run: bool = False) -> list[AuditEntry]:
    """Do what a row of VERBS says, to what `name` names; every entry that was written.

    `options["park"]` says whether devices that find no slot are parked: else a smaller plan is refused, SlotsInUse.
    Raises what the verb raises.
    """
    park = Park(options.get("park") or Park.NOBODY)
    then = partial(follow, actor=by.actor, now=by.now, park=park, source_id=by.source_id, reason=by.reason)
    return VERBS[verb].carry_out(name, options, by, then=then, dry_run=dry_run)
