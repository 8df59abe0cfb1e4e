"""Prometheus metrics, named as in other text generation servers, and summed over all processes of the service.

Each process counts in one row of a table in memory that gunicorn's master maps before it forks. So counting needs no
I/O, leaves no files behind, and a scrape of any process returns the sum of all rows. The row of a process that ended is
given to the next one, so no counter decreases; only the gauges of the ended process are reset.

prometheus_client's own multiprocess mode writes a file per process and metric: I/O on the engine's thread.

The only labels are the finish reason, the code of a refusal and, where the operator has allowed so many, a model's
name: no metric identifies a session, a text or a client. A model gets a label in a process with its tenth request
there, while fewer than allowed have one, and keeps it; what it counted before, and what all others count, has the
label `(other)`. So no counter decreases, and there are never more labels than the operator has allowed for each
process.
"""

from __future__ import annotations

import mmap
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from model.checkpoints.names import DEFAULT
from service.engine.observer import IterationStats

BUCKETS_S = tuple(0.00015 * 2**i for i in range(20))
"""Upper bounds of the histogram buckets in seconds, from 0.15 ms (a character on a fast machine) to 79 s (a queue)."""
FINISH_REASONS = ("length", "stop", "cancelled", "timeout", "failed")
DENIALS = ("unauthorized", "forbidden", "model_not_allowed", "rate_limited")
"""The codes of the errors that refuse a request because of its key, its source or its rate."""
_LABELS = {
    "longhand_requests_finished": ("finish_reason", FINISH_REASONS),
    "longhand_requests_denied": ("code", DENIALS),
}
"""The label of a metric that has one, and its values."""
MAX_MODELS = 100
"""The most models with a label of their own in a process."""
OTHER = "(other)"
"""The label of all other models; it cannot be a model's name."""
_LABEL_REQUESTS = 10
_MAX_UNLABELLED = 10_000  # models of which a process counts the requests until they have a label
_NAME_BYTES = 64
MAX_PROCESSES = 1024  # rows of the shared table, also for the processes that a reload replaces; unused rows are free


@dataclass(frozen=True, slots=True)
class _MetricSpec:
    """A metric and its cells in a row."""

    name: str
    help: str
    family: type[Metric]
    offset: int

    @property
    def width(self) -> int:
        """How many cells it has."""
        if self.family is HistogramMetricFamily:
            return len(BUCKETS_S) + 2  # a count per bucket, the count beyond the last one, the sum
        return len(_LABELS[self.name][1]) if self.name in _LABELS else 1


def _layout(*metrics: tuple[type[Metric], str, str]) -> dict[str, _MetricSpec]:
    """Give each metric its cells, one after the other."""
    specs: dict[str, _MetricSpec] = {}
    offset = 0
    for family, name, text in metrics:
        specs[name] = _MetricSpec(f"longhand_{name}", text, family, offset)
        offset += specs[name].width
    return specs


