"""Real gunicorn processes, all with the same workers, and a wire to the database on which statements are counted."""

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit, urlunsplit

import psutil

from billing_site.local import ports
from billing_site.local.process import Process, module

WORKERS, THREADS = 2, 8


class Web(Process):
    """A gunicorn on a free port of loopback, with the workers of the demo and of the image."""

    def __init__(self, name: str, log: Path, env: dict[str, str], application: str = "billing_site.wsgi") -> None:
        self.port = ports.free()
        options = (
            f"--bind {ports.LOCALHOST}:{self.port} --worker-class gthread --workers {WORKERS} --threads {THREADS} "
            "--preload --graceful-timeout 5 --no-control-socket"
        )
        super().__init__(name, module("gunicorn", *options.split(), application), log=log, env=dict(os.environ) | env)

    def __enter__(self) -> Self:
        self.start()
        self.wait_ready(lambda: ports.answers(self.port) and len(self.workers()) == WORKERS, seconds=60)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def workers(self) -> list[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(self.pid).children()
        return found


class CountedWire:
    """A TCP relay to PostgreSQL that counts what is asked: every statement, BEGIN, COMMIT and health check included.

    `cut` closes what is open and refuses what is new, as a database does that is being restarted; `mend` ends that.
    """

    def __init__(self, database_url: str) -> None:
        self._parts = urlsplit(database_url)
        self.statements = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._cut = False
        self._listener = socket.create_server((ports.LOCALHOST, 0))
        self.port: int = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        """The database's URL by way of the relay."""
        login = self._parts.netloc.rpartition("@")[0]
        return urlunsplit(self._parts._replace(netloc=f"{login}@{ports.LOCALHOST}:{self.port}"))

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._listener.close()

    def cut(self) -> None:
        with self._lock:
            self._cut = True
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._cut = False

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection((self._parts.hostname, self._parts.port)) as server:
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._known(client, server):
                threading.Thread(target=self._back, args=(server, client), daemon=True).start()
                asked = _Asked()
                while data := client.recv(65536):
                    count = asked.read(data)
                    with self._lock:
                        self.statements += count
                    server.sendall(data)

    @contextmanager
    def _known(self, *pair: socket.socket) -> Iterator[None]:
        with self._lock:
            if self._cut:
                raise ConnectionRefusedError
            self._open.update(pair)
        try:
            yield
        finally:
            with self._lock:
                self._open.difference_update(pair)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)


class _Asked:
    """The frontend's half of PostgreSQL's protocol, as far as counting needs it: Query and Execute."""

    SSL_REQUEST, GSS_REQUEST = 80877103, 80877104

    def __init__(self) -> None:
        self._buffer, self._started = b"", False

    def read(self, data: bytes) -> int:
        """How many statements these bytes complete."""
        self._buffer += data
        count = 0
        while True:
            head = 5 if self._started else 8
            if len(self._buffer) < head:
                return count
            (length,) = struct.unpack_from("!i", self._buffer, head - 4 if self._started else 0)
            whole = length + 1 if self._started else length
            if len(self._buffer) < whole:
                return count
            if self._started:
                count += self._buffer[:1] in (b"Q", b"E")
            else:
                (code,) = struct.unpack_from("!i", self._buffer, 4)
                self._started = code not in (self.SSL_REQUEST, self.GSS_REQUEST)
            self._buffer = self._buffer[whole:]
