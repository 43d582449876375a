"""What a benchmark says: one line of the table and of `.local/bench.json`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """`ours` beside `floor`, the barest way to do the same work in the same run, or whatever `note` says it is beside.

    `met` is whether what `required` asks for was reached; None if nothing is asked.
    """

    name: str
    ours: float
    floor: float | None
    unit: str
    note: str = ""
    ratio: float | None = None
    required: str = ""
    met: bool | None = None

    def plain(self) -> dict[str, object]:
        names = ("name", "ours", "floor", "unit", "ratio", "note")
        return {name: _rounded(getattr(self, name)) for name in names}


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value
