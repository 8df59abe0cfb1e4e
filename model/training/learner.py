"""One training step: gradients, clipping, AdamW, the moving average of the weights. It knows no budget and no file.

On a CPU the rows of a batch are divided into shards, one for each worker thread: each computes the gradients of its
rows on one core, and the gradients are added in the order of the rows. The matrix products of a recurrent network are
small, and torch synchronizes its threads after each product; threads that synchronize once a step use the cores better
(docs/decisions has the figures). The processes of a torchrun job divide the rows in the same way, so one process with
two workers and two processes with one worker learn the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import Bf16Order, ModelConfig, TrainConfig, TrainPrecision
from model.errors import ConfigError
from model.network.char_rnn import CharRNN, State, detach
from model.network.native_optimizer import AdamWState, NativeAdamW
from model.network.native_pass import NativePass, fastest_bf16_order, has_fast_bf16, supports_native_pass
from model.network.regularization import regularized_forward
from model.text.corpus import Streams
from model.text.items.streams import ItemStreams
from model.training.distributed import Distributed

_MIN_ROWS_PER_WORKER = 8  # with fewer rows a matrix product is too small to be worth a core
_T = TypeVar("_T")
_ShardResult = tuple[tuple[Tensor, ...], State, Tensor]  # gradients, the hidden state after the window, the loss


def choose_workers(config: TrainConfig, device: str, world_size: int) -> int:
    """Return how many threads of each process share its rows of a batch.

    Raises:
        ConfigError: The rows cannot be divided equally.
    """
    rows, remainder = divmod(config.batch_size, world_size)
    if remainder:
        expected = f"a multiple of the {world_size} processes"
        raise ConfigError(field="batch_size", value=config.batch_size, expected=expected)
    if config.workers and rows % config.workers:  # on a GPU, too, so that a run can be repeated on a CPU
        expected = f"a divisor of the {rows} rows of a batch"
        raise ConfigError(field="workers", value=config.workers, expected=expected)
    if device != "cpu":
        return 1
    if config.workers:
        return config.workers
    most = min(torch.get_num_threads(), max(1, rows // _MIN_ROWS_PER_WORKER))
    return max(n for n in range(1, most + 1) if rows % n == 0)


def choose_precision(config: TrainConfig, model: ModelConfig, device: str) -> TrainPrecision:
    """Return the precision of a new run; auto is bf16 where native code trains and multiplies it faster, else fp32."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if device == "cpu" and model.cell == "lstm" and has_fast_bf16() else "fp32"


