"""In whose name a command acts."""

import os
from argparse import ArgumentParser

from django.contrib.auth import get_user_model
from django.core.management.base import CommandError

from subscriptions.audit import Actor
from subscriptions.management.arguments import text


def add_as(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--as", type=text, dest="username", metavar="USERNAME",
        help="in whose name: a member of staff (default: whoever is at the terminal)",
    )  # fmt: skip


def acting(username: str | None, *, permission: str = "", to: str = "") -> Actor:
    """The member of staff of this name, or whoever is at the terminal.

    Raises CommandError where there is no such active member of staff, or one without the permission that it takes `to`
    do something, where that is asked.
    """
    if username is None:
        return Actor.operator(os.getuid())
    users = get_user_model().objects
    user = users.filter(**{get_user_model().USERNAME_FIELD: username}).first()
    if user is None or not (user.is_active and user.is_staff):
        raise CommandError(f"{username} is no active member of staff.")
    if permission and not user.has_perm(permission):
        raise CommandError(f"{username} may not {to}: that takes the permission {permission}.")
    return Actor.staff(user.pk, request_id=f"terminal:{os.getuid()}")  # who is at it is in the audit, too
