"""Local servers: ``python -m billing_site.local run [--data DIR | --demo] -- CMD…``, ``demo``, ``demo-reset``."""

import argparse
import sys
from pathlib import Path

from billing_site.local import demo, run
from billing_site.local.process import LocalServiceError
from billing_site.local.signals import Interrupted, noted


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["demo"]:
        return demo.main(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m billing_site.local", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("demo", help="the whole service until Ctrl-C")
    verbs.add_parser("demo-reset", help="delete what the demo has written")
    with_servers = verbs.add_parser("run", help="run a command with PostgreSQL and Valkey up")
    where = with_servers.add_mutually_exclusive_group()
    where.add_argument("--data", type=Path, help="keep the servers' data here (default: throw them away)")
    where.add_argument("--demo", action="store_true", help="use the running demo's servers and settings")
    with_servers.add_argument("command", nargs="+", metavar="CMD", help="after --")
    chosen = parser.parse_args(arguments)
    try:
        with noted():
            if chosen.verb == "demo-reset":
                return demo.reset()
            return run.run_in_demo(chosen.command) if chosen.demo else run.run(chosen.command, chosen.data)
    except LocalServiceError as error:
        print(error, file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"{error.filename} belongs to somebody else: {error.strerror}.", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        return interrupted.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
