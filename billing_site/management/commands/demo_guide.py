"""What `make demo` prints when everything is up."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.utils import timezone

from billing_site.management.commands.seed_demo import PASSWORD, awaited_purchase
from subscriptions.models import Subscription
from subscriptions.states import Status
from webhooks.stripe_api import StripeError

PLACES = """\
Everything is up. Look here:

  back office      {url}/admin/              admin / {password}
  customer         {url}/billing             owner / {password}
  API              {url}/api/docs/
  Stripe sandbox   {stripe}
  caught mail      {mail}
"""

BUY = """
Next step: buy something, as a customer does:

  1. {url}/billing as owner / {password} (sign out first if you are somebody else)
     Press "Buy Fleet". On the sandbox's page try the card that is declined, then the one that works. You come back,
     and it is ACTIVE at once, whether its event has come or not.
  2. There too: "Change plan…" with its preview, "Cancel at term end", "Pause", an add-on, the portal of Stripe's.
  3. {stripe} lets time pass, and loses, repeats or delays events. For a payment that fails,
     choose the card that works today only, then let a month pass there: GRACE, with a mail.
"""

FIRST_STEPS = """
Or without a page: let Stripe report a payment for {number} of Acme Robotics, which is on trial:

  1. curl -sS -o /dev/null -X POST {stripe}/_sandbox/subscriptions/{at_stripe}/pay
     (or press Pay on the sandbox's page) and see it ACTIVE, with the event in its audit trail:
     {url}/admin/subscriptions/subscription/{pk}/change/
  2. Its month is over, nobody pays, and the {hours} hours in which a payment may settle have passed: GRACE.
     First look, then do it, then send the mail about it and read it at {mail}
     make manage RUN="advance_subscriptions --now {grace} --dry-run"
     make manage RUN="advance_subscriptions --now {grace}"
     make manage RUN="send_notices"
     (The term of Borealis Sensors is over by then, too: its steps are printed with these.)
     (The demo's worker mails within a minute by itself: then there is nothing left to send.)
  3. Two weeks later: SUSPENDED, and another mail:
     make manage RUN="advance_subscriptions --now {suspended}"
     make manage RUN="send_notices"

The clock was moved by hand there: whatever else you do happens today, unless it is told `--now`, too. Also try
{more}
"""

FOLLOWED = """
{number} of Acme Robotics is {status} by now: {url}/admin/subscriptions/subscription/{pk}/change/
Try
{more}
`make demo-reset` and `make demo` start afresh.
"""

MORE = """\
  - what will happen, and what would, if:  make manage RUN="forecast {number}"
                                           make manage RUN="forecast {number} --cancelled-on {soon}"
  - every verb from a terminal:            make manage RUN="subscription --help"
  - and in the back office:                "Change" on the subscription's page, each with a preview
  - devices: 35 of Cirrus Weather have slots, the ten premium ones are all in use. See them (log in as cirrus /
    {password}), let a service ask for one, and see what happens when one too many comes:
        make manage RUN="api_key create gateway --scope access:read --scope devices:write"
        curl -sS -H "Authorization: Bearer tk_…" {url}/api/v1/platform/tenants/cirrus/devices/sensor-01/access
        curl -sS -H "Authorization: Bearer tk_…" -H "Content-Type: application/json" \\
             -d '{{"device_id": "sensor-99", "tier": "premium"}}' {url}/api/v1/platform/tenants/cirrus/devices
    a smaller plan parks who came last:    make manage RUN="subscription change-plan {cirrus} --plan fleet-s \\
                                             --park newest --reason test --dry-run"
    the catalogue:                         {url}/admin/entitlements/devicetier/ (edit a plan's slots, then sync)
    that no slot is lost:                  make manage RUN="verify_slots"
    a copy for a gateway that is offline:  docs/edge.md
  - that the audit was not touched:        make manage RUN="verify_audit" (a job seals it every minute)"""


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
        acme = Subscription.objects.filter(tenant__slug="acme").order_by("pk").first()
        if acme and acme.status != Status.TRIAL:
            more = self._more(acme, places)
            self.stdout.write(FOLLOWED.format(**places, number=acme.number, status=acme.status, pk=acme.pk, more=more))
        elif acme and settings.DEMO_STRIPE_URL:
            self.stdout.write(BUY.format(**places))
            self.stdout.write(FIRST_STEPS.format(**places, **self._to_do(acme, places)))

    def _more(self, acme: Subscription, places: dict[str, str]) -> str:
        cirrus = Subscription.objects.filter(tenant__slug="cirrus").order_by("pk").first()
        soon = (timezone.now() + timedelta(days=40)).date()
        return MORE.format(**places, number=acme.number, cirrus=cirrus and cirrus.number, soon=soon)

    def _to_do(self, acme: Subscription, places: dict[str, str]) -> dict[str, object]:
        try:
            at_stripe = awaited_purchase(acme.tenant)
        except StripeError:
            at_stripe = "SUBSCRIPTION"
        month_over = timezone.now() + timedelta(days=32, hours=settings.SETTLEMENT_HOURS + 24)
        return {
            "number": acme.number,
            "more": self._more(acme, places),
            "pk": acme.pk,
            "at_stripe": at_stripe,
            "hours": settings.SETTLEMENT_HOURS,
            "grace": month_over.date(),
            "suspended": (month_over + timedelta(days=settings.GRACE_DAYS)).date(),
        }
