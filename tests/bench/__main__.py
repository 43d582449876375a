"""`python -m tests.bench [NAME…]`: measure, print a table, merge it into `.local/bench.json`.

Asserts nothing: a machine that is busy is no reason to fail. Exits with 1 only if something could not be measured.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence

from billing_site.local.environment import LOCAL
from tests.bench import access, entitlements, inbox, intake, reconcile, slots, sweep
from tests.bench.result import Result

BENCHMARKS: dict[str, Callable[[], list[Result]]] = {
    "intake": intake.measure,
    "inbox": inbox.measure,
    "sweep": sweep.measure,
    "slots": slots.measure,
    "access": access.measure,
    "entitlements": entitlements.measure,
    "reconcile": reconcile.measure,
}
FILE = LOCAL / "bench.json"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    names = parser.parse_args(arguments).names or list(BENCHMARKS)
    if unknown := set(names) - BENCHMARKS.keys():
        parser.error(f"there is no benchmark named {', '.join(sorted(unknown))}")
    failed = []
    for name in names:
        print(f"\n{name}", flush=True)
        try:
            results = BENCHMARKS[name]()
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        print(_table(results), flush=True)
        _keep(name, results)
    if failed:
        print(f"\nNot measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _table(results: Sequence[Result]) -> str:
    heads = ("", "ours", "beside", "ratio", "unit", "required")
    lines = [heads, *(_cells(result) for result in results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*table, "", *(f"  {result.name}: {result.note}" for result in results if result.note)])


def _cells(result: Result) -> tuple[str, ...]:
    verdict = {None: "", True: " ok", False: " NOT ok"}[result.met]
    numbers = ("" if number is None else f"{number:,.4g}" for number in (result.ours, result.floor, result.ratio))
    return (result.name, *numbers, result.unit, result.required + verdict)


def _keep(name: str, results: Sequence[Result]) -> None:
    """Put these in the place of what this benchmark said last time."""
    known = json.loads(FILE.read_text()) if FILE.exists() else []
    others = [line for line in known if line["name"].partition(".")[0] != name]
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps([*others, *(result.plain() for result in results)], indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
