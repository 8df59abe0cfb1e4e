"""Authentication: one key for operators, optional keys for generation.

Without ADMIN_KEY the operator's routes answer only on loopback, and only requests whose Host header names loopback. A
web page can make its own host name resolve to 127.0.0.1 (DNS rebinding), but it cannot change the Host header.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from service.errors import Forbidden, Unauthorized
from service.operations.limits import RateLimiter

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_WRONG_KEY_RATE = "20/minute"


class Authenticator:
    """Checks the Authorization header. Wrong keys are rate-limited by client address, so that none can be guessed."""

    def __init__(self, admin_key: str, api_keys: Sequence[str], *, loopback_only: bool) -> None:
        """Set the keys.

        Args:
            admin_key: Opens every route; empty opens the operator's routes on loopback.
            api_keys: Open generation; none opens it to everyone.
            loopback_only: Whether the service listens on loopback only.
        """
        self._admin_key = admin_key.encode()
        self._api_keys = [key.encode() for key in api_keys]
        self._loopback_only = loopback_only
        self._wrong_keys = RateLimiter(_WRONG_KEY_RATE)

    def check_admin(self, authorization: str | None, host: str, address: str) -> None:
        """Let an operator through.

        Args:
            authorization: The Authorization header.
            host: The Host header.
            address: The client's address.

        Raises:
            Unauthorized: No key or a wrong one was sent.
            Forbidden: An API key was sent, or no ADMIN_KEY is set and the request does not come over loopback.
            RateLimited: This address sent too many wrong keys.
        """
        if not self._admin_key:
            if not self._loopback_only:
                raise Forbidden("ADMIN_KEY is not set; this route needs it when the service listens beyond loopback")
            if _host_name(host) not in _LOOPBACK:
                raise Forbidden(f"Host: got {host[:80]!r}, expected a loopback name, because ADMIN_KEY is not set")
            return
        key = self._bearer_key(authorization, address)
        if hmac.compare_digest(key, self._admin_key):
            return
        if self._is_api_key(key):
            raise Forbidden("this is an API key; this route needs ADMIN_KEY")
        raise self._wrong_key(address)

    def check_api(self, authorization: str | None, address: str) -> None:
        """Let a client of generation through; ADMIN_KEY is accepted, too.

        Args:
            authorization: The Authorization header.
            address: The client's address.

        Raises:
            Unauthorized: No key or a wrong one was sent.
            RateLimited: This address sent too many wrong keys.
        """
        if not self._api_keys:
            return
        key = self._bearer_key(authorization, address)
        is_admin = bool(self._admin_key) and hmac.compare_digest(key, self._admin_key)
        if not (self._is_api_key(key) or is_admin):
            raise self._wrong_key(address)

    def client_id(self, authorization: str | None, address: str) -> str:
        """Return what identifies a client for its rate limit: a hash of its key or, without API keys, its address."""
        if not self._api_keys:
            return address
        return hashlib.blake2b((authorization or "").encode(), digest_size=16).hexdigest()

    def _is_api_key(self, key: bytes) -> bool:
        return any([hmac.compare_digest(key, k) for k in self._api_keys])  # noqa: C419 - compares all: constant time

    def _bearer_key(self, authorization: str | None, address: str) -> bytes:
        self._wrong_keys.check(address)
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("a key is required: send the header Authorization: Bearer KEY")
        return key.strip().encode()

    def _wrong_key(self, address: str) -> Unauthorized:
        self._wrong_keys.hit(address)
        return Unauthorized("the key in the Authorization header is not valid")


def _host_name(host: str) -> str:
    """Return the name in a Host header, without the port and the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host
