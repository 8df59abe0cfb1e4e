"""Who may do what."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.errors import Forbidden, RateLimited, Unauthorized
from service.operations.auth import Keys, Limits
from tests.servers import RedisServer

ADMIN, ONE, TWO = "the-operators-key", "a-readers-key-001", "a-readers-key-002"


def raised(check: Callable[[], None]) -> type[Exception] | None:
    try:
        check()
    except (Forbidden, RateLimited, Unauthorized) as e:
        return type(e)
    return None


@pytest.mark.parametrize(
    ("sent", "admin", "api"),
    [
        (f"Bearer {ADMIN}", None, None),
        (f"bearer  {ADMIN} ", None, None),
        (f"Bearer {ONE}", Forbidden, None),
        (f"Bearer {TWO}", Forbidden, None),
        (f"Bearer {ADMIN}x", Unauthorized, Unauthorized),
        (f"Bearer {ADMIN[:-1]}", Unauthorized, Unauthorized),
        ("Bearer é", Unauthorized, Unauthorized),
        ("Bearer", Unauthorized, Unauthorized),
        (f"Basic {ADMIN}", Unauthorized, Unauthorized),
        (ADMIN, Unauthorized, Unauthorized),
        ("", Unauthorized, Unauthorized),
        (None, Unauthorized, Unauthorized),
    ],
)
def test_each_key_opens_its_own(sent: str | None, admin: type[Exception] | None, api: type[Exception] | None) -> None:
    """ADMIN_KEY opens all, an API key generates; no key or a wrong one is 401, the wrong kind of key 403."""
    keys = Keys(ADMIN, [ONE, TWO], loopback_only=False)
    assert raised(lambda: keys.check_admin(sent, "example.org", "10.0.0.1")) is admin
    assert raised(lambda: keys.check_api(sent, "10.0.0.1")) is api


def test_without_keys_generating_is_open_and_operating_is_local() -> None:
    """No API_KEYS: anyone generates. No ADMIN_KEY: only on loopback, and only when addressed as this machine."""
    public, local = Keys("", [], loopback_only=False), Keys("", [], loopback_only=True)
    assert raised(lambda: public.check_api(None, "10.0.0.1")) is None
    assert raised(lambda: public.check_admin(None, "localhost", "127.0.0.1")) is Forbidden
    for host in ("127.0.0.1:8000", "localhost", "localhost:1", "[::1]:8000", "::1"):
        assert raised(lambda host=host: local.check_admin(None, host, "127.0.0.1")) is None  # type: ignore[misc]
    for host in ("evil.example:8000", "127.0.0.1.evil.example", "", "localhost.evil.example"):
        assert raised(lambda host=host: local.check_admin(None, host, "127.0.0.1")) is Forbidden  # type: ignore[misc]


def test_keys_cannot_be_guessed() -> None:
    """After 20 wrong ones in a minute an address is refused, with the right one too; others are not."""
    keys = Keys(ADMIN, [], loopback_only=False)
    for i in range(20):
        assert raised(lambda i=i: keys.check_admin(f"Bearer {i}", "", "10.0.0.1")) is Unauthorized  # type: ignore[misc]
    assert raised(lambda: keys.check_admin(f"Bearer {ADMIN}", "", "10.0.0.1")) is RateLimited
    assert raised(lambda: keys.check_admin(f"Bearer {ADMIN}", "", "10.0.0.2")) is None


def test_a_rate_is_held_for_each_client() -> None:
    """The count is each client's own; the refusal says when to come back."""
    limits = Limits("3/hour", "")
    for _ in range(3):
        limits.check("one")
    with pytest.raises(RateLimited, match="at most 3 per 1 hour") as e:
        limits.check("one")
    assert 1 <= (e.value.retry_after_s or 0) <= 3600
    limits.check("two")


def test_a_rate_is_shared_through_redis(redis_server: RedisServer) -> None:
    """Two processes on one Redis count together; with Redis away nobody is refused."""
    url = redis_server.url
    one, other = Limits("2/hour", url), Limits("2/hour", url)
    one.check("shared")
    other.check("shared")
    with pytest.raises(RateLimited):
        one.check("shared")
    away = Limits("2/hour", "unix:///nowhere/redis.sock")
    for _ in range(5):
        away.check("shared")
