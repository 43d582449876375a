"""The Celery application: `celery -A billing_site.celery worker` and `… beat`."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "billing_site.settings")
app = Celery("termkeeper")
app.set_default()  # for every thread: `current_app` of one that did not make it would be another, without a broker
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
app.conf.imports = ("billing_site.clock",)  # adds the schedule
