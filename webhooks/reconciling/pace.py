"""Not more than so many requests a second, whoever asks."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Pacer:
    """Called before each request: waits until it may be sent. `clock` counts seconds, `wait` lets them pass."""

    per_second: float
    clock: Callable[[], float]
    wait: Callable[[float], object]
    _next: float = field(default=0.0, init=False)

    def __call__(self) -> None:
        now = self.clock()
        turn = max(self._next, now)
        if turn > now:
            self.wait(turn - now)
        self._next = turn + 1 / self.per_second

    def pause(self, seconds: float) -> None:
        """Stripe asked for a rest."""
        self._next = max(self._next, self.clock() + seconds)
