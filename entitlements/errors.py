"""What slots and quotas can refuse: see `subscriptions.errors` for how an error explains itself."""

from subscriptions.errors import DomainError


class TierNotSold(DomainError):
    """No subscription of this tenant that serves now sells slots of this tier."""

    code, http_status = "tier_not_sold", 402


class NoFreeSlot(DomainError):
    """Every slot of this tier is in use."""

    code, http_status = "no_free_slot", 409


class SlotsInUse(DomainError):
    """More devices are in these slots than would be left: say which devices are parked."""

    code, http_status = "slots_in_use", 409


class TierDiffers(DomainError):
    """The device has a slot of another tier: change its tier instead."""

    code, http_status = "tier_differs", 409


class StillAssigned(DomainError):
    """The device has a slot at another tenant: release it there first."""

    code, http_status = "still_assigned", 409


class NotAssigned(DomainError):
    """The device has no slot."""

    code, http_status = "not_assigned", 409


class NoSuchTier(DomainError):
    """There is no such device tier."""

    code, http_status = "no_such_tier", 400


class InvalidDeviceId(DomainError):
    """A device id is 1 to 128 letters, digits and . _ : @ + = ~ -, and begins with a letter or a digit."""

    code, http_status = "invalid_device_id", 400


class InvalidSlots(DomainError):
    """A number of slots is a whole number from 0 to 1,000,000."""

    code, http_status = "invalid_slots", 400


class TooMany(DomainError):
    """Up to 1,000 devices a call."""

    code, http_status = "too_many", 413


class DeviceNotFound(DomainError):
    """There is no such device."""

    code, http_status = "device_not_found", 404


class NotYet(DomainError):
    """Only what has been can be explained: what will be is in a forecast."""

    code, http_status = "not_yet", 400


class QuotaExceeded(DomainError):
    """The quota does not allow so much."""

    code, http_status = "quota_exceeded", 409


class NoSuchQuota(DomainError):
    """There is no such quota."""

    code, http_status = "no_such_quota", 404


class QuotaNotInUse(DomainError):
    """Not so much of the quota is in use."""

    code, http_status = "quota_not_in_use", 409


class NoSuchFeature(DomainError):
    """There is no such feature."""

    code, http_status = "no_such_feature", 404


class InvalidAmount(DomainError):
    """An amount is a whole number from 0 to 1,000,000,000,000,000; what is consumed or released is at least 1."""

    code, http_status = "invalid_amount", 400


class InvalidExpiry(DomainError):
    """An exception expires later than now."""

    code, http_status = "invalid_expiry", 400


class InvalidKey(DomainError):
    """An idempotency key is up to 255 printable ASCII characters."""

    code, http_status = "invalid_idempotency_key", 400


class KeyReused(DomainError):
    """This idempotency key has been used for something else."""

    code, http_status = "idempotency_key_reused", 422


class InvalidCursor(DomainError):
    """This is not a cursor of this feed."""

    code, http_status = "invalid_cursor", 400


class CursorExpired(DomainError):
    """This cursor is of another history of the database: begin without one, and read everything anew."""

    code, http_status = "cursor_expired", 410
