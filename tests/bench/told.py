"""A process of ours that does what a line says, and answers with a line of JSON."""

import json
import os
import subprocess
from typing import Any, Self

from billing_site.local.process import CHECKOUT, module


class Told:
    """`python -m MODULE` with everything that a worker has, on this database. Ready once it has printed a line."""

    def __init__(self, name: str, database: str) -> None:
        self._process = subprocess.Popen(
            module(name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(os.environ) | {"DATABASE_URL": database},
            cwd=CHECKOUT,
            text=True,
        )

    def __enter__(self) -> Self:
        self.line()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def tell(self, what: Any) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def line(self) -> str:
        assert self._process.stdout
        line: str = self._process.stdout.readline()
        if not line:
            raise RuntimeError("The process has ended: see its error above.")
        return line

    def __call__(self, what: Any) -> Any:
        self.tell(what)
        return json.loads(self.line())
