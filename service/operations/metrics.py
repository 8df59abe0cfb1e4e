"""What the service counts, in the words that dashboards of text servers use, summed over all its processes.

A process counts in a row of a board: plain numbers in memory that gunicorn's master maps before it forks. So counting
is no I/O, nothing is left behind on a disk, and a scrape, whichever process it meets, is the sum of the rows. A row
outlives its process: the next one goes on in it, so no counter ever falls; only the gauges of a dead process go.

Nothing here knows a session, a text or a client; the only label is why a text ended.
"""

from __future__ import annotations

import mmap
import threading
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from service.engine.observer import IterationStats

BOUNDS = tuple(0.00015 * 2**i for i in range(20))
"""Upper bounds of the buckets, in seconds: 0.15 ms, a character on a fast machine, to 79 s, a long line."""
REASONS = ("length", "stop", "cancelled", "timeout", "failed")
ROWS = 1024  # of the shared board: processes at one time, those that a reload replaces too; unused ones take no memory


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    help: str
    kind: type[Metric]
    at: int  # its first cell in a row

    @property
    def width(self) -> int:
        if self.kind is HistogramMetricFamily:
            return len(BOUNDS) + 2  # a count for each bucket and for what lies beyond, then the sum
        return len(REASONS) if self.name.endswith("finished") else 1


def _laid_out(*kinds: tuple[type[Metric], str, str]) -> dict[str, _Kind]:
    found: dict[str, _Kind] = {}
    at = 0
    for kind, name, text in kinds:
        found[name] = _Kind(f"longhand_{name}", text, kind, at)
        at += found[name].width
    return found


_KINDS = _laid_out(
    (GaugeMetricFamily, "requests_running", "Texts that have a slot."),
    (GaugeMetricFamily, "requests_waiting", "Texts in the line before the slots."),
    (GaugeMetricFamily, "slots", "Slots of all engines, those of models that only finish their texts too."),
    (GaugeMetricFamily, "slots_in_use", "Slots that hold a text."),
    (HistogramMetricFamily, "time_to_first_token_seconds", "From a text's submission to its first new character."),
    (
        HistogramMetricFamily,
        "inter_token_latency_seconds",
        "A character's part of the time since its text's last.",
    ),
    (HistogramMetricFamily, "queue_time_seconds", "From a text's submission to its slot."),
    (HistogramMetricFamily, "block_seconds", "What the stepper took for a block."),
    (CounterMetricFamily, "prompt_tokens", "Characters of prompts, read or reused."),
    (CounterMetricFamily, "generation_tokens", "New characters that were handed out."),
    (CounterMetricFamily, "reused_characters", "Characters of prompts that a stored state spared from being read."),
    (CounterMetricFamily, "requests_finished", "Texts that ended, by why."),
    (
        CounterMetricFamily,
        "requests_refused",
        "Texts refused with 429: every slot and place was taken.",
    ),
    (CounterMetricFamily, "model_swaps", "Models that began to serve, in each process."),
    (CounterMetricFamily, "model_swaps_refused", "Promoted models that were refused, in each process."),
)
_WIDTH = sum(kind.width for kind in _KINDS.values())
_GAUGES = [kind.at for kind in _KINDS.values() if kind.kind is GaugeMetricFamily]


class Board:
    """Rows of numbers that processes forked after this share. Only the process that made it takes and gives back."""

    def __init__(self, rows: int = 1) -> None:
        self._cells = memoryview(mmap.mmap(-1, (1 + rows * _WIDTH) * 8)).cast("d")
        self._free = list(range(rows - 1, -1, -1))  # cell 0 says how many rows were ever taken: so many are read

    def take(self) -> int:
        """A free row, one that was used before if there is one. Raised: IndexError when there is none."""
        row = self._free.pop()
        self._cells[0] = max(self._cells[0], row + 1)
        return row

    def give_back(self, row: int) -> None:
        """Its process has ended: what it was doing is not done any more; what it has done stays."""
        cells = self.row(row)
        for at in _GAUGES:
            cells[at] = 0.0
        self._free.append(row)

    def row(self, row: int) -> memoryview[float]:
        return self._cells[1 + row * _WIDTH : 1 + (row + 1) * _WIDTH]

    def totals(self) -> list[float]:
        """The sum of all rows, cell by cell."""
        rows = [self.row(r).tolist() for r in range(int(self._cells[0]))]
        return [sum(cells) for cells in zip(*rows, strict=True)]


