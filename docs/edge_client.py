"""An example of a gateway that asks nobody while it serves: it keeps signed snapshots, and follows what changes.

It needs an API key with the scopes changes:read and snapshot:read, and PyJWT[crypto]. Why it does what it does, in
this order: edge.md. `poll` belongs into a thread or a timer, every few seconds; `served` is asked for every message.
"""

import json
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

import jwt

TYPE = "termkeeper-snapshot+jwt"
CLAIMS = ["iss", "sub", "iat", "exp", "version"]
TIMEOUT_SECONDS = 10


class Refused(Exception):
    """A snapshot that must not be believed."""


class Edge:
    """The snapshots of some tenants, and whether a device is served by what they say."""

    def __init__(self, url: str, api_key: str, tenants: Iterable[str], clock: Callable[[], float] = time.time) -> None:
        self.url, self.api_key, self.tenants, self.clock = url, api_key, {*tenants}, clock
        self.keys: dict[str, jwt.PyJWK] = {}
        self.held: dict[str, dict[str, Any]] = {}  # tenant → the claims of its snapshot
        self.cursor: str | None = None
        self.stale: set[str] = set()  # tenants whose snapshot has to be read again

    # --- while it serves: no network ---------------------------------------------------------------------------------

    def served(self, tenant: str, device_id: str) -> dict[str, Any] | None:
        """The tier and features of a device that is served now; None for any other, and where nothing valid says so."""
        claims = self.held.get(tenant)
        if claims is None or claims["exp"] <= self.clock():
            return None
        device = claims["devices"].get(device_id)
        return device and {"tier": device["tier"], "features": claims["tiers"].get(device["tier"], {})}

    # --- every few seconds -------------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Bring the copy to what the service says. Safe to repeat, late or not at all: what could not be read is read
        by the next one, and what is too old until then is not believed. Raises HTTPError for a key that is not good.
        """
        try:
            self._follow()
            self.stale |= {tenant for tenant in self.tenants if self._is_due(tenant)}
            for tenant in sorted(self.stale):
                self._read(tenant)
        except HTTPError as error:
            if error.code in (401, 403):
                raise  # the key is wrong: waiting does not help
        except (URLError, OSError):
            pass  # the service is away: a real gateway counts this, and raises an alarm

    def _follow(self) -> None:
        """Learn what has to be read again. The cursor comes first, the reading afterwards: what changes in between is
        in the feed. It goes on only with what is stale kept in mind, so that a change is never forgotten.
        """
        if self.cursor is None:
            self.cursor, self.stale = self._json("/api/v1/platform/changes")["cursor"], {*self.tenants}
        more = True
        while more:
            try:
                page = self._json("/api/v1/platform/changes?" + urlencode({"after": self.cursor}))
            except HTTPError as error:
                if error.code != 410:
                    raise
                self.cursor = None  # another history: nothing is known of what was missed
                return self._follow()
            for change in page["changes"]:
                self.stale |= {change["tenant"]} & self.tenants if change["tenant"] else self.tenants
            self.cursor, more = page["cursor"], page["more"]
        return None

    def _is_due(self, tenant: str) -> bool:
        """Past half of its life: the clock may end something soon, or an outage may begin."""
        claims = self.held.get(tenant)
        return claims is None or self.clock() >= (claims["iat"] + claims["exp"]) / 2

    def _read(self, tenant: str) -> None:
        try:
            token = self._get(f"/api/v1/platform/tenants/{quote(tenant, safe='')}/snapshot").decode()
            self.held[tenant] = self.believed(tenant, token)
        except HTTPError as error:
            if error.code != 404:
                raise
            self.held.pop(tenant, None)  # there is no such tenant, or it is no longer this key's
        except (Refused, jwt.InvalidTokenError):
            return  # what is held goes on until it expires; it is asked for again by the next poll
        self.stale.discard(tenant)

    # --- what may be believed ----------------------------------------------------------------------------------------

    def believed(self, tenant: str, token: str) -> dict[str, Any]:
        """The claims of a snapshot that is the service's own, this tenant's, not expired, and not older than the one
        that is held, unless that has expired. Raises Refused, jwt.InvalidTokenError.
        """
        key, now = self._key(jwt.get_unverified_header(token)), self.clock()
        required: Any = {"require": CLAIMS, "verify_exp": False, "verify_iat": False}  # by our clock, below
        claims: dict[str, Any] = jwt.decode(token, key, algorithms=["EdDSA"], issuer="termkeeper", options=required)
        held = self.held.get(tenant)
        if claims["sub"] != tenant:
            raise Refused("another tenant's")
        if claims["exp"] <= now:
            raise Refused("expired")
        if held and now < held["exp"] and claims["version"] < held["version"]:
            raise Refused("older than what is held")
        return claims

    def _key(self, header: dict[str, Any]) -> jwt.PyJWK:
        """The published key of this name; one that is not known yet is looked for once."""
        if header.get("typ") != TYPE:
            raise Refused("no snapshot")
        kid = str(header.get("kid"))
        if kid not in self.keys:
            found = jwt.PyJWKSet.from_dict(self._json("/.well-known/jwks.json"))
            self.keys = {key.key_id: key for key in found.keys if key.key_id}
        if kid not in self.keys:
            raise Refused("signed with a key that is not published")
        return self.keys[kid]

    # --- the network -------------------------------------------------------------------------------------------------

    def _get(self, path: str) -> bytes:
        request = Request(self.url + path, headers={"Authorization": f"Bearer {self.api_key}"})
        with urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            return bytes(answer.read())

    def _json(self, path: str) -> Any:
        return json.loads(self._get(path))
