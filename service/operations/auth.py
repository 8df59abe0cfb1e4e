"""Who may do what: one key for what an operator does, optional keys for those who generate.

Without ADMIN_KEY the operator's routes answer only on loopback, and there only to requests that were addressed to it:
a page in a browser can have its own name resolve to 127.0.0.1, but it cannot change the Host that it sends.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Sequence

from limits import RateLimitItem, parse
from limits.errors import StorageError
from limits.storage import storage_from_string
from limits.strategies import SlidingWindowCounterRateLimiter

from service.errors import Forbidden, RateLimited, Unauthorized

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_WRONG_KEYS = parse("20/minute")


class Keys:
    """Checks the Authorization header. Wrong keys are counted by address, so that they cannot be guessed."""

    def __init__(self, admin_key: str, api_keys: Sequence[str], *, loopback_only: bool) -> None:
        self._admin = admin_key.encode()
        self._api = [key.encode() for key in api_keys]
        self._loopback_only = loopback_only
        self._guesses = Limits("", "")

    def check_admin(self, authorization: str | None, host: str, address: str) -> None:
        """Raised: Unauthorized, Forbidden, RateLimited."""
        if not self._admin:
            if not self._loopback_only:
                raise Forbidden("this needs ADMIN_KEY to be set, for the service can be reached from other machines")
            if _host_name(host) not in _LOOPBACK:
                raise Forbidden(f"Host: got {host[:80]!r}, expected this machine's own name, for no ADMIN_KEY is set")
            return
        key = self._key(authorization, address)
        if hmac.compare_digest(key, self._admin):
            return
        if self._is_api_key(key):
            raise Forbidden("this key may generate; what an operator does needs ADMIN_KEY")
        raise self._wrong(address)

    def check_api(self, authorization: str | None, address: str) -> None:
        """Raised: Unauthorized, RateLimited. The operator's key opens this too."""
        if not self._api:
            return
        key = self._key(authorization, address)
        is_admin = bool(self._admin) and hmac.compare_digest(key, self._admin)
        if not (self._is_api_key(key) or is_admin):
            raise self._wrong(address)

    def who(self, authorization: str | None, address: str) -> str:
        """Whose requests are counted together: those of a key, or, where none is asked for, of an address."""
        if not self._api:
            return address
        return hashlib.blake2b((authorization or "").encode(), digest_size=16).hexdigest()

    def _is_api_key(self, key: bytes) -> bool:
        return any([hmac.compare_digest(key, each) for each in self._api])  # noqa: C419 - all of them, always

    def _key(self, authorization: str | None, address: str) -> bytes:
        self._guesses.check_only(_WRONG_KEYS, address)
        kind, _, key = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not key.strip():
            raise Unauthorized("a key is needed: Authorization: Bearer KEY")
        return key.strip().encode()

    def _wrong(self, address: str) -> Unauthorized:
        self._guesses.count(_WRONG_KEYS, address)
        return Unauthorized("this key is not one of those that are known")


class Limits:
    """How often a client may ask: a sliding window, shared through Redis where there is one."""

    def __init__(self, rate: str, redis_url: str) -> None:
        self._rate: RateLimitItem | None = parse(rate) if rate else None
        url = redis_url.replace("unix://", "redis+unix://", 1) if redis_url.startswith("unix://") else redis_url
        storage = storage_from_string(url, wrap_exceptions=True) if rate and url else storage_from_string("memory://")
        self._window = SlidingWindowCounterRateLimiter(storage)

    def check(self, who: str) -> None:
        """Count a request. Raised: RateLimited. With Redis away nobody is refused: the engine's line is bounded anyway."""
        if self._rate is None:
            return
        try:
            if not self._window.hit(self._rate, who):
                raise self._too_many(self._rate, who)
        except StorageError:
            return

    def check_only(self, rate: RateLimitItem, who: str) -> None:
        """Raised: RateLimited when the rate has been used up; counts nothing."""
        if not self._window.test(rate, who):
            raise self._too_many(rate, who)

    def count(self, rate: RateLimitItem, who: str) -> None:
        self._window.hit(rate, who)

    def _too_many(self, rate: RateLimitItem, who: str) -> RateLimited:
        error = RateLimited(f"too often: expected at most {rate}")
        error.retry_after_s = max(1, round(self._window.get_window_stats(rate, who).reset_time - time.time()))
        return error


def _host_name(host: str) -> str:
    """The name in a Host header: without its port, and an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host
