"""Every setting of Termkeeper. The environment is read here, at the top, once; nowhere else.

A variable that is missing or malformed ends the process with one line that names it. `.env.example` explains each.
"""

import base64
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import environ
from django.core.exceptions import ImproperlyConfigured
from django.urls import reverse_lazy

T = TypeVar("T")
BASE_DIR = Path(__file__).resolve().parent.parent
REQUIRED: Any = environ.Env.NOTSET

env = environ.Env()
env.read_env(BASE_DIR / ".env")  # optional; the process environment wins


def refuse(name: str, why: object) -> NoReturn:
    sys.exit(f"Termkeeper cannot start: {name} {why} (see .env.example)")


def read(
    name: str, parse: Callable[..., T], default: Any = REQUIRED, *, valid: Callable[[T], bool] = lambda _: True
) -> T:
    """One variable of the environment, parsed. An empty one counts as unset."""
    given = env.ENVIRON.get(name, "").strip()
    if not given and default is REQUIRED:
        refuse(name, "is not set")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # django-environ's own prints the whole URL, password included
            value = parse(name) if given else default
    except (ValueError, ImproperlyConfigured, AttributeError, KeyError, Warning):
        refuse(name, "is malformed")
    if given and not valid(value):
        refuse(name, "has a value that is not allowed")
    return value


def yes_or_no(name: str) -> bool:
    """A strict boolean: django-environ reads every unknown word as False."""
    word = env.str(name).strip().lower()
    if word not in {"1", "0", "true", "false", "yes", "no", "on", "off"}:
        raise ValueError(word)
    return word in {"1", "true", "yes", "on"}


def words(name: str) -> list[str]:
    return [word.strip() for word in env.str(name).split(",") if word.strip()]


def numbers(name: str) -> list[int]:
    return [int(word) for word in words(name)]


def ed25519_seeds(name: str) -> list[bytes]:
    """base64url, strictly: Python's own skips over letters that it does not know."""
    found = [base64.b64decode(word + "=" * (-len(word) % 4), altchars=b"-_", validate=True) for word in words(name)]
    if not found or len(set(found)) < len(found) or any(len(seed) != 32 for seed in found):
        raise ValueError(name)
    return found


def positive(value: float) -> bool:
    return 0 < value <= 86_400


def days(value: int) -> bool:
    return 0 <= value <= 3650


DEBUG = read("DEBUG", yes_or_no, False)
SECRET_KEY = read("SECRET_KEY", env.str, valid=lambda key: len(key) >= 16)
ALLOWED_HOSTS = read("ALLOWED_HOSTS", words, ["127.0.0.1", "localhost"])
DATABASE = read("DATABASE_URL", env.db_url, valid=lambda db: db.get("ENGINE", "").endswith("postgresql"))
DATABASE_PREPARES = read("DATABASE_PREPARES", yes_or_no, True)
REDIS_URL = read("REDIS_URL", env.str, valid=lambda url: url.startswith(("redis://", "rediss://", "unix://")))

STRIPE_SECRET_KEY = read("STRIPE_SECRET_KEY", env.str, "")
STRIPE_PUBLISHABLE_KEY = read("STRIPE_PUBLISHABLE_KEY", env.str, "")
STRIPE_WEBHOOK_SECRETS = read("STRIPE_WEBHOOK_SECRET", words, [])
STRIPE_API_BASE = read(
    "STRIPE_API_BASE", env.str, "https://api.stripe.com", valid=lambda url: url.startswith(("http://", "https://"))
).rstrip("/")
STRIPE_LIVE_MODE = read("STRIPE_LIVE_MODE", yes_or_no, False)
STRIPE_AUTOMATIC_TAX = read("STRIPE_AUTOMATIC_TAX", yes_or_no, False)

EMAIL = read("EMAIL_URL", env.email_url, env.email_url_config("smtp://localhost:25"))
DEFAULT_FROM_EMAIL = read("DEFAULT_FROM_EMAIL", env.str, "Termkeeper <billing@localhost>", valid=lambda a: "@" in a)

