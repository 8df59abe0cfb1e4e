"""Authentication: one key for operators, optional keys for generation.

Without keys, the service trusts the machine that it runs on, and nobody else. A web page can make its own host name
resolve to 127.0.0.1 (DNS rebinding), and it can send requests to other origins, but it cannot change the Host and
Origin headers that the browser sends. So both are checked wherever no key is required.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from service.access.api_keys import ApiKey, ApiKeys
from service.access.limits import RateLimiter
from service.errors import Forbidden, Unauthorized

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_WRONG_KEY_RATE = "20/minute"
_IPV6_CLIENT_PREFIX = 64
"""Bits of an IPv6 address that name one client: a household or a machine gets all the addresses of such a network."""


@dataclass(frozen=True, slots=True)
class RequestSource:
    """What a request says about where it comes from."""

    authorization: str | None  # the header of this name, and so on
    host: str
    origin: str | None
    address: str  # of the client; behind trusted proxies, the one that they saw
    is_forwarded: bool  # whether a header says that a proxy sent it


class Authenticator:
    """Checks keys and, where none is required, the Host and Origin headers. Wrong keys are rate-limited by address."""

    def __init__(
        self,
        admin_key: str,
        api_keys: ApiKeys,
        *,
        loopback_only: bool,
        allowed_hosts: Iterable[str] = (),
        allowed_origins: Iterable[str] = (),
        behind_proxy: bool = False,
    ) -> None:
        """Set the keys.

        Args:
            admin_key: Opens every route; empty opens the operator's routes to this machine.
            api_keys: Open generation; where none is required, everyone who can connect may generate.
            loopback_only: Whether the service listens on loopback only.
            allowed_hosts: Host names in lower case, besides those of loopback, under which clients may use the service
                without keys.
            allowed_origins: Origins in lower case, besides the service's own, whose web pages may use the service
                without keys.
            behind_proxy: Whether proxies are trusted; then a connection over loopback may come from anywhere.
        """
        self._admin_key = admin_key.encode()
        self._api_keys = api_keys
        self._loopback_only = loopback_only
        self._allowed_hosts = set(allowed_hosts)
        self._allowed_origins = set(allowed_origins)
        self._behind_proxy = behind_proxy
        self._wrong_keys = RateLimiter(_WRONG_KEY_RATE)

    @property
    def has_admin_key(self) -> bool:
        """Whether the operator's routes need a key."""
        return bool(self._admin_key)

    def check_source(self, source: RequestSource) -> None:
        """Refuse web pages of other sites, on every route of a service on loopback that requires no API key.

        Raises:
            Forbidden: The Host header names neither loopback nor an allowed host, or the request is cross-origin.
        """
        if self._loopback_only and not self._api_keys.are_required:
            if source.origin is not None and source.origin.lower() in self._allowed_origins:
                source = replace(source, origin=None)
            _check_browser(source, self._allowed_hosts, "a loopback name or a name in ALLOWED_HOSTS")

    def check_admin(self, source: RequestSource) -> None:
        """Let an operator through.

        Raises:
            Unauthorized: No key or a wrong one was sent.
            Forbidden: An API key was sent, or no ADMIN_KEY is set and the request does not come directly from this
                machine.
            RateLimited: This address sent too many wrong keys.
        """
        if not self._admin_key:
            self._check_local(source)
            return
        key = _bearer_key(source.authorization)
        if key is not None and hmac.compare_digest(key, self._admin_key):
            return
        if key is not None and self._api_keys.find(key) is not None:
            raise Forbidden("this is an API key; this route needs ADMIN_KEY")
        raise self._unauthorized(key, source.address)

    def check_api(self, source: RequestSource) -> ApiKey | None:
        """Let a client of generation through; ADMIN_KEY is accepted, too.

        Returns:
            What is known of its API key; None if it sent none that is needed, or ADMIN_KEY.

        Raises:
            Unauthorized: No key or a wrong one was sent.
            RateLimited: This address sent too many wrong keys.
        """
        if not self._api_keys.are_required:
            return None
        key = _bearer_key(source.authorization)
        if key is not None and self._admin_key and hmac.compare_digest(key, self._admin_key):
            return None
        result = self._api_keys.find(key) if key is not None else None
        if result is None:
            raise self._unauthorized(key, source.address)
        return result

    def key_id(self, source: RequestSource) -> str:
        """Return a hash of the key of a request that was let through; empty if none is required."""
        if not self._api_keys.are_required:
            return ""
        return hashlib.blake2b(_bearer_key(source.authorization) or b"", digest_size=16).hexdigest()

    def client_id(self, source: RequestSource) -> str:
        """Return what identifies a client for its rate limit: its key or, without API keys, its address."""
        return self.key_id(source) or _client_address(source.address)

    def _check_local(self, source: RequestSource) -> None:
        if not self._loopback_only:
            raise Forbidden("ADMIN_KEY is not set; this route needs it when the service listens beyond loopback")
        if self._behind_proxy or source.is_forwarded or not _is_loopback(source.address):
            raise Forbidden("ADMIN_KEY is not set; this route needs it when requests come through a proxy")
        _check_browser(source, set(), "a loopback name, because ADMIN_KEY is not set")

    def _unauthorized(self, key: bytes | None, address: str) -> Unauthorized:
        """The error of a request without the right key. Only here are wrong keys counted: a right key always passes."""
        if key is None:
            return Unauthorized("a key is required: send the header Authorization: Bearer KEY")
        self._wrong_keys.hit(_client_address(address))
        return Unauthorized("the key in the Authorization header is not valid")


def _bearer_key(authorization: str | None) -> bytes | None:
    """The key in an Authorization header; None if there is none."""
    scheme, _, key = (authorization or "").strip().partition(" ")
    return key.strip().encode() if scheme.lower() == "bearer" and key.strip() else None


def _check_browser(source: RequestSource, allowed_hosts: set[str], expected: str) -> None:
    """Check that the request was not made by a web page of another site.

    Args:
        source: Of the request.
        allowed_hosts: Names besides those of loopback.
        expected: Which names are accepted, for the message.

    Raises:
        Forbidden: It could have been.
    """
    host = source.host.lower()
    if _host_name(host) not in _LOOPBACK | allowed_hosts:
        raise Forbidden(f"Host: got {source.host[:80]!r}, expected {expected}")
    if source.origin is None:
        return
    origin = _origin_host(source.origin)
    if origin != host and _host_name(origin) not in allowed_hosts:  # a proxy may have changed the Host header
        raise Forbidden(f"Origin: got {source.origin[:80]!r}, expected the origin of this service: {host[:80]!r}")


def _origin_host(origin: str) -> str:
    """Return the host and port in an Origin header; empty if it has none, such as "null"."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _host_name(host: str) -> str:
    """Return the name in a Host header, without the port and the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_loopback(address: str) -> bool:
    parsed = _parsed_address(address)
    return parsed is not None and parsed.is_loopback


def _client_address(address: str) -> str:
    """The address that is counted: of IPv6, the network of one client."""
    parsed = _parsed_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(parsed), _IPV6_CLIENT_PREFIX), strict=False))
    return str(parsed or address)


def _parsed_address(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, of IPv4 also where IPv6 writes it (::ffff:192.0.2.1); None for what is not one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed
