"""What drf-spectacular has to be told to describe the API."""

from drf_spectacular.authentication import SessionScheme


class MemberSessionScheme(SessionScheme):  # type: ignore[no-untyped-call]
    target_class = "billing_site.api.authentication.MemberSession"
