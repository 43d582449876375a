"""The clock's own steadiness. That it outlives a stopped broker: test_story."""

from types import SimpleNamespace

import redis
from django.conf import settings
from redbeat.schedulers import acquire_distributed_beat_lock

from billing_site.beat import SteadyScheduler
from billing_site.celery import app
from billing_site.clock import JOBS


def test_a_broker_that_came_back_empty_gets_its_schedule_again() -> None:
    with redis.Redis.from_url(settings.REDIS_URL, decode_responses=True) as broker:
        scheduler = SteadyScheduler(app)
        acquire_distributed_beat_lock(sender=SimpleNamespace(scheduler=scheduler))
        before = set(broker.scan_iter("redbeat:*"))
        assert {f"redbeat:{job}" for job in JOBS} <= before
        broker.delete(*before)
        assert scheduler.tick() == 0.0
        assert set(broker.scan_iter("redbeat:*")) == before
        scheduler.close()
        broker.delete(*before)