_SPECS = _layout(
    (GaugeMetricFamily, "requests_running", "Requests that have a slot."),
    (GaugeMetricFamily, "requests_waiting", "Requests that wait for a slot."),
    (
        GaugeMetricFamily,
        "slots",
        "Slots of all engines, including those of replaced models that still run requests.",
    ),
    (GaugeMetricFamily, "slots_in_use", "Slots that are in use."),
    (
        HistogramMetricFamily,
        "time_to_first_token_seconds",
        "Time from a request's submission to its first generated character.",
    ),
    (
        HistogramMetricFamily,
        "inter_token_latency_seconds",
        "Time since the request's last chunk, divided by the characters of the new one.",
    ),
    (HistogramMetricFamily, "queue_time_seconds", "Time from a request's submission to its slot."),
    (HistogramMetricFamily, "block_seconds", "Time that the stepper took for a block."),
    (CounterMetricFamily, "prompt_tokens", "Prompt characters, computed or taken from the prefix cache."),
    (CounterMetricFamily, "generation_tokens", "Generated characters that were delivered."),
    (CounterMetricFamily, "reused_characters", "Prompt characters whose state was taken from the prefix cache."),
    (CounterMetricFamily, "requests_finished", "Finished requests by finish reason."),
    (
        CounterMetricFamily,
        "requests_refused",
        "Requests refused with 429 because all slots were in use and the queue was full.",
    ),
    (
        CounterMetricFamily,
        "requests_denied",
        "Requests refused because of their key, source or rate, by code: 401, 403, and 429 of a rate.",
    ),
    (CounterMetricFamily, "model_swaps", "Models that were loaded and served, counted in each process."),
    (
        CounterMetricFamily,
        "structured_outputs_cache_hits",
        "Requests whose structured_outputs were compiled already.",
    ),
    (
        CounterMetricFamily,
        "structured_outputs_cache_misses",
        "Requests whose structured_outputs had to be compiled, those refused included.",
    ),
    (GaugeMetricFamily, "models_loaded", "Models in memory that requests name, beside the default ones."),
    (HistogramMetricFamily, "model_load_seconds", "Time that the load of a model took that a request named."),
    (CounterMetricFamily, "model_evictions", "Models that a request had named and that were removed from memory."),
    (CounterMetricFamily, "model_swaps_refused", "Promoted checkpoints that could not be loaded, in each process."),
)
_COMMON_WIDTH = sum(spec.width for spec in _SPECS.values())
_MODEL_METRICS = (
    ("model_requests", "Finished requests by model; METRICS_MODELS says how many models have a label of their own."),
    ("model_generation_tokens", "Generated characters that were delivered, by model."),
)
_ROW_WIDTH = _COMMON_WIDTH + (1 + MAX_MODELS) * len(_MODEL_METRICS)  # the first of the models is all others
_GAUGE_OFFSETS = [spec.offset for spec in _SPECS.values() if spec.family is GaugeMetricFamily]


class SharedCounters:
    """A table of numbers in memory that later forked processes share, one row per process.

    Only the process that created it allocates and releases rows.
    """

    def __init__(self, rows: int = 1) -> None:
        """Map the memory of so many rows."""
        # cell 0: how many rows were ever allocated, which is how many are summed
        self._cells = memoryview(mmap.mmap(-1, (1 + rows * _ROW_WIDTH) * 8)).cast("d")
        self._names = memoryview(mmap.mmap(-1, rows * MAX_MODELS * _NAME_BYTES))
        self._free_rows = list(range(rows - 1, -1, -1))

    def allocate_row(self) -> int:
        """Return a free row, preferring one that was used before.

        Raises:
            IndexError: There is no free row.
        """
        row = self._free_rows.pop()
        self._cells[0] = max(self._cells[0], row + 1)
        return row

    def release_row(self, row: int) -> None:
        """Free the row of a process that ended: its gauges are reset, its counters stay."""
        cells = self.row(row)
        for offset in _GAUGE_OFFSETS:
            cells[offset] = 0.0
        self._free_rows.append(row)

    def row(self, row: int) -> memoryview[float]:
        """Return the cells of a row."""
        return self._cells[1 + row * _ROW_WIDTH : 1 + (row + 1) * _ROW_WIDTH]

    def model_names(self, row: int) -> list[str]:
        """Return the models that have labels in a row, in the order of their cells."""
        first = row * MAX_MODELS * _NAME_BYTES
        data = bytes(self._names[first : first + MAX_MODELS * _NAME_BYTES])
        names = (data[i : i + _NAME_BYTES].rstrip(b"\0").decode() for i in range(0, len(data), _NAME_BYTES))
        return [name for name in names if name]

    def add_model(self, row: int, index: int, name: str) -> None:
        """Give a model the cells of this index in a row."""
        first = (row * MAX_MODELS + index) * _NAME_BYTES
        self._names[first : first + _NAME_BYTES] = name.encode().ljust(_NAME_BYTES, b"\0")

    def model_totals(self) -> dict[str, list[float]]:
        """Return the sums of all rows by model."""
        totals: dict[str, list[float]] = {}
        for r in range(int(self._cells[0])):
            cells = self.row(r)[_COMMON_WIDTH:].tolist()
            for i, name in enumerate([OTHER, *self.model_names(r)]):
                total = totals.setdefault(name, [0.0] * len(_MODEL_METRICS))
                for k in range(len(_MODEL_METRICS)):
                    total[k] += cells[i * len(_MODEL_METRICS) + k]
        return totals

    def totals(self) -> list[float]:
        """Return the sum of all rows, cell by cell."""
        rows = [self.row(r).tolist() for r in range(int(self._cells[0]))]
        return [sum(cells) for cells in zip(*rows, strict=True)]


