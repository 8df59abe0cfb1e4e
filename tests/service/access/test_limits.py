"""Rate limits."""

from __future__ import annotations

import pytest

from service.access.limits import RateLimiter
from service.errors import RateLimited
from service.store.connect import connect
from tests.servers import RedisServer


def test_each_client_has_its_own_count() -> None:
    """A client that used up its rate is refused with the time to wait; another client is not."""
    limiter = RateLimiter("3/hour")
    for _ in range(3):
        limiter.hit("one")
    with pytest.raises(RateLimited, match="at most 3 per 1 hour") as e:
        limiter.hit("one")
    assert 1 <= (e.value.retry_after_s or 0) <= 3600
    limiter.hit("two")


def test_a_count_is_shared_through_redis(redis_server: RedisServer) -> None:
    """Two processes on one Redis count together; while Redis is unreachable nobody is refused."""
    one, other = (RateLimiter("2/hour", connect(redis_server.url)) for _ in range(2))
    one.hit("shared")
    other.hit("shared")
    with pytest.raises(RateLimited):
        one.hit("shared")
    unreachable = RateLimiter("2/hour", connect("unix:///nowhere/redis.sock"))
    for _ in range(5):
        unreachable.hit("shared")


@pytest.mark.parametrize("rate", ["", "1/hour"])
def test_a_client_may_have_a_rate_of_its_own(rate: str) -> None:
    """It counts instead of that of all, whether that one is set or not."""
    limiter = RateLimiter(rate)
    for _ in range(3):
        limiter.hit("one", rate="3/hour")
    with pytest.raises(RateLimited, match="at most 3 per 1 hour"):
        limiter.hit("one", rate="3/hour")
    limiter.hit("two")
