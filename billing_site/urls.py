"""Every URL of the service."""

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

from billing_site import ops, pages, returning
from billing_site.api import access, billing, changing, customer, devices, edge, entitlements, platform
from billing_site.billing_pages import billing as buying
from billing_site.billing_pages.changing import ChangePlan
from webhooks.intake import stripe_webhook

# dj-stripe's admin registers endpoints at Stripe under this name; its own view stays unmounted: 33 statements
# an event, one of them a call to Stripe inside a transaction.
registered_endpoints = ([path("<uuid:uuid>", stripe_webhook, name="djstripe_webhook_by_uuid")], "djstripe")

api = [
    path("customer/billing/config", billing.Config.as_view(), name="billing_config"),
    path("customer/billing/plans", billing.Plans.as_view(), name="billing_plans"),
    path("customer/billing/checkout-session", billing.CheckoutSession.as_view(), name="checkout_session"),
    path("customer/billing/addon-checkout", billing.AddonCheckout.as_view(), name="addon_checkout"),
    path("customer/billing/portal-session", billing.PortalSession.as_view(), name="portal_session"),
    path("customer/subscriptions/<slug:number>/renew", billing.RenewSubscription.as_view(), name="renew"),
    path("customer/billing/status", customer.BillingStatus.as_view(), name="billing_status"),
    path("customer/billing/subscriptions", customer.SubscriptionList.as_view(), name="billing_subscriptions"),
    path("customer/subscriptions", customer.SubscriptionList.as_view(), name="subscriptions"),
    path("customer/subscriptions/<slug:number>", customer.SubscriptionDetail.as_view(), name="subscription"),
    path("customer/subscriptions/<slug:number>/audit", customer.AuditOfSubscription.as_view(), name="audit"),
    path("customer/subscriptions/<slug:number>/forecast", customer.Forecast.as_view(), name="forecast"),
    path("customer/subscriptions/<slug:number>/devices", devices.DevicesOfSubscription.as_view(), name="in_slots"),
    path("customer/subscriptions/<slug:number>/cancel", changing.Cancel.as_view(), name="cancel"),
    path("customer/subscriptions/<slug:number>/resume", changing.Resume.as_view(), name="resume"),
    path("customer/subscriptions/<slug:number>/pause", changing.Pause.as_view(), name="pause"),
    path("customer/subscriptions/<slug:number>/change", changing.Change.as_view(), name="change"),
    path("customer/subscriptions/<slug:number>/change/preview", changing.PreviewChange.as_view(), name="preview"),
    path("customer/devices", devices.DeviceList.as_view(), name="devices"),
    path("customer/devices/<str:device_id>", devices.DeviceDetail.as_view(), name="device"),
    path("customer/devices/<str:device_id>/tier", devices.TierOfDevice.as_view(), name="tier_of_device"),
    path("customer/devices/<str:device_id>/access", devices.AccessOfDevice.as_view(), name="access_of_own_device"),
    path("customer/devices/<str:device_id>/explain", devices.Explain.as_view(), name="explain"),
    path("customer/device-tiers", devices.DeviceTierList.as_view(), name="device_tiers"),
    path("customer/subscription/audit", customer.AuditOfTenant.as_view(), name="audit_of_tenant"),
    path("customer/billing/entitlements", entitlements.OwnEntitlements.as_view(), name="entitlements"),
    path("platform/tenants/<slug:tenant>/entitlements", entitlements.TenantEntitlements.as_view()),
    path("platform/tenants/<slug:tenant>/quotas/<slug:feature>/consume", entitlements.Consume.as_view()),
    path("platform/tenants/<slug:tenant>/quotas/<slug:feature>/release", entitlements.Release.as_view()),
    path("platform/tenants/<slug:tenant>/quotas/<slug:feature>/set", entitlements.SetGauge.as_view()),
    path("platform/changes", edge.Changes.as_view(), name="changes"),
    path("platform/tenants/<slug:tenant>/snapshot", edge.Snapshot.as_view(), name="snapshot"),
    path("platform/access", access.access_of_devices, name="access_of_devices"),
    path("platform/tenants/<str:tenant>/devices/<str:device_id>/access", access.access_of_device, name="access"),
    path("platform/tenants/<slug:tenant>/devices", platform.Devices.as_view(), name="platform_devices"),
    path("platform/tenants/<slug:tenant>/devices/<str:device_id>", platform.Device.as_view(), name="platform_device"),
]

urlpatterns = [
    path("webhook/stripe", stripe_webhook, name="stripe_webhook"),
    path("webhook/stripe/", include(registered_endpoints, namespace="djstripe")),
    path("api/v1/", include(api)),
    path(".well-known/jwks.json", edge.Jwks.as_view(), name="jwks"),
    path("api/schema", SpectacularAPIView.as_view(permission_classes=[]), name="schema"),
    path("api/docs/", SpectacularSwaggerView.as_view(url_name="schema", permission_classes=[]), name="docs"),
    path("billing", buying.BillingPage.as_view(), name="billing"),
    path("billing/buy", buying.Buy.as_view(), name="billing_buy"),
    path("billing/addon", buying.BuyAddon.as_view(), name="billing_addon"),
    path("billing/portal", buying.Portal.as_view(), name="billing_portal"),
    path("billing/subscriptions/<slug:number>/change", ChangePlan.as_view(), name="billing_change"),
    path("billing/subscriptions/<slug:number>/renew", buying.Renew.as_view(), name="billing_renew"),
    path("billing/subscriptions/<slug:number>/<slug:verb>", buying.Press.as_view(), name="billing_press"),
    path("billing/return", returning.billing_return, name="billing_return"),
    path("admin/", admin.site.urls),
    path("login", LoginView.as_view(template_name="login.html"), name="login"),
    path("logout", LogoutView.as_view(), name="logout"),
    path("healthz", ops.healthz, name="healthz"),
    path("readyz", ops.readyz, name="readyz"),
    path("", pages.home, name="home"),
]
handler400 = "billing_site.api.problems.bad_request"
handler404 = "billing_site.api.problems.not_found"
handler500 = "billing_site.api.problems.server_error"
