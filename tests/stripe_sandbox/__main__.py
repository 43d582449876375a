"""``python -m tests.stripe_sandbox``"""

import argparse
import errno
import os
import signal
import sys
import threading
from pathlib import Path

from .server import SandboxServer
from .store import Store
from .world import Config

ABOUT = """\
A stand-in for Stripe: keeps customers, prices, subscriptions and invoices in the shapes of API version
2026-05-27.dahlia, bills them, and sends signed webhooks. Listens on 127.0.0.1 only.

  /v1/…        the API, for STRIPE_API_BASE or stripe.StripeClient(base_addresses={"api": …})
  /            a page for people: pay, fail, cancel, turn knobs, see deliveries
  /_sandbox/…  the same for tests, as JSON
"""


def main() -> int:
    options = _options()
    try:
        store = Store(None if options.state == "none" else Path(options.state))
    except (OSError, ValueError) as error:
        print(f"stripe_sandbox: cannot use the state file: {error}", file=sys.stderr)
        return 1
    config = Config(options.webhook_url, options.webhook_secret, options.api_key)
    try:
        server = SandboxServer(options.port, store, config)
    except OSError as error:
        reason = "it is taken" if error.errno == errno.EADDRINUSE else error.strerror
        print(f"stripe_sandbox: cannot listen on 127.0.0.1:{options.port}: {reason}", file=sys.stderr)
        return 1

    def end(*_: object) -> None:
        threading.Thread(target=server.stop, daemon=True).start()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    if options.exit_with_stdin:
        threading.Thread(target=_end_with_stdin, args=(end,), daemon=True).start()
    server.start()
    print(f"Stripe sandbox listening on {server.url}", flush=True)
    server.serve_forever(poll_interval=0.1)
    server.server_close()
    with server.world.lock:
        store.close()
    sys.stdout.flush()
    os._exit(0)  # threads that hang on purpose must not keep us


def _end_with_stdin(end: "signal._HANDLER") -> None:
    sys.stdin.buffer.read()
    end()  # type: ignore[call-arg,operator,misc]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.stripe_sandbox", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--port", type=int, default=12111, help="port on 127.0.0.1; 0 chooses a free one (default: 12111)")
    add(
        "--state",
        default="none",
        metavar="FILE",
        help="keep everything in this file, safe against kill -9; none forgets it at the end (default: none)",
    )
    add("--webhook-url", default="", metavar="URL", help="where events go (default: only to registered endpoints)")
    add("--webhook-secret", default="whsec_sandbox", metavar="SECRET", help="signs them (default: whsec_sandbox)")
    add(
        "--api-key",
        default="sk_test_sandbox",
        metavar="KEY",
        help="the key callers must use (default: sk_test_sandbox)",
    )
    add("--exit-with-stdin", action="store_true", help="end when standard input closes, so as not to outlive a parent")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
