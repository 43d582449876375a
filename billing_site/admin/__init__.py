"""The back office: everything is found here, nothing that has a history is edited here."""

from billing_site.admin import customers, keys, notices, stripe

__all__ = ["customers", "keys", "notices", "stripe"]
