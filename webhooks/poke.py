"""Tell the workers that events wait, without the request waiting for the broker.

Publishing costs more than the whole intake, and a broker that is down would hold the request up for seconds. So a
thread of the web process publishes: at once when it is quiet, and for many events together when they pour in. A poke
that is lost costs nothing but time: the sweep finds the event within INBOX_SWEEP_SECONDS.
"""

import logging
import threading

from celery import current_app

log = logging.getLogger(__name__)

MOST_AT_ONCE = 8  # tasks per publishing; each drains until nothing waits
PAUSE_SECONDS = 0.25  # a publishing takes a millisecond of the process that answers: 8 each 0.25 s are 3 % of it
PAUSE_AFTER_FAILURE_SECONDS = 1.0  # a broker that is down is neither hammered nor lamented more often than that

_lock = threading.Lock()
_wanted = threading.Event()
_waiting = 0
_thread: threading.Thread | None = None


def inbox() -> None:
    """One more event waits. Returns at once."""
    global _waiting, _thread
    with _lock:
        _waiting += 1
        if _thread is None or not _thread.is_alive():  # also the first time after a fork
            _thread = threading.Thread(target=_publish_for_ever, name="inbox-poke", daemon=True)
            _thread.start()
    _wanted.set()


def _publish_for_ever() -> None:
    global _waiting
    pause = threading.Event()
    while True:
        _wanted.wait()
        _wanted.clear()
        with _lock:
            count, _waiting = min(_waiting, MOST_AT_ONCE), 0
        seconds = PAUSE_SECONDS
        try:
            for _ in range(count):
                current_app.send_task("webhooks.tasks.drain_inbox", retry=False, expires=60)
        except Exception as error:  # whatever the broker's client raises: the sweep is the promise, this is the hurry
            log.warning("The workers could not be told of new events: %s", type(error).__name__)
            seconds = PAUSE_AFTER_FAILURE_SECONDS
        pause.wait(seconds)
