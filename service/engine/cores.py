"""Which model's block runs next, and on how many cores. The engines of all loaded models share one CoreScheduler.

Each engine has a thread, which asks for a turn before each block. A turn has at least one core, and up to the engine's
share of them if they are free. Turns are given by start-time fair queueing (Goyal, Vin and Cheng 1996): each
engine has a virtual time, which a turn advances by its seconds of cores, divided by the engine's weight, and the engine
that waits with the lowest virtual time is next. So engines get cores in the ratio of their weights, however long a
block of one of them takes, and one that was idle gains two blocks by it at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

CREDIT = 2.0
"""The virtual time, about one a block, by which an engine may be behind the others: between two of its blocks it hands
out text, and does not wait for a turn. Without it, it would lose its share to those that do."""


class CoreScheduler:
    """Gives turns to engines. Thread-safe."""

    def __init__(self, n_cores: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Share so many cores.

        Args:
            n_cores: At least 1.
            clock: The time in seconds.
        """
        self.n_cores = n_cores
        self._clock = clock
        self._lock = threading.Lock()
        self._free = n_cores
        self._virtual_time = 0.0  # the start of the turn that was given last
        self._waiting: list[Turn] = []
        self._active: set[CoreQueue] = set()  # engines that have work, also while they hand out text

    @property
    def n_waiting(self) -> int:
        """The number of engines that wait for a turn."""
        return len(self._waiting)

    def queue(self) -> CoreQueue:
        """Return the place of one engine."""
        return CoreQueue(self)

    def _try_begin(self, turn: Turn) -> bool:
        with self._lock:
            if self._waiting or not self._free:
                return False
            self._give(turn)
            return True

    def _begin(self, turn: Turn) -> None:
        with self._lock:
            self._active.add(turn.queue)
            self._waiting.append(turn)
            self._give_next()
        turn.given.wait()

    def _extend(self, turn: Turn, n_cores: int) -> None:
        """Give a turn that has one core more of those that are free, up to the share of its weight."""
        with self._lock:
            share = int(self.n_cores * turn.queue.weight / sum(queue.weight for queue in self._active))
            more = max(0, min(min(n_cores, share) - turn.n_cores, self._free - len(self._waiting)))
            self._free -= more
            turn.n_cores += more

    def _end(self, turn: Turn) -> None:
        with self._lock:
            cost = (self._clock() - turn.began_at) * turn.n_cores
            turn.queue.finish = turn.start + cost / turn.queue.weight
            self._free += turn.n_cores
            self._give_next()

    def _rest(self, queue: CoreQueue) -> None:
        with self._lock:
            self._active.discard(queue)

    def _give_next(self) -> None:
        """Give turns while a core is free. The caller has the lock."""
        while self._free and self._waiting:
            turn = min(self._waiting, key=lambda t: t.start)  # the first of equal ones: it waits longest
            self._waiting.remove(turn)
            self._give(turn)
            turn.given.set()

    def _give(self, turn: Turn) -> None:
        """Give a turn one core. The caller has the lock."""
        turn.n_cores = 1
        self._free -= 1
        self._active.add(turn.queue)
        self._virtual_time = max(self._virtual_time, turn.start)
        turn.n_contenders = len(self._active)
        turn.began_at = self._clock()


class CoreQueue:
    """An engine's place among those that share the cores; its thread has one turn at a time."""

    def __init__(self, cores: CoreScheduler) -> None:
        """Join at the present virtual time; see CoreScheduler.queue."""
        self._cores = cores
        self.finish = 0.0  # the virtual time at which the last turn ended
        self.weight = 1.0  # the engine's share of the cores, compared with those of others

    def try_turn(self) -> Turn | None:
        """Begin a turn if a core is free and nobody waits for it."""
        turn = self._turn()
        return turn if self._cores._try_begin(turn) else None

    def turn(self) -> Turn:
        """Wait for a turn, and begin it."""
        turn = self._turn()
        self._cores._begin(turn)
        return turn

    def rest(self) -> None:
        """Leave the cores to the others until the next turn: the engine has no work."""
        self._cores._rest(self)

    def _turn(self) -> Turn:
        return Turn(self._cores, self, max(self._cores._virtual_time - CREDIT, self.finish))


class Turn:
    """Cores for one block; a context manager that gives them back.

    Attributes:
        n_cores: How many cores it has.
        n_contenders: How many engines had work when it began, this one included.
    """

    def __init__(self, cores: CoreScheduler, queue: CoreQueue, start: float) -> None:
        """Create a turn that has not begun; see CoreQueue."""
        self._cores = cores
        self.queue = queue
        self.start = start  # in virtual time
        self.given = threading.Event()
        self.began_at = 0.0
        self.n_cores = 0
        self.n_contenders = 1

    @property
    def share(self) -> float:
        """The part of its usual time that a block should take, so that others wait less: 1 while cores suffice."""
        return min(1.0, self._cores.n_cores / self.n_contenders)

    def extend(self, n_cores: int, weight: float = 1.0) -> int:
        """Take more of the cores, and return how many the turn has.

        Args:
            n_cores: How many it can use. It gets those that are free, and of all no more than its share.
            weight: Of the engine, from now on.
        """
        self.queue.weight = weight
        self._cores._extend(self, n_cores)
        return self.n_cores

    def __enter__(self) -> Turn:
        """Return the turn."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the cores back."""
        self._cores._end(self)
