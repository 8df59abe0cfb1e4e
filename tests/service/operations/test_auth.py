"""Which key opens which routes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.errors import Forbidden, RateLimited, Unauthorized
from service.operations.auth import Authenticator

ADMIN_KEY, API_KEY, OTHER_API_KEY = "the-operators-key", "a-readers-key-001", "a-readers-key-002"


def raised_by(check: Callable[[], None]) -> type[Exception] | None:
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
    authenticator = Authenticator(ADMIN_KEY, [API_KEY, OTHER_API_KEY], loopback_only=False)
    assert raised_by(lambda: authenticator.check_admin(authorization, "example.org", "10.0.0.1")) is admin_error
    assert raised_by(lambda: authenticator.check_api(authorization, "10.0.0.1")) is api_error


def test_without_keys_generation_is_open_and_operating_is_local() -> None:
    """No API_KEYS: anyone generates. No ADMIN_KEY: only on loopback, and only with a Host header that names it."""
    public, local = (Authenticator("", [], loopback_only=loopback_only) for loopback_only in (False, True))
    assert raised_by(lambda: public.check_api(None, "10.0.0.1")) is None
    assert raised_by(lambda: public.check_admin(None, "localhost", "127.0.0.1")) is Forbidden
    for host in ("127.0.0.1:8000", "localhost", "localhost:1", "[::1]:8000", "::1"):
        assert raised_by(lambda host=host: local.check_admin(None, host, "127.0.0.1")) is None  # type: ignore[misc]
    for host in ("evil.example:8000", "127.0.0.1.evil.example", "", "localhost.evil.example"):
        assert raised_by(lambda host=host: local.check_admin(None, host, "127.0.0.1")) is Forbidden  # type: ignore[misc]


def test_keys_cannot_be_guessed() -> None:
    """After 20 wrong keys in a minute an address is refused, with the right key too; other addresses are not."""
    authenticator = Authenticator(ADMIN_KEY, [], loopback_only=False)
    for i in range(20):
        wrong = f"Bearer {i}"
        assert raised_by(lambda wrong=wrong: authenticator.check_admin(wrong, "", "10.0.0.1")) is Unauthorized  # type: ignore[misc]
    assert raised_by(lambda: authenticator.check_admin(f"Bearer {ADMIN_KEY}", "", "10.0.0.1")) is RateLimited
    assert raised_by(lambda: authenticator.check_admin(f"Bearer {ADMIN_KEY}", "", "10.0.0.2")) is None
