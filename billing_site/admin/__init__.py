"""The back office: everything is found here, nothing that has a history is edited here."""

from billing_site.admin import catalogue, customers, devices, keys, notices, stripe, tellings

__all__ = ["catalogue", "customers", "devices", "keys", "notices", "stripe", "tellings"]
