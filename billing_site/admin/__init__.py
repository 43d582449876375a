"""The back office: everything is found here, nothing that has a history is edited here."""

from billing_site.admin import customers, notices, stripe

__all__ = ["customers", "notices", "stripe"]
