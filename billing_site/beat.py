"""The clock that survives its broker: `celery … beat --scheduler billing_site.beat.SteadyScheduler`.

redbeat's own ends when the broker is away for a moment, or when its lock expired while the machine was stalled; and
after a broker came back empty it would go on with no schedule at all.
"""

import logging
from typing import Any

import redis
from kombu.exceptions import OperationalError
from redbeat import RedBeatScheduler
from redis.exceptions import LockError

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0


class SteadyScheduler(RedBeatScheduler):
    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Seconds until the next look. One that lost its lock waits for it, and lays its schedule anew."""
        try:
            try:
                return float(super().tick(*args, **kwargs))
            except LockError:
                log.warning("The lock of the clock is lost: waiting for it.")
                self.lock.acquire()
                self.setup_schedule()
                return 0.0
        except (redis.ConnectionError, redis.TimeoutError, OperationalError) as error:
            log.warning("The broker is away: %s", type(error).__name__)
            return PAUSE_SECONDS