class Learner:
    """A network, its optimizer and the moving average of its weights; `step` trains on one window.

    Attributes:
        network: The network that is trained.
        average: A network with the moving average of the weights, which is validated and saved.
        optimizer: AdamW, torch's or the state of native steps.
        native: Whether windows are computed by the native code.
        bf16_order: How its products of bfloat16 are added up; None: it has none.
        step_count: Steps so far.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: TrainConfig,
        device: str,
        distributed: Distributed,
        n_workers: int,
        native: bool | None = None,
        bf16_order: Bf16Order | None = None,
    ) -> None:
        """Initialize the weights from the configuration's seed.

        Args:
            model: The shape of the network.
            config: The settings of the training; a precision of "auto" counts as "fp32".
            device: "cpu", "cuda" or one GPU, such as "cuda:0".
            distributed: This process's place in a torchrun job.
            n_workers: Threads that share this process's rows, see `choose_workers`.
            native: Whether to compute windows by the native code where it is available; None: yes.
            bf16_order: How the native code adds up products of bfloat16; None: as it is fastest here.
        """
        torch.manual_seed(config.seed)
        self.network = CharRNN(model).to(device).train()
        self.average = CharRNN(model).to(device).eval().requires_grad_(False)
        self.average.load_state_dict(self.network.state_dict())
        self._config, self._distributed, self._device = config, distributed, device
        self.native = native is not False and config.precision != "fp16" and supports_native_pass(self.network)
        self.bf16_order: Bf16Order | None = None
        if self.native and config.precision == "bf16":
            self.bf16_order = bf16_order or fastest_bf16_order()
        self._parameters = list(self.network.parameters())
        self.optimizer = _optimizer(self.network, config, self.native)
        self._native_adamw = None
        self._passes: list[NativePass] = []
        if self.native:
            self._passes = [NativePass(self.network, config, self.bf16_order) for _ in range(n_workers)]
            self._native_adamw = NativeAdamW(self.optimizer, self._parameters, list(self.average.parameters()))
        rows = config.batch_size // (distributed.world_size * n_workers)  # of a shard
        first = distributed.rank * n_workers  # this process's first shard
        self._rows = [slice((first + i) * rows, (first + i + 1) * rows) for i in range(n_workers)]
        self._states = [self.network.zero_state(rows) for _ in range(n_workers)]
        self._generators = [
            torch.Generator(device).manual_seed(_shard_seed(config.seed, first + i)) for i in range(n_workers)
        ]
        self._average_weight = torch.zeros((), device=device)  # of the newest weights in the moving average
        self._pool: ThreadPoolExecutor | None = None
        self._cores = torch.get_num_threads()
        self.step_count = 0

    @contextmanager
    def worker_threads(self) -> Iterator[None]:
        """Run the worker threads, one core for each, and flush denormal numbers to zero; for the length of a run."""
        threads = self._cores = torch.get_num_threads()
        try:
            torch.set_flush_denormal(True)
            if len(self._rows) > 1:
                torch.set_num_threads(max(1, threads // len(self._rows)))
                self._pool = ThreadPoolExecutor(
                    len(self._rows) - 1, initializer=torch.set_flush_denormal, initargs=(True,)
                )
            yield
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None
            torch.set_num_threads(threads)
            torch.set_flush_denormal(False)

    @contextmanager
    def all_cores(self) -> Iterator[None]:
        """Let torch use every core for one product, between steps, while the workers are idle."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._cores)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def step(self, streams: Streams | ItemStreams, lr: float) -> Tensor:
        """Train on the next window.

        Args:
            streams: The training text, or the items of a list.
            lr: The learning rate.

        Returns:
            The window's mean loss in nats per character, a scalar on the device: no step waits for a GPU.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        count = self.step_count
        self._average_weight.fill_(self.average_weight())
        streams.prepare(count)
        first, rows = self._rows[0].start, self._rows[0].stop - self._rows[0].start
        x, y = streams.window(count, slice(first, self._rows[-1].stop))
        parts = [slice(i * rows, (i + 1) * rows) for i in range(len(self._rows))]
        shards = self._map(lambda i: self._shard_gradients(i, x[parts[i]], y[parts[i]], item_end=streams.item_end))
        loss = self._apply_gradients(shards)
        self.step_count += 1
        return loss

    def average_weight(self) -> float:
        """Return the weight of the next step in the moving average: large at first, to forget the random start."""
        return 1 - min(self._config.ema, (2 + self.step_count) / (11 + self.step_count)) if self._config.ema else 1.0

    def _apply_gradients(self, shards: list[_ShardResult]) -> Tensor:
        """Add up the shards in the order of their rows, here and over the ranks, and take the optimizer's step."""
        n_shards = len(shards) * self._distributed.world_size
        of_shards, losses = [list(gradients) for gradients, *_ in shards], [loss for *_, loss in shards]
        self._states = [state for _, state, _ in shards]
        loss = torch.stack(losses).sum()
        if self._distributed.world_size > 1 or self._native_adamw is None:
            gradients = of_shards[0]
            for others in of_shards[1:]:
                torch._foreach_add_(gradients, others)
            gradients, loss = self._distributed.all_reduce(gradients, loss)
            of_shards = [gradients]
        if self._native_adamw is not None:
            n_threads = 1 if self._pool is None else len(self._rows)
            self._native_adamw.step(of_shards, n_shards, self._config.clip, self.average_weight(), n_threads)
            return loss / n_shards
        if n_shards > 1:
            torch._foreach_div_(gradients, n_shards)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self._parameters, self._config.clip)
        assert isinstance(self.optimizer, torch.optim.Optimizer), "native steps have been taken above"
        self.optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(self.average.parameters(), self._parameters, strict=True):
                mean.lerp_(parameter, self._average_weight)
        return loss / n_shards

    def _map(self, work: Callable[[int], _T]) -> list[_T]:
        """Call `work` with the number of each shard: this thread does the first, the worker threads do the others."""
        if self._pool is None:
            return [work(i) for i in range(len(self._rows))]
        others = [self._pool.submit(work, i) for i in range(1, len(self._rows))]
        try:
            first = work(0)
        finally:
            wait(others)
        return [first, *(other.result() for other in others)]

    def _shard_gradients(self, i: int, x: Tensor, y: Tensor, item_end: int | None = None) -> _ShardResult:
        """Compute the gradients of a shard. They are returned, not accumulated: the threads share the parameters."""
        starts = None if item_end is None else x == item_end
        if self._passes:
            return self._passes[i].run(x, y, self._states[i], self._generators[i], starts)
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self._config.precision)
        with torch.autocast(torch.device(self._device).type, dtype=precision, enabled=precision is not None):
            logits, state = regularized_forward(
                self.network, x, self._states[i], self._config, self._generators[i], starts
            )
        nats = F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())
        # Small fp16 gradients would underflow; a constant factor is enough, because the gradient's norm is clipped.
        scale = 1024.0 if precision is torch.float16 else 1.0
        gradients = torch.autograd.grad(nats * scale, self._parameters)
        if scale != 1.0:
            torch._foreach_div_(gradients, scale)
        return gradients, tuple(s.float() for s in detach(state)), nats.detach()

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything that a step depends on, by name, of all ranks."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            tensors |= {f"optimizer.{name}.{k}": v for k, v in self.optimizer.state[parameter].items()}
        for i, (state, generator) in enumerate(zip(self._states, self._generators, strict=True)):
            of_shard = {f"state.{s}": tensor for s, tensor in enumerate(state)} | {"generator": generator.get_state()}
            for name, tensor in of_shard.items():
                for rank, gathered in enumerate(self._distributed.all_gather(tensor)):
                    tensors[f"{name}.{rank * len(self._rows) + i}"] = gathered
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor], step_count: int) -> None:
        """Restore what `state_tensors` returned after `step_count` steps.

        Raises:
            KeyError: A tensor is missing.
        """
        self.step_count = step_count
        for prefix, network in (("network.", self.network), ("average.", self.average)):
            network.load_state_dict({k: tensors[prefix + k] for k in network.state_dict()})
        for name, parameter in self.network.named_parameters():
            self.optimizer.state[parameter] = {
                k: tensors[f"optimizer.{name}.{k}"].clone().to(self._device) for k in ("step", "exp_avg", "exp_avg_sq")
            }
        if self._native_adamw is not None:
            self._native_adamw.load_state()
        n_tensors = self.network.config.state_tensors
        for i in range(len(self._rows)):
            shard = self._distributed.rank * len(self._rows) + i
            self._states[i] = tuple(tensors[f"state.{s}.{shard}"].clone().to(self._device) for s in range(n_tensors))
            self._generators[i].set_state(tensors[f"generator.{shard}"].clone())


def _optimizer(network: CharRNN, config: TrainConfig, native: bool) -> torch.optim.Optimizer | AdamWState:
    matrices = [p for p in network.parameters() if p.dim() >= 2]
    others = [p for p in network.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    betas = (0.9, 0.99)
    if native:
        return AdamWState(groups, config.lr, betas)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)


def _shard_seed(seed: int, shard: int) -> int:
    """Return a seed for each shard, far from those of its neighbours (Weyl sequence: 2^64 / golden ratio)."""
    return (seed + (shard + 1) * 0x9E3779B97F4A7C15) % 2**63
