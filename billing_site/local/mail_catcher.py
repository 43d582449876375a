"""A mail server that delivers nothing: every message becomes a file, and a page shows them.

``python -m billing_site.local.mail_catcher --smtp-port N --http-port M --dir DIR``. A recipient whose name starts with
``reject`` is refused for good (550), with ``tempfail`` for now (451), so that a test can see what the sender does.
"""

import argparse
import signal
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from billing_site.local import mail_page, ports
from billing_site.local.caught_mail import Mailbox
from billing_site.local.process import Process, module


class MailCatcher:
    """The server as a child process. ``mailbox`` is what it caught, ``smtp_url`` is for EMAIL_URL."""

    def __init__(
        self,
        directory: Path,
        *,
        smtp_port: int = 0,
        http_port: int = 0,
        log: Path | None = None,
        pid_file: Path | None = None,
    ) -> None:
        directory = directory.resolve()
        self.mailbox = Mailbox(directory)
        self.smtp_port, self.http_port = ports.free(smtp_port), ports.free(http_port)
        numbers = ("--smtp-port", str(self.smtp_port), "--http-port", str(self.http_port))
        self.process = Process(
            "mail",
            module("billing_site.local.mail_catcher", *numbers, "--dir", str(directory)),
            log=log or directory / "mail.log",
            pid_file=pid_file or directory / "mail.json",
        )

    @property
    def smtp_url(self) -> str:
        return f"smtp://{ports.LOCALHOST}:{self.smtp_port}"

    @property
    def page_url(self) -> str:
        return f"http://{ports.LOCALHOST}:{self.http_port}/"

    def start(self) -> None:
        self.process.start()
        self.process.wait_ready(lambda: ports.answers(self.smtp_port) and ports.answers(self.http_port), seconds=30)

    def stop(self) -> None:
        """Safe to repeat; ``start`` afterwards listens on the same ports."""
        self.process.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Catch:
    """aiosmtpd's handler: refuse on request, keep the rest."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("reject"):
            return "550 5.1.1 No such mailbox"
        if address.startswith("tempfail"):
            return "451 4.3.0 Try again later"
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.content if isinstance(envelope.content, bytes) else str(envelope.content).encode()
        recipients = ", ".join(str(address) for address in envelope.rcpt_tos)
        name = f"{time.time_ns():020d}"
        unfinished = self.directory / f"{name}.part"
        unfinished.write_bytes(
            f"X-Envelope-From: {envelope.mail_from}\r\nX-Envelope-To: {recipients}\r\n".encode() + content
        )
        unfinished.rename(self.directory / f"{name}.eml")
        return f"250 OK kept as {name}.eml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smtp-port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    chosen = parser.parse_args()
    chosen.dir.mkdir(parents=True, exist_ok=True)
    smtp = Controller(_Catch(chosen.dir), hostname=ports.LOCALHOST, port=chosen.smtp_port, enable_SMTPUTF8=True)
    page = mail_page.server(chosen.http_port, Mailbox(chosen.dir))
    smtp.start()
    for ending in (signal.SIGTERM, signal.SIGINT):
        # shutdown() waits for the loop below, so the signal handler, which interrupts that loop, must not call it
        signal.signal(ending, lambda *_: threading.Thread(target=page.shutdown).start())
    page.serve_forever(poll_interval=0.1)
    smtp.stop()


if __name__ == "__main__":
    main()
