"""The one thread that runs the stepper: take in, schedule, run a block, hand out.

Rules: this thread does no I/O; only it touches the scheduler and the stepper. Other threads submit, and close streams.
"""

from __future__ import annotations

import logging
import math
import threading
import time

import numpy as np
from numpy.typing import NDArray

from model.network.sampling import SamplingParams
from model.network.state import HiddenState
from model.stepper import BlockResult, Stepper
from model.stepper.generate import one_row_block
from model.text.vocab import Vocabulary
from service.engine.observer import NullObserver, Observer, Step
from service.engine.scheduler import Scheduler
from service.engine.sequence import Sequence, Values
from service.engine.stream import Chunk, End, Failed, FinishReason, Item, StateCapture, Stream
from service.errors import Draining, QueueFull

log = logging.getLogger(__name__)
LONGEST_RETRY_S = 60  # longer than that nobody knows: texts end early, others leave


class Engine:
    """Many texts at once on one stepper, each the same as if it were alone."""

    def __init__(
        self,
        stepper: Stepper,
        vocab: Vocabulary,
        fingerprint: str,
        *,
        max_waiting: int,
        block_s: float = 0.020,
        observer: Observer | None = None,
    ) -> None:
        self.vocab = vocab
        self.fingerprint = fingerprint
        self.numerics = stepper.numerics
        self.stepper_name = stepper.name
        self.n_slots = stepper.n_slots
        self.max_waiting = max_waiting
        self._stepper = stepper
        self._scheduler = Scheduler(stepper.n_slots, block_s)
        self._observer = observer or NullObserver()
        self._did = Step()  # in this turn of the loop
        self._outbox: list[tuple[Stream, Item]] = []  # what is to be handed out when this thread needs no Python
        self._inbox: list[Sequence] = []
        self._in_flight = 0  # submitted and not ended; under the lock
        self._steps_in_line = 0  # of the texts that have no slot yet; under the lock
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End every text where it is, then the thread. Idempotent."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, sequence: Sequence) -> None:
        """Put a text in the line. Raised: QueueFull when the line is full, Draining when the engine stops."""
        with self._changed:
            self.refuse_if_full()
            self._in_flight += 1
            self._steps_in_line += sequence.steps_left
            self._inbox.append(sequence)
            self._changed.notify()

    def refuse_if_full(self) -> None:
        """Raised: as by submit, were it called now. For a look before any work is done."""
        if self._stopping:
            raise Draining("this worker is stopping")
        if self._in_flight >= self.n_slots + self.max_waiting:
            self._observer.refused()
            error = QueueFull(f"all {self.n_slots} slots and all {self.max_waiting} places in the line are taken")
            error.retry_after_s = self._line_s()
            raise error

    def _line_s(self) -> int:
        """Whole seconds until all who wait now have been written, at the pace that was measured; 1 to 60."""
        pace = self._scheduler.chars_per_s
        return max(1, min(LONGEST_RETRY_S, math.ceil(self._steps_in_line / pace))) if pace else 1

    @property
    def in_flight(self) -> int:
        """Texts that run or wait."""
        return self._in_flight

    def _loop(self) -> None:
        while self._take_in():
            try:
                self._step()
            except Exception as e:  # a bug of ours ends the texts that it met, not the thread
                log.exception("a block failed")
                for slot in list(self._scheduler.running):
                    self._leave(slot, Failed(e))
            if not self._scheduler.running:
                self._deliver()
            self._tell()
        for sequence in [*self._scheduler.running.values(), *self._scheduler.waiting, *self._inbox]:
            self._did.ended.append("failed")
            self._put(sequence, Failed(Draining("this worker is stopping; go on with the stream on another")))
        self._deliver()
        self._observer.step(self._did)
        self._observer.stopped()

    def _put(self, sequence: Sequence, item: Item) -> None:
        self._outbox.append((sequence.stream, item))

    def _deliver(self) -> None:
        """Wake the readers. Last thing before a block runs: then they have Python to themselves while it does."""
        for stream, item in self._outbox:
            stream.put(item)
        self._outbox.clear()

    def _tell(self) -> None:
        """One call for all that this turn of the loop did."""
        did, self._did = self._did, Step()
        did.running = len(self._scheduler.running)
        did.waiting = self._in_flight - did.running
        self._observer.step(did)

    def _take_in(self) -> bool:
        """Wait for work; False when it is time to stop."""
        with self._changed:
            while not self._inbox and self._scheduler.is_idle and not self._stopping:
                self._changed.wait()
            self._scheduler.waiting.extend(self._inbox)
            self._inbox.clear()
            return not self._stopping

    def _step(self) -> None:
        """The whole machine: let leavers go, admit, run a block, take what it made; it is handed out with the next."""
        now = time.monotonic()
        self._let_go(now)
        for slot, sequence in self._scheduler.admit():
            self._left_line(sequence)
            self._did.queued_s.append(now - sequence.submitted)
            self._did.reused += sequence.reused
            self._stepper.write(slot, sequence.values)
            if sequence.steps_left == 0:
                self._finish(slot, sequence, "length")
        if self._scheduler.running:
            block = self._scheduler.block()
            self._deliver()
            started = time.monotonic()
            produced = self._stepper.run(block)
            self._did.block_s = time.monotonic() - started
            self._scheduler.timed(block, self._did.block_s)
            self._hand_out(block.slots, block.steps, produced)

    def _let_go(self, now: float) -> None:
        for sequence in self._scheduler.leave_line(now):
            self._left_line(sequence)
            self._ended(sequence, End("cancelled" if sequence.stream.closed else "timeout", None))
        for slot, sequence in list(self._scheduler.running.items()):
            if sequence.stream.closed:
                self._finish(slot, sequence, "cancelled")
            elif sequence.is_late(now):
                self._finish(slot, sequence, "timeout")

    def _hand_out(self, slots: NDArray[np.int32], steps: NDArray[np.int32], produced: BlockResult) -> None:
        now = time.monotonic()
        for b, (slot, n) in enumerate(zip(slots.tolist(), steps.tolist(), strict=True)):
            sequence = self._scheduler.running[slot]
            self._did.read += min(n, len(sequence.to_feed) - 1)
            new = sequence.advance(produced.ids[:n, b])
            key = sequence.marks.pop(sequence.position, None)
            if key is not None:
                self._put(sequence, StateCapture(key, self._state(slot, sequence)))
            logprobs = [*sequence.held_logprobs, *produced.logprobs[n - len(new) : n, b].tolist()]
            shown_before = sequence.position - len(logprobs)
            shown, met = sequence.stops.feed(self.vocab.decode(new))
            sequence.held_logprobs = logprobs[len(shown) :]
            if met:
                self._stop_at(slot, sequence, shown, logprobs[: len(shown)], shown_before + len(shown))
                continue
            if sequence.replay_point is not None and not sequence.stops.held:
                sequence.set_replay_point(self._stepper.read(slot))
            if shown:
                snapshot = self._state(slot, sequence) if sequence.snapshot_is_due(now) else None
                position = sequence.position - sequence.stops.held
                self._show(sequence, Chunk(shown, position, logprobs[: len(shown)], snapshot))
            if sequence.steps_left == 0:
                self._finish(slot, sequence, "length")

    def _stop_at(self, slot: int, sequence: Sequence, shown: str, logprobs: list[float], position: int) -> None:
        """A stop string was met: what was drawn past `position` is thrown away, and the state there found by replay."""
        replay_point = sequence.replay_point
        assert replay_point is not None
        steps = position - replay_point.position
        self._stepper.write(slot, replay_point.values)
        if steps:
            fed = np.array(replay_point.ids[:steps], dtype=np.int32)
            self._stepper.run(one_row_block(slot, fed, steps, np.zeros((steps, 1)), SamplingParams(temperature=0)))
        if shown:
            self._show(sequence, Chunk(shown, position, logprobs))
        state = self._stored(self._stepper.read(slot), replay_point.ids[steps], position)
        self._leave(slot, End("stop", state))

    def _finish(self, slot: int, sequence: Sequence, reason: FinishReason) -> None:
        """End a text where it stands; what was held back for a stop string that did not come is shown."""
        held = sequence.stops.flush()
        if held:
            self._show(sequence, Chunk(held, sequence.position, sequence.held_logprobs))
        unread = sequence.is_reading and reason != "length"
        self._leave(slot, End(reason, None if unread else self._state(slot, sequence)))

    def _show(self, sequence: Sequence, piece: Chunk) -> None:
        now = time.monotonic()
        if sequence.wrote_at is None:
            self._did.first_s.append(now - sequence.submitted)
        else:
            self._did.gaps[now - sequence.wrote_at, len(piece.text)] += 1
        sequence.wrote_at = now
        self._did.written += len(piece.text)
        self._put(sequence, piece)

    def _leave(self, slot: int, last: End | Failed) -> None:
        sequence = self._scheduler.running[slot]
        self._scheduler.release(slot)
        self._ended(sequence, last)

    def _left_line(self, sequence: Sequence) -> None:
        with self._changed:
            self._steps_in_line -= sequence.steps_left

    def _ended(self, sequence: Sequence, last: End | Failed) -> None:
        with self._changed:
            self._in_flight -= 1
        self._did.ended.append(last.finish_reason if isinstance(last, End) else "failed")
        self._put(sequence, last)

    def _state(self, slot: int, sequence: Sequence) -> HiddenState:
        return self._stored(self._stepper.read(slot), int(sequence.to_feed[0]), sequence.position)

    def _stored(self, values: Values, next_input: int, position: int) -> HiddenState:
        return HiddenState(values, next_input, position, self.fingerprint, self.numerics)
