"""The engine: one thread that runs the stepper. Each iteration admits, runs a block and processes its results.

The thread does no I/O, and only it touches the scheduler, the sequences and the stepper. Other threads submit requests
and read or close streams.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.errors import StateError
from model.network.state import HiddenState
from model.stepper import Block, BlockResult, CpuBound, Interrupt, Stepper, StepperError
from model.stepper.generate import one_row_block
from model.stepper.scoring import PackedTexts
from model.text.vocab import Vocabulary
from service.engine.cores import CoreScheduler, Turn
from service.engine.observer import IterationStats, NullObserver, Observer
from service.engine.scheduler import Scheduler
from service.engine.scoring import BUSY_SHARE, ScoringJob, ScoringQueue
from service.engine.sequence import Sequence, SequenceRequest, StateArray
from service.engine.stream import Chunk, End, Failed, FinishReason, Item, Scored, StateCapture, Stream, StreamGroup
from service.errors import Draining, QueueFull, ServiceError
from service.reused_threads import ReusedThreads

log = logging.getLogger(__name__)
_THREADS = ReusedThreads("engine")  # of all engines of this process


class Engine:
    """Generates many texts at once on one stepper. Each is the same as if it were generated alone."""

    def __init__(
        self,
        stepper: Stepper,
        vocab: Vocabulary,
        fingerprint: str,
        *,
        max_waiting: int,
        block_s: float = 0.020,
        step_s: float | None = None,
        cores: CoreScheduler | None = None,
        observer: Observer | None = None,
        on_device_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Create the engine; `start` starts its thread.

        Args:
            stepper: Used by this engine alone.
            vocab: The vocabulary of the stepper's network.
            fingerprint: The fingerprint of its checkpoint, which every state carries.
            max_waiting: The capacity of the queue in front of the slots.
            block_s: The time that a block should take.
            step_s: The time of a step, until blocks have been measured: what it was for a stepper like this; None: a
                guess.
            cores: Shared with the engines of other models; None: it shares none.
            observer: Receives the statistics of each iteration.
            on_device_lost: Called when the stepper can compute nothing more in this process; every sequence ends with
                Draining.
        """
        self.vocab = vocab
        self.fingerprint = fingerprint
        self.numerics = stepper.numerics
        self.stepper_name = stepper.name
        self.n_slots = stepper.n_slots
        self.max_waiting = max_waiting
        self._stepper = stepper
        self._zero = stepper.read(0)  # of the shape and the type that every state must have
        self._scheduler = Scheduler(stepper.n_slots, block_s, step_s)
        self._scorings = ScoringQueue(stepper)
        self._block_s = block_s
        self._cpu_stepper = stepper if isinstance(stepper, CpuBound) else None
        self._cores = cores.queue() if cores is not None and self._cpu_stepper is not None else None
        self._n_cores = cores.n_cores if cores is not None else 0
        self._observer = observer or NullObserver()
        self._stats = IterationStats()  # of the present iteration
        self._outbox: list[tuple[Stream, Item]] = []  # put on the streams just before the next block runs
        self._inbox: list[Sequence] = []
        self._in_flight = 0  # submitted and not ended; under the lock
        self._queued_steps = 0  # of the sequences without a slot; under the lock
        self._groups: set[StreamGroup] = set()  # of the requests for many sequences that run; under the lock
        self._in_groups = 0  # of the sequences in flight, those of a group; under the lock
        self._n_parts = 0  # of the sequences in flight, those that are parts of longer texts; under the lock
        self._changed = threading.Condition()
        self._interrupt = Interrupt()  # ends the running block early, when a submitted request can get a slot
        self._is_stopping = False
        self._on_device_lost = on_device_lost
        self._ended: threading.Event | None = None  # of the thread; None: it has not been started

    def start(self) -> None:
        """Start the engine's thread."""
        self._ended = _THREADS.start(self._loop)

    def stop(self) -> None:
        """End every sequence with an error, then the thread. Idempotent; not for the engine's own thread."""
        with self._changed:
            self._is_stopping = True
            self._interrupt.set()
            self._changed.notify()
        if self._ended is not None:
            self._ended.wait()

    def open_group(self) -> StreamGroup:
        """Return the streams of a request for many sequences; `close_group` ends them."""
        group = StreamGroup()
        with self._changed:
            self._groups.add(group)
        return group

    def close_group(self, group: StreamGroup) -> None:
        """End the sequences of a group. Idempotent."""
        group.close()
        with self._changed:
            self._groups.discard(group)

    def room_for_group(self, n_running: int) -> int:
        """Return how many sequences may be submitted by a group that has so many in the engine.

        As many as slots are free. Beyond that, all groups together may fill the slots and half of the queue, in equal
        shares, so that single requests always have places.
        """
        places = self.n_slots + min(self.n_slots, self.max_waiting // 2)
        share = max(1, places // max(1, len(self._groups)))
        return max(0, self.n_slots - self._in_flight, min(places - self._in_groups, share - n_running))

    def submit(self, request: SequenceRequest, stream: Stream | None = None) -> Stream:
        """Queue a request, and return the stream of its text.

        Args:
            request: What to generate.
            stream: One of a group; None: a new one.

        Raises:
            QueueFull: Every slot and every place in the queue is taken.
            Draining: The engine is stopping.
            ValueError: The request cannot be run; in a block it would end other texts, too.
        """
        stream = stream or Stream()
        self.submit_many([(request, stream)])
        return stream

    def submit_many(self, requests: Iterable[tuple[SequenceRequest, Stream]]) -> int:
        """Queue requests together, so that the next block has all of them, and return for how many there are places.

        Args:
            requests: What to generate, and where it is put. The first ones are queued.

        Raises:
            QueueFull: Every slot and every place in the queue is taken.
            Draining: The engine is stopping.
            ValueError: A request cannot be run; in a block it would end other texts, too.
        """
        now = time.monotonic()
        sequences = []
        for request, stream in requests:
            self._check(request)
            sequences.append(Sequence(request, now, stream))
        with self._changed:
            self.check_capacity()
            queued = sequences[: self.n_slots + self.max_waiting - self._in_flight]
            for sequence in queued:
                self._in_flight += 1
                self._in_groups += sequence.stream.group is not None
                self._n_parts += sequence.request.is_part
                self._queued_steps += sequence.steps_left
            self._inbox += queued
            if self._can_give_slot() and any(not sequence.request.is_part for sequence in queued):
                self._interrupt.set()
            self._changed.notify()
        return len(queued)

    def _can_give_slot(self) -> bool:
        """Whether what was queued last can get a slot when a block ends: parts end for it. The caller has the lock."""
        return self._in_flight - self._n_parts <= self.n_slots

    @property
    def can_score(self) -> bool:
        """Whether `score` can be called: whether the stepper reads texts without slots."""
        return self._scorings.is_supported

    def score(self, texts: PackedTexts) -> ScoringJob:
        """Queue texts that are only read, which need no slots.

        Raises:
            QueueFull: As many lists of texts as there are slots and places in the queue wait already.
            Draining: The engine is stopping.
        """
        job = ScoringJob(texts)
        with self._changed:
            if self._is_stopping:
                raise Draining("this worker is shutting down")
            if len(self._scorings) >= self.n_slots + self.max_waiting:
                raise QueueFull(f"{len(self._scorings)} lists of texts wait to be scored")
            self._scorings.add(job)
            self._changed.notify()
        return job

    def check_state(self, state: HiddenState) -> None:
        """Check that a state which this engine's fingerprint and numerics wrote can be continued here.

        Raises:
            StateError: It is damaged; the message says what is wrong.
        """
        if not self._has_form(state.values):
            problem = f"{state.values.dtype} {state.values.shape}"
            raise StateError(problem, field="state", expected=f"{self._zero.dtype} {self._zero.shape}")
        if state.next_input >= len(self.vocab):
            expected = f"an id from 0 to {len(self.vocab) - 1}"
            raise StateError(field="next_input", value=state.next_input, expected=expected)

    def check_capacity(self) -> None:
        """Raise what `submit` would raise now, to reject a request before any work is done for it.

        Raises:
            QueueFull: Every slot and every place in the queue is taken.
            Draining: The engine is stopping.
        """
        if self._is_stopping:
            raise Draining("this worker is shutting down")
        if self._in_flight >= self.n_slots + self.max_waiting:
            raise QueueFull(
                f"all {self.n_slots} slots and all {self.max_waiting} places in the queue are taken",
                retry_after_s=self._scheduler.estimate_wait_s(self._queued_steps),
            )

    @property
    def has_ended(self) -> bool:
        """Whether the engine's thread has run and ended."""
        return self._ended is not None and self._ended.is_set()

    @property
    def step_s(self) -> float:
        """The time of a step, as the last blocks took it."""
        return self._scheduler.step_s

    @property
    def in_flight(self) -> int:
        """The number of sequences that run or wait, and of lists of texts to be scored."""
        return self._in_flight + len(self._scorings)

    def _check(self, request: SequenceRequest) -> None:
        feed, state = request.feed, request.state
        if not len(feed) or int(feed.min()) < 0 or int(feed.max()) >= len(self.vocab):
            raise ValueError(f"feed: has ids outside the vocabulary of {len(self.vocab)} characters")
        if state is not None and not (self._has_form(state) and np.isfinite(state).all()):
            expected = f"finite {self._zero.dtype} {self._zero.shape}"
            raise ValueError(f"state: got {state.dtype} {state.shape}, expected {expected}")
        if request.automaton is not None and request.budget < max(request.automaton.shortest, request.max_chars):
            raise ValueError(f"budget: got {request.budget}, expected that of a whole text, at least max_chars")

    def count_finished(self, reason: FinishReason | Literal["failed"]) -> None:
        """Count the end of a request whose parts are not counted as requests."""
        self._observer.on_finished(reason)

    def _has_form(self, state: StateArray) -> bool:
        return state.shape == self._zero.shape and state.dtype == self._zero.dtype

    def _loop(self) -> None:
        while self._wait_for_work():
            try:
                self._step()
            except StepperError as e:
                if e.is_final:
                    self._end_without_device(e)
                    break
                self._fail_running(e)
            except Exception as e:  # a bug ends the sequences that met it, not the thread
                self._fail_running(e)
            if not self._scheduler.running:
                self._flush_outbox()
            self._report()
        for sequence in [*self._scheduler.running.values(), *self._scheduler.waiting, *self._inbox]:
            self._stats.finish_reasons.append("failed")
            self._send(sequence, Failed(Draining("this worker is shutting down; resume the stream on another one")))
        self._flush_outbox()
        self._scorings.close(Draining("this worker is shutting down; send the request to another one"))
        self._observer.on_iteration(self._stats)
        self._observer.on_stopped()
        if self._cores is not None:
            self._cores.rest()
        del self._stepper, self._cpu_stepper  # its memory is free again, whoever still refers to this engine

    def _fail_running(self, error: Exception) -> None:
        log.exception("the engine failed to run a block; the sequences in it end with an error")
        for slot in list(self._scheduler.running):
            self._release(slot, _failed(error))
        self._scorings.end(_failed(error).error)

    def _end_without_device(self, error: StepperError) -> None:
        """Accept nothing more, and have the process ended."""
        log.critical("the stepper can compute nothing more in this process, which now shuts down: %s", error)
        with self._changed:
            self._is_stopping = True
        self._on_device_lost()

    def _wait_for_work(self) -> bool:
        """Move submitted sequences to the scheduler, waiting for one if there is nothing to do; False: stop."""
        with self._changed:
            while not self._inbox and self._scheduler.is_idle and not self._scorings and not self._is_stopping:
                if self._cores is not None:
                    self._cores.rest()
                self._changed.wait()
            self._take_submitted()
            return not self._is_stopping

    def _take_submitted(self) -> None:
        """Move submitted sequences to the scheduler. The caller has the lock."""
        self._scheduler.add(self._inbox)
        self._inbox.clear()

    def _step(self) -> None:
        """One iteration: end what is cancelled or late, admit, run a block, process its results, score texts."""
        self._run_block()
        if self._scorings:
            self._score_texts()

    def _run_block(self) -> None:
        began = time.monotonic()
        if self._scheduler.is_idle:
            return
        with self._turn() as turn:
            now = time.monotonic()
            with self._changed:
                self._take_submitted()  # those that came while this engine waited for its turn
                if not self._is_stopping:
                    self._interrupt.clear()
            self._end_cancelled_and_late(now)
            self._admit(now)
            if not self._scheduler.running:
                return
            block = self._scheduler.next_block(1.0 if turn is None else turn.share)
            self._flush_outbox()
            started = time.monotonic()
            result = self._run(block, turn)
            self._stats.block_s = time.monotonic() - started
        self._scheduler.record(result, self._stats.block_s, now - began)
        self._process(block.slots, result)

    def _score_texts(self) -> None:
        """Read texts that are only scored: for the time of a block, or a share of the time of the one that has run."""
        self._flush_outbox()
        block_s = self._stats.block_s
        seconds = self._block_s if block_s is None else block_s * BUSY_SHARE / (1 - BUSY_SHARE)
        with self._turn() as turn:
            n_cores = turn.extend(self._n_cores, self._block_s) if turn is not None else 0
            self._stats.prompt_chars += self._scorings.run(seconds, n_cores)

    def _turn(self) -> AbstractContextManager[Turn | None]:
        """Wait for this engine's turn on the cores; None if it shares none."""
        if self._cores is None:
            return nullcontext()
        turn = self._cores.try_turn()
        if turn is None:
            self._flush_outbox()
            turn = self._cores.turn()
        return turn

    def _run(self, block: Block, turn: Turn | None) -> BlockResult:
        if self._cpu_stepper is None:
            return self._stepper.run(block)
        n_cores = 0
        if turn is not None:
            n_cores = turn.extend(self._cpu_stepper.cores_for(block), self._scheduler.block_s)
        return self._cpu_stepper.run(block, n_cores, self._interrupt)

    def _end_cancelled_and_late(self, now: float) -> None:
        for sequence in self._scheduler.drop_waiting(now):
            self._count_dequeued(sequence)
            self._end(sequence, End("cancelled" if sequence.stream.closed else "timeout", None))
        for slot, sequence in list(self._scheduler.running.items()):
            if sequence.stream.closed:
                self._finish(slot, sequence, "cancelled")
            elif sequence.is_past_deadline(now):
                self._finish(slot, sequence, "timeout")
            else:
                sequence.follow_reader()
                if sequence.steps_left == 0:
                    self._finish(slot, sequence, sequence.finish_reason)

    def _admit(self, now: float) -> None:
        admitted = self._scheduler.admit()
        while (slot := self._scheduler.part_to_end()) is not None:
            self._finish(slot, self._scheduler.running[slot], "length")
            admitted += self._scheduler.admit()
        for slot, sequence in admitted:
            self._count_dequeued(sequence)
            if not sequence.request.is_part:
                self._stats.queue_times_s.append(now - sequence.submitted_at)
            self._stats.reused_chars += sequence.request.reused_chars
            try:
                self._stepper.write(slot, sequence.request.state)
            except StepperError:
                raise
            except Exception as e:  # a bug, which ends this text alone
                log.exception("the engine could not load a state; the sequence that begins with it ends with an error")
                self._release(slot, _failed(e))
                continue
            if sequence.steps_left == 0:
                self._finish(slot, sequence, sequence.finish_reason)

    def _process(self, slots: NDArray[np.int32], result: BlockResult) -> None:
        """Turn the ids of a block into chunks, captures and ends."""
        now = time.monotonic()
        constraints = result.constraints
        for b, (slot, n) in enumerate(zip(slots.tolist(), result.steps.tolist(), strict=True)):
            sequence = self._scheduler.running[slot]
            self._stats.prompt_chars += min(n, sequence.unread_chars)
            if sequence.request.is_scored:
                sequence.scores.append(result.logprobs[:n, b].copy())
            new = sequence.advance(result.ids[:n, b])
            if constraints is not None and sequence.request.automaton is not None:
                mask_logprobs = constraints.logprobs[n - len(new) : n, b].tolist()
                sequence.advance_automaton(int(constraints.states[b]), mask_logprobs)
            capture_key = sequence.pop_capture()
            if capture_key is not None:
                self._send(sequence, StateCapture(capture_key, self._read_state(slot, sequence)))
            end_id = sequence.request.end_id
            if end_id is not None and end_id in new:
                self._finish_at_end(slot, sequence, new, result.logprobs[n - len(new) : n, b])
                continue
            text, logprobs, is_stopped = sequence.scan(
                self.vocab.decode(new), result.logprobs[n - len(new) : n, b].copy()
            )
            if is_stopped:
                self._finish_at_stop(slot, sequence, text, logprobs)
                continue
            if sequence.may_move_replay_point:
                sequence.move_replay_point(self._stepper.read(slot))
            if text:
                snapshot = self._read_state(slot, sequence) if sequence.snapshot_is_due(now) else None
                self._send_chunk(sequence, Chunk(text, sequence.sent_position, logprobs, snapshot))
            if sequence.steps_left == 0:
                self._finish(slot, sequence, sequence.finish_reason)

    def _finish_at_stop(self, slot: int, sequence: Sequence, text: str, logprobs: NDArray[np.float32]) -> None:
        """End a sequence before a stop string: discard what was generated past it, and find the state by replay."""
        position = sequence.sent_position
        replay_point = sequence.replay_point
        fed, next_input = replay_point.ids_until(position)
        self._stepper.write(slot, replay_point.state)
        if fed:
            self._stepper.run(one_row_block(slot, fed, len(fed)))
        if text:
            self._send_chunk(sequence, Chunk(text, position, logprobs))
        self._release(slot, End("stop", self._hidden_state(self._stepper.read(slot), next_input, position)))

    def _finish_at_end(
        self, slot: int, sequence: Sequence, new: NDArray[np.int32], logprobs: NDArray[np.float32]
    ) -> None:
        """End a sequence with its end_id: discard what was generated past it."""
        n = int(np.argmax(new == sequence.request.end_id)) + 1
        position = sequence.position - len(new) + n
        self._send_chunk(sequence, Chunk(self.vocab.decode(new[:n]), position, logprobs[:n].copy()))
        self._release(slot, End("stop", None))

    def _finish(self, slot: int, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence where it is; send what was held back for a stop string that did not come."""
        text, logprobs = sequence.flush()
        if text:
            self._send_chunk(sequence, Chunk(text, sequence.position, logprobs))
        if sequence.scores and reason == "length":
            self._send(sequence, Scored(np.concatenate(sequence.scores)))
        is_prompt_read = reason == "length" or sequence.unread_chars == 0
        state = self._read_state(slot, sequence) if is_prompt_read else None
        self._release(slot, End(reason, state, sequence.mask_bits))

    def _release(self, slot: int, last: End | Failed) -> None:
        self._end(self._scheduler.release(slot), last)

    def _end(self, sequence: Sequence, last: End | Failed) -> None:
        """Send the last item of a sequence that has no slot any more."""
        with self._changed:
            self._in_flight -= 1
            self._in_groups -= sequence.stream.group is not None
            self._n_parts -= sequence.request.is_part
        if not sequence.request.is_part:
            self._stats.finish_reasons.append(last.finish_reason if isinstance(last, End) else "failed")
        self._send(sequence, last)

    def _count_dequeued(self, sequence: Sequence) -> None:
        with self._changed:
            self._queued_steps -= sequence.steps_left

    def _send_chunk(self, sequence: Sequence, chunk: Chunk) -> None:
        now = time.monotonic()
        if sequence.last_chunk_at is not None:
            self._stats.chunk_gaps[now - sequence.last_chunk_at, len(chunk.text)] += 1
        elif not sequence.request.is_part:
            self._stats.first_chunk_times_s.append(now - sequence.submitted_at)
        sequence.last_chunk_at = now
        self._stats.generated_chars += len(chunk.text)
        self._send(sequence, chunk)

    def _send(self, sequence: Sequence, item: Item) -> None:
        self._outbox.append((sequence.stream, item))

    def _flush_outbox(self) -> None:
        """Wake the readers. Done just before a block runs: they hold the interpreter while this thread does not."""
        for stream, item in self._outbox:
            stream.put(item)
        self._outbox.clear()

    def _report(self) -> None:
        stats, self._stats = self._stats, IterationStats()
        stats.running = len(self._scheduler.running)
        stats.waiting = self._in_flight - stats.running
        self._observer.on_iteration(stats)

    def _read_state(self, slot: int, sequence: Sequence) -> HiddenState:
        return self._hidden_state(self._stepper.read(slot), sequence.next_input, sequence.position)

    def _hidden_state(self, values: StateArray, next_input: int, position: int) -> HiddenState:
        return HiddenState(values, next_input, position, self.fingerprint, self.numerics)


def _failed(cause: Exception) -> Failed:
    error = ServiceError("internal error; the log of the service has the details")
    error.__cause__ = cause
    return Failed(error)
