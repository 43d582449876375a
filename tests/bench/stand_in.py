"""Stripe, as fast as it could possibly be: each answer comes from the sandbox once, and from memory ever after.

Or from memory and another one in turn, where a benchmark wants each answer to be news.
"""

import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.stripe_sandbox.client import Sandbox


@contextmanager
def instant(stripe: Sandbox, *, flipping: Callable[[bytes], bytes] | None = None) -> Iterator[str]:
    """The URL of a copy of what this sandbox answers to GET; `flipping` makes each answer another one of the last."""
    remembered: dict[str, tuple[int, bytes]] = {}

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # one packet an answer

        def do_GET(self) -> None:
            if self.path not in remembered:
                remembered[self.path] = _ask(stripe, self.path)
            status, body = remembered[self.path]
            if flipping:
                remembered[self.path] = status, flipping(body)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _ask(stripe: Sandbox, path: str) -> tuple[int, bytes]:
    request = urllib.request.Request(stripe.url + path, headers={"Authorization": f"Bearer {stripe.api_key}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:  # the account has no logo, for example
        with error:
            return error.code, error.read()
