"""Which key opens which routes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.access.api_keys import ApiKeys
from service.access.auth import Authenticator, RequestSource
from service.errors import Forbidden, RateLimited, Unauthorized

ADMIN_KEY, API_KEY, OTHER_API_KEY = "the-operators-key", "a-readers-key-001", "a-readers-key-002"


def source(
    authorization: str | None = None,
    host: str = "localhost:8000",
    origin: str | None = None,
    address: str = "127.0.0.1",
    is_forwarded: bool = False,
) -> RequestSource:
    return RequestSource(authorization, host, origin, address, is_forwarded)


def raised_by(check: Callable[[], object]) -> type[Exception] | None:
    try:
        check()
    except (Forbidden, RateLimited, Unauthorized) as e:
        return type(e)
    return None


@pytest.mark.parametrize(
    ("authorization", "admin_error", "api_error"),
    [
        (f"Bearer {ADMIN_KEY}", None, None),
        (f"bearer  {ADMIN_KEY} ", None, None),
        (f"Bearer {API_KEY}", Forbidden, None),
        (f"Bearer {OTHER_API_KEY}", Forbidden, None),
        (f"Bearer {ADMIN_KEY}x", Unauthorized, Unauthorized),
        (f"Bearer {ADMIN_KEY[:-1]}", Unauthorized, Unauthorized),
        ("Bearer é", Unauthorized, Unauthorized),
        ("Bearer", Unauthorized, Unauthorized),
        (f"Basic {ADMIN_KEY}", Unauthorized, Unauthorized),
        (ADMIN_KEY, Unauthorized, Unauthorized),
        ("", Unauthorized, Unauthorized),
        (None, Unauthorized, Unauthorized),
    ],
)
def test_each_key_opens_its_routes(
    authorization: str | None, admin_error: type[Exception] | None, api_error: type[Exception] | None
) -> None:
    """ADMIN_KEY opens every route, an API key generation; no key or a wrong one is 401, the wrong kind of key 403."""
    authenticator = Authenticator(ADMIN_KEY, ApiKeys([API_KEY, OTHER_API_KEY]), loopback_only=False)
    sent = source(authorization, "example.org", address="10.0.0.1")
    assert raised_by(lambda: authenticator.check_admin(sent)) is admin_error
    assert raised_by(lambda: authenticator.check_api(sent)) is api_error


def test_without_keys_generation_is_open_and_operating_is_local() -> None:
    """No API_KEYS: anyone generates. No ADMIN_KEY: only on loopback, and only with a Host header that names it."""
    public, local = (Authenticator("", ApiKeys([]), loopback_only=loopback_only) for loopback_only in (False, True))
    assert raised_by(lambda: public.check_api(source(host="example.org", address="10.0.0.1"))) is None
    assert raised_by(lambda: public.check_admin(source())) is Forbidden
    for host in ("127.0.0.1:8000", "localhost", "localhost:1", "LOCALHOST:1", "[::1]:8000", "::1"):
        assert raised_by(lambda host=host: local.check_admin(source(host=host))) is None  # type: ignore[misc]
    for host in ("evil.example:8000", "127.0.0.1.evil.example", "", "localhost.evil.example"):
        assert raised_by(lambda host=host: local.check_admin(source(host=host))) is Forbidden  # type: ignore[misc]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (source(), None),
        (source(address="::ffff:127.0.0.1"), None),
        (source(address="10.0.0.1"), Forbidden),
        (source(address="::ffff:10.0.0.1"), Forbidden),
        (source(address=""), Forbidden),
        (source(is_forwarded=True), Forbidden),
        (source(host="box.example"), Forbidden),
    ],
)
def test_operating_without_a_key_is_for_direct_connections(
    sent: RequestSource, expected: type[Exception] | None
) -> None:
    """A proxy on this machine connects over loopback, too, for clients anywhere; an allowed host is no operator."""
    local = Authenticator("", ApiKeys([]), loopback_only=True, allowed_hosts=["box.example"])
    assert raised_by(lambda: local.check_admin(sent)) is expected
    behind_proxy = Authenticator("", ApiKeys([]), loopback_only=True, behind_proxy=True)
    assert raised_by(lambda: behind_proxy.check_admin(sent)) is Forbidden


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("localhost:8000", "http://localhost:8000", None),
        ("Box.Example", "https://box.example", None),
        ("127.0.0.1:8000", "https://box.example", None),  # the proxy of this name changed the Host header
        ("evil.example:8000", None, Forbidden),
        ("evil.example:8000", "http://evil.example:8000", Forbidden),
        ("localhost:8000", "http://localhost:3000", Forbidden),
        ("localhost:8000", "http://evil.example", Forbidden),
        ("localhost:8000", "null", Forbidden),
        ("localhost:8000", "http://[", Forbidden),
        ("localhost:8000", "", Forbidden),
    ],
)
def test_pages_of_other_sites_are_refused(host: str, origin: str | None, expected: type[Exception] | None) -> None:
    """On loopback without API keys; elsewhere any name may lead to the service, and a key proves the client."""
    sent = source(host=host, origin=origin)
    local = Authenticator("", ApiKeys([]), loopback_only=True, allowed_hosts=["box.example"])
    assert raised_by(lambda: local.check_source(sent)) is expected
    for other in (
        Authenticator("", ApiKeys([]), loopback_only=False),
        Authenticator("", ApiKeys([API_KEY]), loopback_only=True),
    ):
        assert raised_by(lambda other=other: other.check_source(sent)) is None  # type: ignore[misc]


def test_a_client_is_one_client_however_it_writes_its_key() -> None:
    """The parsed key is counted, not the header; without API keys the address is, and of IPv6 its network."""
    with_keys = Authenticator("", ApiKeys([API_KEY, OTHER_API_KEY]), loopback_only=False)
    headers = [f"Bearer {API_KEY}", f"bearer {API_KEY}", f"BEARER   {API_KEY}  ", f"  Bearer {API_KEY}"]
    assert len({with_keys.client_id(source(header)) for header in headers}) == 1
    assert with_keys.client_id(source(f"Bearer {OTHER_API_KEY}")) != with_keys.client_id(source(headers[0]))
    without = Authenticator("", ApiKeys([]), loopback_only=False)
    same = [
        ("10.0.0.1", "::ffff:10.0.0.1"),
        ("2001:db8::1", "2001:db8::2"),
        ("2001:db8::1", "2001:db8:0:0:ffff:ffff:ffff:ffff"),
    ]
    for one, other in same:
        assert without.client_id(source(address=one)) == without.client_id(source(address=other))
    assert without.client_id(source(address="2001:db8::1")) != without.client_id(source(address="2001:db8:0:1::1"))
    assert without.client_id(source(address="10.0.0.1")) != without.client_id(source(address="10.0.0.2"))


@pytest.mark.parametrize("kind", ["admin", "api"])
def test_wrong_keys_never_lock_out_the_right_one(kind: str) -> None:
    """After 20 wrong keys in a minute an address gets 429 for wrong ones; the right key passes from there, too."""
    authenticator = Authenticator(ADMIN_KEY, ApiKeys([API_KEY]), loopback_only=False)
    check = authenticator.check_admin if kind == "admin" else authenticator.check_api
    right = ADMIN_KEY if kind == "admin" else API_KEY

    def answer(key: str, address: str = "10.0.0.1") -> type[Exception] | None:
        return raised_by(lambda: check(source(f"Bearer {key}", address=address)))

    assert [answer(f"wrong-{i}") for i in range(21)] == [Unauthorized] * 20 + [RateLimited]
    assert answer(right) is None
    assert answer("wrong", "10.0.0.2") is Unauthorized
