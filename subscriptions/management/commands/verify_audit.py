import json
import re
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from subscriptions.management.progress import on_terminal
from subscriptions.proof import DoesNotFit, Proof, verify, verify_export


def head(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        raise ArgumentTypeError(f"{text!r} is not a head: 64 hexadecimal digits.")
    return text.lower()


class Command(BaseCommand):
    help = (
        "Prove that no sealed entry of the audit was rewritten, removed or slipped in, and that each subscription is "
        "what its audit tells. Names the first that does not fit. Who can rewrite entries can rewrite the seals, too: "
        "only --expect, with a head that was noted elsewhere, protects from that."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--expect", type=head, metavar="HEAD",
            help="a head that this command printed earlier and that was kept elsewhere: it must still be in the chain",
        )  # fmt: skip
        parser.add_argument(
            "--file", metavar="EXPORT", help="verify what export_audit wrote, without looking at the database"
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of prose")

    def handle(self, *, expect: str | None, file: str | None, **options: Any) -> None:
        said: dict[str, object] = {"ok": True}
        failed: CommandError | None = None
        try:
            proof = self.proof(expect or "", file)
        except DoesNotFit as error:
            failed = CommandError(str(error))
            said = {"ok": False, "how": error.how, "message": str(error), **error.which}
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"{file} cannot be read: {error}") from None
        else:
            said |= proof.as_dict()
        if options["json"]:
            self.stdout.write(json.dumps(said))
        elif not failed:
            self.stdout.write(f"{proof}")
        if failed:
            raise failed

    def proof(self, expect: str, file: str | None) -> Proof:
        tick = on_terminal()
        if file is None:
            return verify(expected=expect, tick=tick)
        with open(file, encoding="utf-8", newline="\n") as lines:
            return verify_export(lines, expected=expect, tick=tick)