@lru_cache(maxsize=1)
def shared_board() -> Board:
    """gunicorn's, made once in its master: a reload, which reads the configuration again, goes on counting."""
    return Board(ROWS)


_mine: list[tuple[Board, int]] = []


def use(board: Board, row: int) -> None:
    """This process, which has just been forked, counts in this row."""
    _mine[:] = [(board, row)]


class Metrics(Collector):
    """What this process counts, and the scrape of what all do. Its methods may be called by any thread."""

    def __init__(self) -> None:
        if _mine:
            self._board, row = _mine[0]
        else:
            self._board = Board()
            row = self._board.take()
        self._cells = self._board.row(row)
        self._lock = threading.Lock()

    def engine(self, n_slots: int) -> EngineMetrics:
        """The observer of a new engine."""
        return EngineMetrics(self, n_slots)

    def add(self, name: str, n: float = 1) -> None:
        with self._lock:
            self._cells[_KINDS[name].at] += n

    def swapped(self) -> None:
        self.add("model_swaps")

    def swap_refused(self) -> None:
        self.add("model_swaps_refused")

    def count(self, stats: IterationStats, before: tuple[int, int]) -> None:
        """Add what an engine's turn did; `before` is how many ran and waited at the end of the turn before it."""
        cells = self._cells
        with self._lock:
            cells[_KINDS["requests_running"].at] += stats.running - before[0]
            cells[_KINDS["slots_in_use"].at] += stats.running - before[0]
            cells[_KINDS["requests_waiting"].at] += stats.waiting - before[1]
            cells[_KINDS["prompt_tokens"].at] += stats.prompt_chars + stats.reused_chars
            cells[_KINDS["reused_characters"].at] += stats.reused_chars
            cells[_KINDS["generation_tokens"].at] += stats.generated_chars
            for reason in stats.finish_reasons:
                cells[_KINDS["requests_finished"].at + REASONS.index(reason)] += 1
            if stats.block_s is not None:
                self._observe("block_seconds", stats.block_s, 1)
            for seconds in stats.queue_times_s:
                self._observe("queue_time_seconds", seconds, 1)
            for seconds in stats.first_chunk_times_s:
                self._observe("time_to_first_token_seconds", seconds, 1)
            for (gap_s, characters), texts in stats.chunk_gaps.items():
                self._observe("inter_token_latency_seconds", gap_s / characters, characters * texts)

    def _observe(self, name: str, seconds: float, times: int) -> None:
        at = _KINDS[name].at
        self._cells[at + bisect_left(BOUNDS, seconds)] += times
        self._cells[at + len(BOUNDS) + 1] += seconds * times

    def collect(self) -> Iterator[Metric]:
        """The sums, as prometheus-client writes them out."""
        totals = self._board.totals()
        for kind in _KINDS.values():
            cells = totals[kind.at : kind.at + kind.width]
            if kind.kind is HistogramMetricFamily:
                upto, buckets = 0.0, []
                for bound, n in zip([*map(repr, BOUNDS), "+Inf"], cells, strict=False):
                    upto += n
                    buckets.append((bound, upto))
                yield HistogramMetricFamily(kind.name, kind.help, buckets=buckets, sum_value=cells[-1])
            elif len(cells) > 1:
                ended = CounterMetricFamily(kind.name, kind.help, labels=["finish_reason"])
                for reason, n in zip(REASONS, cells, strict=True):
                    ended.add_metric([reason], n)
                yield ended
            else:
                yield kind.kind(kind.name, kind.help, value=cells[0])  # type: ignore[call-arg]


class EngineMetrics:
    """An Observer: one engine's part of this process's numbers."""

    def __init__(self, metrics: Metrics, n_slots: int) -> None:
        self._metrics = metrics
        self._n_slots = n_slots
        self._before = (0, 0)
        metrics.add("slots", n_slots)

    def on_iteration(self, stats: IterationStats) -> None:
        self._metrics.count(stats, self._before)
        self._before = (stats.running, stats.waiting)

    def on_rejected(self) -> None:
        self._metrics.add("requests_refused")

    def on_stopped(self) -> None:
        self._metrics.add("slots", -self._n_slots)