GRACE_DAYS = read("GRACE_DAYS", env.int, 14, valid=days)
SUSPENSION_DAYS = read("SUSPENSION_DAYS", env.int, 60, valid=days)
SETTLEMENT_HOURS = read("SETTLEMENT_HOURS", env.int, 72, valid=lambda hours: 0 <= hours <= 24 * 60)
NOTICE_DAYS = read("NOTICE_DAYS", numbers, [30], valid=lambda many: bool(many) and all(0 < n <= 3650 for n in many))
LIFECYCLE_INTERVAL_SECONDS = read("LIFECYCLE_INTERVAL_SECONDS", env.float, 60.0, valid=positive)
INBOX_SWEEP_SECONDS = read("INBOX_SWEEP_SECONDS", env.float, 15.0, valid=positive)
INBOX_LEASE_SECONDS = read("INBOX_LEASE_SECONDS", env.float, 60.0, valid=positive)
RECONCILE_INTERVAL_SECONDS = read("RECONCILE_INTERVAL_SECONDS", env.float, 3600.0, valid=positive)
RECONCILE_READS_PER_SECOND = read("RECONCILE_READS_PER_SECOND", env.float, 20.0, valid=lambda n: 0.1 <= n <= 100)
RECONCILE_REPAIRS = read("RECONCILE_REPAIRS", yes_or_no, True)
SNAPSHOT_KEYS = read("SNAPSHOT_KEYS", ed25519_seeds, [])
SNAPSHOT_SECONDS = read("SNAPSHOT_SECONDS", env.int, 900, valid=positive)
CHECKOUT_ALLOWED_HOSTS = read("CHECKOUT_ALLOWED_HOSTS", words, [])
CHECKOUT_PROVISIONS_TENANTS = read("CHECKOUT_PROVISIONS_TENANTS", yes_or_no, False)

# Where the demo's other pages are; set by `make demo`.
DEMO_URL = read("DEMO_URL", env.str, "")
DEMO_MAIL_URL = read("DEMO_MAIL_URL", env.str, "")
DEMO_STRIPE_URL = read("DEMO_STRIPE_URL", env.str, "")

# --- Django ---------------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "billing_site",
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "subscriptions",
    "entitlements",
    "webhooks",
    "notifications",
    "djstripe",
]
MIDDLEWARE = [
    "billing_site.doorbell.doorbell",
    "billing_site.provenance.provenance",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "billing_site.urls"
WSGI_APPLICATION = "billing_site.wsgi.application"
APPEND_SLASH = False  # the contract's URLs have none; a redirect would turn a POST into a GET
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {
    "default": {
        **DATABASE,
        "ENGINE": "django.db.backends.postgresql",
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {
            "connect_timeout": 5,
            # A forgotten open transaction would hold back every reader that waits for committed rows.
            "options": "-c idle_in_transaction_session_timeout=60000",
            # Django's own cursors prepare nothing, whatever this says. The access check does, at its first use on a
            # connection: parsing and planning it is more work than answering it. A pgbouncer that pools by transaction
            # gives every statement another server connection: it must be 1.22 with max_prepared_statements, else "no".
            "prepare_threshold": 0 if DATABASE_PREPARES else None,
            **DATABASE.get("OPTIONS", {}),
        },
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
MIGRATION_MODULES = {"djstripe": "webhooks.djstripe_migrations"}  # one squashed migration: a minute becomes seconds

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
FORMAT_MODULE_PATH = ["billing_site.formats"]
STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / ".local" / "static"
WHITENOISE_ROOT = BASE_DIR / "billing_site" / "static" / "root"  # /favicon.ico, for pages that name none
WHITENOISE_USE_FINDERS = not STATIC_ROOT.exists()  # the image collects its files; a checkout serves them where they are
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "home"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
SESSION_COOKIE_HTTPONLY = True
# TLS ends in front of the service: forms come from these origins though the request that arrives is plain.
CSRF_TRUSTED_ORIGINS = [f"https://{'*' if host.startswith('.') else ''}{host}" for host in ALLOWED_HOSTS if host != "*"]
SECURE_CONTENT_TYPE_NOSNIFF = True
vars().update({key: value for key, value in EMAIL.items() if key.isupper()})  # EMAIL_HOST, EMAIL_PORT, …
EMAIL_TIMEOUT = 10

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name} {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    # stripe-python logs request bodies at debug and headers at info: neither belongs in a log.
    "loggers": {
        "stripe": {"level": "WARNING"},
        "django.request": {"level": "ERROR"},
        "django.security": {"level": "ERROR"},
    },
}

# --- Stripe ---------------------------------------------------------------------------------------------------------

STRIPE_API_VERSION = "2026-05-27.dahlia"  # pinned: an upgrade of the client library must not change what is read
STRIPE_TIMEOUT_SECONDS = 10
STRIPE_API_HOST = STRIPE_API_BASE  # dj-stripe's name for it
SILENCED_SYSTEM_CHECKS = ["djstripe.W002"]  # it warns of a stand-in; ours is chosen by the environment
STRIPE_PUBLIC_KEY = STRIPE_PUBLISHABLE_KEY  # dj-stripe's name for it
DJSTRIPE_SUBSCRIBER_MODEL = "subscriptions.Tenant"
DJSTRIPE_SUBSCRIBER_MODEL_MIGRATION_DEPENDENCY = "0001_initial"
DJSTRIPE_FOREIGN_KEY_TO_FIELD = "id"

# --- Celery (the schedule itself is billing_site/clock.py) -----------------------------------------------------------

CELERY_BROKER_URL = REDIS_URL
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_TASK_TIME_LIMIT = 600
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 1200,  # longer than the task time limit, or a slow task would run twice
    "socket_timeout": 5,
    "socket_connect_timeout": 2,
}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TIMEZONE = "UTC"
CELERY_REDBEAT_REDIS_URL = REDIS_URL
CELERY_BEAT_MAX_LOOP_INTERVAL = 5
CELERY_REDBEAT_LOCK_TIMEOUT = 30  # seconds until a second beat takes over from one that died; renewed every loop

# --- API ------------------------------------------------------------------------------------------------------------

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "billing_site.api.authentication.MemberSession",
        "billing_site.api.authentication.ApiKeyHeader",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["billing_site.api.permissions.IsTenant"],
    "DEFAULT_PAGINATION_CLASS": "billing_site.api.pagination.CursorPages",
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "billing_site.api.problems.problem_response",
    "PAGE_SIZE": 50,
    "UNICODE_JSON": False,  # what a caller sent is told back as it came: half a surrogate pair has no UTF-8
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Termkeeper",
    "VERSION": "1",
    "DESCRIPTION": "What a tenant bought, until when, and what its devices may do.",
    "SCHEMA_PATH_PREFIX": "/api/v1",  # what follows it names the group: customer, platform
    "OAS_VERSION": "3.1.1",  # its schemas are JSON Schema: the tests hold real answers to them
    "SERVE_INCLUDE_SCHEMA": False,
    "ENUM_NAME_OVERRIDES": {"NowOrTermEnd": [("now", "now"), ("term_end", "term_end")]},  # it stands under two names
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
}