@lru_cache(maxsize=1)
def shared_counters() -> SharedCounters:
    """Return the table of gunicorn's master; it survives a reload, which reads gunicorn_config again."""
    return SharedCounters(MAX_PROCESSES)


_process_row: list[tuple[SharedCounters, int]] = []


def use_row(counters: SharedCounters, row: int) -> None:
    """Let this process, which has just been forked, count in this row."""
    _process_row[:] = [(counters, row)]


class Metrics(Collector):
    """The metrics of this process, and the collector for all processes. Thread-safe."""

    def __init__(self, n_models: int = 0) -> None:
        """Count in this process's row of the shared table or, outside gunicorn, in a table of its own.

        Args:
            n_models: How many models may have a label of their own, at most MAX_MODELS.
        """
        if _process_row:
            self._counters, self._row = _process_row[0]
        else:
            self._counters = SharedCounters()
            self._row = self._counters.allocate_row()
        self._cells = self._counters.row(self._row)
        self._lock = threading.Lock()
        self._n_models = n_models
        # of the process that had the row before, too
        self._labels = {name: i for i, name in enumerate(self._counters.model_names(self._row))}
        self._unlabelled = Counter[str]()  # requests

    def engine_observer(self, n_slots: int, model: str = DEFAULT) -> EngineMetrics:
        """Return the observer of a new engine with so many slots, of the model of this name."""
        return EngineMetrics(self, n_slots, model)

    def add(self, name: str, n: float = 1) -> None:
        """Add to a counter or a gauge."""
        with self._lock:
            self._cells[_SPECS[name].offset] += n

    def count_refused_request(self) -> None:
        """Count a request that is answered with 429 because the queue is full."""
        self.add("requests_refused")

    def count_denied_request(self, code: str) -> None:
        """Count a request that is refused because of its key, its source or its rate; `code` is one of DENIALS."""
        with self._lock:
            self._cells[_SPECS["requests_denied"].offset + DENIALS.index(code)] += 1

    def count_finished(self, reason: str, model: str = DEFAULT) -> None:
        """Count a finished request of many parts, which no iteration has."""
        with self._lock:
            self._cells[_SPECS["requests_finished"].offset + FINISH_REASONS.index(reason)] += 1
            self._cells[_COMMON_WIDTH + len(_MODEL_METRICS) * self._label(model, 1)] += 1

    def count_model_swap(self) -> None:
        """Count a model that is served from now on."""
        self.add("model_swaps")

    def count_model_load(self, seconds: float) -> None:
        """Count a model that a request named and that is in memory from now on."""
        with self._lock:
            self._cells[_SPECS["models_loaded"].offset] += 1
            self._observe("model_load_seconds", seconds, 1)

    def count_model_eviction(self) -> None:
        """Count a model that is not in memory any more."""
        with self._lock:
            self._cells[_SPECS["models_loaded"].offset] -= 1
            self._cells[_SPECS["model_evictions"].offset] += 1

    def count_automaton_lookup(self, was_cached: bool) -> None:
        """Count a request whose structured outputs were compiled, or found in the cache."""
        self.add("structured_outputs_cache_hits" if was_cached else "structured_outputs_cache_misses")

    def count_refused_swap(self) -> None:
        """Count a promoted checkpoint that could not be loaded."""
        self.add("model_swaps_refused")

    def count_iteration(self, stats: IterationStats, before: tuple[int, int], model: str = DEFAULT) -> None:
        """Count an iteration of an engine's loop.

        Args:
            stats: What the iteration did.
            before: How many requests were running and waiting after the iteration before it.
            model: The engine's model.
        """
        cells = self._cells
        with self._lock:
            cells[_SPECS["requests_running"].offset] += stats.running - before[0]
            cells[_SPECS["slots_in_use"].offset] += stats.running - before[0]
            cells[_SPECS["requests_waiting"].offset] += stats.waiting - before[1]
            cells[_SPECS["prompt_tokens"].offset] += stats.prompt_chars + stats.reused_chars
            cells[_SPECS["reused_characters"].offset] += stats.reused_chars
            cells[_SPECS["generation_tokens"].offset] += stats.generated_chars
            for reason in stats.finish_reasons:
                cells[_SPECS["requests_finished"].offset + FINISH_REASONS.index(reason)] += 1
            if stats.finish_reasons or stats.generated_chars:
                first = _COMMON_WIDTH + len(_MODEL_METRICS) * self._label(model, len(stats.finish_reasons))
                cells[first] += len(stats.finish_reasons)
                cells[first + 1] += stats.generated_chars
            if stats.block_s is not None:
                self._observe("block_seconds", stats.block_s, 1)
            for seconds in stats.queue_times_s:
                self._observe("queue_time_seconds", seconds, 1)
            for seconds in stats.first_chunk_times_s:
                self._observe("time_to_first_token_seconds", seconds, 1)
            for (gap_s, characters), requests in stats.chunk_gaps.items():
                self._observe("inter_token_latency_seconds", gap_s / characters, characters * requests)

    def _label(self, model: str, n_requests: int) -> int:
        """Return which of a row's cells are a model's, 0 for those of all others; the caller has the lock."""
        index = self._labels.get(model)
        if index is not None:
            return 1 + index
        if len(self._labels) < self._n_models:
            self._unlabelled[model] += n_requests
            if self._unlabelled[model] > _LABEL_REQUESTS:
                index = self._labels[model] = len(self._labels)
                self._counters.add_model(self._row, index, model)
                return 1 + index
            if len(self._unlabelled) > _MAX_UNLABELLED:
                self._unlabelled.clear()
        return 0

    def _observe(self, name: str, seconds: float, times: int) -> None:
        """Add a value to a histogram, so many times."""
        offset = _SPECS[name].offset
        self._cells[offset + bisect_left(BUCKETS_S, seconds)] += times
        self._cells[offset + len(BUCKETS_S) + 1] += seconds * times

    def collect(self) -> Iterator[Metric]:
        """Yield the sums over all processes as prometheus_client's metric families."""
        totals = self._counters.totals()
        for spec in _SPECS.values():
            cells = totals[spec.offset : spec.offset + spec.width]
            if spec.family is HistogramMetricFamily:
                cumulative, buckets = 0.0, []
                for bound, n in zip([*map(repr, BUCKETS_S), "+Inf"], cells, strict=False):
                    cumulative += n
                    buckets.append((bound, cumulative))
                yield HistogramMetricFamily(spec.name, spec.help, buckets=buckets, sum_value=cells[-1])
            elif spec.name in _LABELS:
                label, label_values = _LABELS[spec.name]
                labelled = CounterMetricFamily(spec.name, spec.help, labels=[label])
                for label_value, n in zip(label_values, cells, strict=True):
                    labelled.add_metric([label_value], n)
                yield labelled
            else:
                yield spec.family(spec.name, spec.help, value=cells[0])  # type: ignore[call-arg]
        by_model = self._counters.model_totals()
        for k, (name, text) in enumerate(_MODEL_METRICS):
            family = CounterMetricFamily(f"longhand_{name}", text, labels=["model"])
            for model, counts in by_model.items():
                family.add_metric([model], counts[k])
            yield family


class EngineMetrics:
    """An Observer that counts the steps of one engine."""

    def __init__(self, metrics: Metrics, n_slots: int, model: str = DEFAULT) -> None:
        """Add the engine's slots to the metrics."""
        self._metrics = metrics
        self._model = model
        self._n_slots = n_slots
        self._before = (0, 0)
        metrics.add("slots", n_slots)

    def on_iteration(self, stats: IterationStats) -> None:
        """Count an iteration of the engine's loop."""
        self._metrics.count_iteration(stats, self._before, self._model)
        self._before = (stats.running, stats.waiting)

    def on_finished(self, reason: str) -> None:
        """Count a request of many parts that ended."""
        self._metrics.count_finished(reason, self._model)

    def on_stopped(self) -> None:
        """Remove the engine's slots."""
        self._metrics.add("slots", -self._n_slots)
