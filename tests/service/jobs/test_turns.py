"""Jobs of several models take turns in the queue: many jobs of one do not keep the others waiting."""

from __future__ import annotations

import pytest
import redis

from service.jobs.queue import JobQueue


def submitted(queue: JobQueue, models: str) -> dict[str, str]:
    """Submit a job for each letter, the name of a model; return their names by id: a1 is the first one of a."""
    names: dict[str, str] = {}
    for model in models:
        n = sum(name[0] == model for name in names.values()) + 1
        request = {"corpus": "words", **({} if model == "d" else {"model": model})}
        names[queue.submit(request)] = f"{model}{n}"
    return names


@pytest.mark.parametrize(
    ("models", "order"),
    [
        ("aaa", "a1 a2 a3"),
        ("aaab", "a1 b1 a2 a3"),
        ("aaabcb", "a1 b1 c1 a2 b2 a3"),
        ("abab", "a1 b1 a2 b2"),
        ("dddad", "d1 a1 d2 d3 d4"),
    ],
)
def test_the_first_job_of_each_comes_before_the_second_of_any(
    empty_redis: redis.Redis, models: str, order: str
) -> None:
    """In the order of RQ's list, and by the positions that the API shows; `d` names no model."""
    queue = JobQueue(empty_redis, 20)
    names = submitted(queue, models)
    assert [names[id] for id in queue._queue.job_ids] == order.split()
    positions = {names[id]: queue.get(id).position for id in names}
    assert positions == {name: i for i, name in enumerate(order.split())}


def test_a_running_job_is_a_turn(empty_redis: redis.Redis) -> None:
    """A model whose job runs waits for the others; a job that was taken meanwhile is not queued twice."""
    queue = JobQueue(empty_redis, 20)
    names = submitted(queue, "a")
    (running,) = names
    queue._queue.remove(running)
    empty_redis.zadd(queue._queue.started_job_registry.key, {f"{running}:execution": 2**40})
    names |= {id: f"{name[0]}{int(name[1]) + (name[0] == 'a')}" for id, name in submitted(queue, "aab").items()}
    assert [names[id] for id in queue._queue.job_ids] == ["b1", "a2", "a3"]
    queue._move_forward(running)
    assert [names[id] for id in queue._queue.job_ids] == ["b1", "a2", "a3"]


def test_a_damaged_record_stops_nobody(empty_redis: redis.Redis) -> None:
    """Its job counts as one of the default model."""
    queue = JobQueue(empty_redis, 20)
    names = submitted(queue, "aa")
    for id in names:
        empty_redis.hset(f"lh:job:{id}", "request", "{")
    names |= submitted(queue, "b")
    assert [names[id] for id in queue._queue.job_ids] == ["a1", "b1", "a2"]