# --- Admin ----------------------------------------------------------------------------------------------------------


def page(title: str, model: str, icon: str) -> dict[str, object]:
    return {"title": title, "icon": icon, "link": reverse_lazy(f"admin:{model}_changelist")}


UNFOLD = {
    "SITE_TITLE": "Termkeeper",
    "SITE_HEADER": "Termkeeper",
    "SITE_SUBHEADER": "Subscriptions of an IoT platform",
    "SIDEBAR": {
        "show_search": True,
        "show_all_applications": True,  # dj-stripe's mirrored objects among them
        "navigation": [
            {
                "title": "Customers",
                "items": [
                    page("Tenants", "subscriptions_tenant", "domain"),
                    page("Subscriptions", "subscriptions_subscription", "event_repeat"),
                    page("Set aside", "subscriptions_setaside", "report"),
                    page("Audit", "subscriptions_auditentry", "history"),
                    page("Notices", "notifications_notice", "mail"),
                    page("Devices", "entitlements_device", "router"),
                    page("Feature overrides", "entitlements_featureoverride", "tune"),
                ],
            },
            {
                "title": "Catalogue",
                "items": [
                    page("Plans", "subscriptions_plan", "sell"),
                    page("Slot packs", "entitlements_slotpack", "library_add"),
                    page("Device tiers", "entitlements_devicetier", "layers"),
                    page("Features", "entitlements_feature", "toggle_on"),
                ],
            },
            {
                "title": "Stripe",
                "items": [
                    page("Events", "webhooks_stripeevent", "notifications"),
                    page("Links", "webhooks_stripelink", "link"),
                    page("Prices", "webhooks_stripeprice", "payments"),
                    page("Drift", "webhooks_drift", "compare_arrows"),
                    page("Reconciliations", "webhooks_reconciliation", "sync"),
                    page("To tell Stripe", "webhooks_telling", "outbox"),
                ],
            },
            {
                "title": "Staff",
                "items": [
                    page("Users", "auth_user", "person"),
                    page("Groups", "auth_group", "group"),
                    page("API keys", "billing_site_apikey", "key"),
                ],
            },
        ],
    },
}
