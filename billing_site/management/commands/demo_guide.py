"""What `make demo` prints when everything is up."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.utils import timezone

from billing_site.management.commands.seed_demo import PASSWORD, awaited_purchase
from subscriptions.models import Subscription, Tenant
from webhooks.models import StripeLink
from webhooks.stripe_api import StripeError

PLACES = """\
Everything is up. Look here:

  back office      {url}/admin/              admin / {password}
  customer         {url}/login               owner / {password}
  API              {url}/api/docs/
  Stripe sandbox   {stripe}
  caught mail      {mail}
"""

FIRST_STEPS = """\
Next step: let Stripe report a payment for Acme Robotics, which is on trial:

  1. curl -X POST {stripe}/_sandbox/subscriptions/{at_stripe}/pay
     (or press Pay on the sandbox's page) and see it ACTIVE, with the event in its audit trail:
     {url}/admin/subscriptions/subscription/{pk}/change/
  2. Its month is over and nobody pays: GRACE. First look, then do it, then read the mail about it ({mail}):
     make manage RUN="advance_subscriptions --now {grace} --dry-run"
     make manage RUN="advance_subscriptions --now {grace}"
     make manage RUN="send_notices"
  3. Two weeks later: SUSPENDED, and another mail:
     make manage RUN="advance_subscriptions --now {suspended}"
     make manage RUN="send_notices"
"""


class Command(BaseCommand):
    help = "Print where the demo's pages are, who to log in as, and what to try first."

    def handle(self, **options: Any) -> None:
        places = {
            "url": settings.DEMO_URL or "http://127.0.0.1:8000",
            "mail": settings.DEMO_MAIL_URL or settings.EMAIL.get("EMAIL_HOST", "as EMAIL_URL says"),
            "stripe": settings.DEMO_STRIPE_URL or settings.STRIPE_API_BASE,
            "password": PASSWORD,
        }
        self.stdout.write(PLACES.format(**places))
        acme = Tenant.objects.filter(slug="acme").first()
        if acme and settings.DEMO_STRIPE_URL:
            self.stdout.write(FIRST_STEPS.format(**places, **self._what_acme_bought(acme)))

    def _what_acme_bought(self, acme: Tenant) -> dict[str, object]:
        try:
            at_stripe = awaited_purchase(acme)
        except StripeError:
            at_stripe = "SUBSCRIPTION"
        linked = (
            StripeLink.objects.filter(pk=at_stripe).exclude(subscription=None).values_list("subscription", flat=True)
        )
        trial = Subscription.objects.filter(tenant=acme).order_by("pk").values_list("pk", flat=True)
        month_over = timezone.now() + timedelta(days=32, hours=settings.SETTLEMENT_HOURS + 24)
        return {
            "at_stripe": at_stripe,
            "pk": linked.first() or trial.first(),
            "grace": month_over.date(),
            "suspended": (month_over + timedelta(days=settings.GRACE_DAYS)).date(),
        }
