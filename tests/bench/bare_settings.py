"""The service's settings for the views that are measured beside it: no middleware, no health check, only the view."""

from billing_site.settings import *  # noqa: F403
from billing_site.settings import DATABASES, MIDDLEWARE

ROOT_URLCONF = "tests.bench.bare"
MIDDLEWARE.clear()
DATABASES["default"]["CONN_HEALTH_CHECKS"] = False
