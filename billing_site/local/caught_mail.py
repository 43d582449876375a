"""Messages that the mail catcher kept: one ``.eml`` file each, whose name tells the order of arrival."""

import email
from email.message import EmailMessage
from email.policy import default as modern
from pathlib import Path

from billing_site.local.process import wait_until


class Mailbox:
    """The caught messages of one directory, oldest first."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def files(self) -> list[Path]:
        return sorted(self.directory.glob("*.eml"))

    def messages(self) -> list[EmailMessage]:
        """Each with the envelope's addresses in ``X-Envelope-From`` and ``X-Envelope-To``."""
        return [read(path) for path in self.files()]

    def wait_for(self, count: int, *, seconds: float = 10) -> list[EmailMessage]:
        """The messages, once there are ``count`` of them, or however many there are when the time is up."""
        wait_until(lambda: len(self.files()) >= count, seconds=seconds)
        return self.messages()

    def clear(self) -> None:
        for path in self.files():
            path.unlink()


def read(path: Path) -> EmailMessage:
    with path.open("rb") as file:
        return email.message_from_binary_file(file, _class=EmailMessage, policy=modern)
