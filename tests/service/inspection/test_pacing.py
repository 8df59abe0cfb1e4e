"""How much of the time inspections take while texts are generated."""

from __future__ import annotations

import threading

import pytest

from service.engine.scoring import BUSY_SHARE
from service.inspection.pacing import MAX_PAUSE_S, Pacer


class Clock:
    """Time that passes only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("part_s", [0.001, 0.1, 10.0])
def test_inspections_leave_most_of_the_time_to_generation(part_s: float) -> None:
    """While texts are generated, the parts take their share; a pause is bounded; without texts there is none."""
    clock = Clock()
    pacer = Pacer(clock, clock.pass_time)
    for _ in range(10):
        with pacer.part(lambda: True):
            clock.pass_time(part_s)
    assert clock.now == pytest.approx(10 * (part_s + min(part_s * (1 / BUSY_SHARE - 1), MAX_PAUSE_S)))
    before = clock.now
    with pacer.part(lambda: False):
        clock.pass_time(part_s)
    assert clock.now == pytest.approx(before + part_s)


def test_one_part_at_a_time() -> None:
    """Two inspections share the time that is theirs; one that fails stops no other."""
    pacer = Pacer(pause=lambda _: None)
    computing, most = [0], [0]
    lock = threading.Lock()

    def inspect() -> None:
        for _ in range(200):
            with pacer.part(lambda: True):
                with lock:
                    computing[0] += 1
                    most[0] = max(most[0], computing[0])
                with lock:
                    computing[0] -= 1

    with pytest.raises(ValueError, match="one"), pacer.part(lambda: True):
        raise ValueError("one")
    threads = [threading.Thread(target=inspect) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
