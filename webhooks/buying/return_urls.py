"""Where customers may be sent back to from Stripe: https addresses of hosts on the list, and nowhere else.

What is accepted is written so plainly that every reader of URLs sees the same host in it.
"""

import re
from ipaddress import ip_address

from django.conf import settings

from webhooks.errors import UrlNotAllowed

LONGEST = 2000
SESSION_ID = "{CHECKOUT_SESSION_ID}"  # Stripe's and our placeholder for the id of the session
PLAIN = re.compile(r"[!-~]+")  # visible ASCII
NEVER = frozenset('\\<>"`^|')  # browsers read some of these as others
WHERE = re.compile(r"([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::([0-9]{1,5}))?", re.IGNORECASE)
PORTS = {"https": 443, "http": 80}


def checked(url: str, *, name: str) -> str:
    """The URL itself. Raises UrlNotAllowed."""
    if not is_allowed(url):
        raise UrlNotAllowed(parameter=name)
    return url


def is_allowed(url: str) -> bool:
    if not PLAIN.fullmatch(url) or len(url) > LONGEST or NEVER & set(url):
        return False
    scheme, _, rest = url.partition("://")
    found = WHERE.fullmatch(re.split("[/?#]", rest)[0])
    if found is None or scheme.lower() not in PORTS:
        return False
    scheme, host, port = scheme.lower(), found[1].lower(), int(found[2] or PORTS[scheme.lower()])
    is_near = _is_loopback(host)
    if scheme != "https" and not (is_near or settings.DEBUG):
        return False
    names = {f"{host}:{port}"} | ({host} if is_near or port == PORTS[scheme] else set())
    return any(entry.lower() in names for entry in settings.CHECKOUT_ALLOWED_HOSTS)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
