"""Where everything is kept: dicts in memory and, if asked, a journal on disk.

The journal is a text file of JSON lines, each one whole change. A line is written by a single ``write`` before the
answer leaves, so a SIGKILL loses nothing that a caller was told; a torn last line is a change nobody was told of.
"""

import json
import os
from pathlib import Path
from typing import Any

Obj = dict[str, Any]

# kinds that are a history: the oldest go when there are more than this
_BOUNDED = {"event": 20_000, "idempotency": 20_000}
_COMPACT_FROM_BYTES = 32_000_000


class Store:
    """Objects by kind and id, in the order of their creation. Not thread-safe: ``World`` holds the lock."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises ValueError for a file that is not one of ours, OSError for one that cannot be written."""
        self._kinds: dict[str, dict[str, Obj]] = {}
        self._dirty: dict[tuple[str, str], None] = {}
        self._path, self._file, self._size, self._snapshot_size = path, -1, 0, 0
        if path is not None:
            self._load(path)
            self._compact(path)

    def all(self, kind: str) -> dict[str, Obj]:
        return self._kinds.setdefault(kind, {})

    def get(self, kind: str, object_id: str) -> Obj | None:
        return self.all(kind).get(object_id)

    def put(self, kind: str, obj: Obj) -> Obj:
        """Keep it (and remember to write it at the next commit, even if it is the same object, changed)."""
        objects = self.all(kind)
        objects[obj["id"]] = obj
        self._dirty[kind, obj["id"]] = None
        limit = _BOUNDED.get(kind)
        if limit and len(objects) > limit:
            self.remove(kind, next(iter(objects)))
        return obj

    def remove(self, kind: str, object_id: str) -> None:
        if self.all(kind).pop(object_id, None) is not None:
            self._dirty[kind, object_id] = None

    def clear(self) -> None:
        """Forget everything, on disk too."""
        self._kinds.clear()
        self._dirty.clear()
        if self._path is not None:
            self._compact(self._path)

    def commit(self) -> None:
        """Write what changed since the last commit as one line."""
        if not self._dirty:
            return
        if self._path is not None:
            changes = [[kind, object_id, self.all(kind).get(object_id)] for kind, object_id in self._dirty]
            line = json.dumps(changes, separators=(",", ":")).encode() + b"\n"
            _write_all(self._file, line)
            self._size += len(line)
            if self._size > max(_COMPACT_FROM_BYTES, 3 * self._snapshot_size):
                self._compact(self._path)
        self._dirty.clear()

    def close(self) -> None:
        self.commit()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _load(self, path: Path) -> None:
        if not path.exists():
            return
        for line in path.read_bytes().split(b"\n"):
            if not line:
                continue
            try:
                changes = json.loads(line)
            except ValueError:
                if self._kinds:
                    break  # the torn end of a change that was never acknowledged
                raise ValueError(f"{path} is not a state file of the Stripe sandbox") from None
            if not isinstance(changes, list):
                raise ValueError(f"{path} is not a state file of the Stripe sandbox")
            for kind, object_id, obj in changes:
                if obj is None:
                    self.all(kind).pop(object_id, None)
                else:
                    self.all(kind)[object_id] = obj

    def _compact(self, path: Path) -> None:
        """Replace the journal by a snapshot of the present, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".new")
        with fresh.open("wb") as file:
            for kind, objects in self._kinds.items():
                for object_id, obj in objects.items():
                    file.write(json.dumps([[kind, object_id, obj]], separators=(",", ":")).encode() + b"\n")
            self._size = self._snapshot_size = file.tell()
        fresh.replace(path)
        if self._file >= 0:
            os.close(self._file)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
