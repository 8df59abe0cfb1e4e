"""One step of learning: gradient, clipping, AdamW, the running mean of the weights. It knows no budget and no file.

On a CPU a batch is shared by threads: each reads its own rows with one core, and their gradients are added in the
order of the rows. A recurrent net's products are small and there is a barrier after each; threads that meet once a
step instead of several times a character use the cores better (docs/decisions.md has the figures). Distributed of a
torchrun job share the rest in the same way, so one process with two threads and two with one each learn the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import ModelConfig, TrainConfig
from model.errors import ConfigError
from model.network.char_rnn import CharRNN, State, detach
from model.network.native_layer import supports_native_lstm
from model.network.regularization import regularized_forward
from model.text.corpus import Streams
from model.training.distributed import Distributed

_ROWS_PER_WORKER = 8  # below this a product is too thin for a core to be worth having
_Part = tuple[tuple[Tensor, ...], State, Tensor]  # gradients, the state after, the loss


def workers_that_fit(config: TrainConfig, device: str, world: int) -> int:
    """How many threads share a rank's rows. Raised: ConfigError when the rows cannot be shared equally."""
    rows, left = divmod(config.batch_size, world)
    if left:
        raise ConfigError(f"batch_size: got {config.batch_size}, expected a multiple of the {world} processes")
    if device != "cpu":
        return 1
    if config.workers:
        if rows % config.workers:
            raise ConfigError(f"workers: got {config.workers}, expected a divisor of the {rows} rows of a batch")
        return config.workers
    most = min(torch.get_num_threads(), max(1, rows // _ROWS_PER_WORKER))
    return max(n for n in range(1, most + 1) if rows % n == 0)


class Learner:
    """A network, its optimizer and its running mean; `step` moves them on by one window."""

    def __init__(
        self,
        model: ModelConfig,
        config: TrainConfig,
        device: str,
        ranks: Distributed,
        n_workers: int,
        native: bool | None = None,
    ) -> None:
        """native: layers by our own C (model/window.py); None: where they can be. One that cannot be is not."""
        torch.manual_seed(config.seed)
        self.network = CharRNN(model).to(device).train()
        self.average = CharRNN(model).to(device).eval().requires_grad_(False)
        self.average.load_state_dict(self.network.state_dict())
        self._config, self._ranks, self._device = config, ranks, device
        self.native = native is not False and config.precision == "fp32" and supports_native_lstm(self.network)
        self._parameters = list(self.network.parameters())
        self.optimizer = _optimizer(self.network, config)
        n_parts = ranks.world * n_workers
        rows = config.batch_size // n_parts
        first = ranks.rank * n_workers
        self._rows = [slice((first + i) * rows, (first + i + 1) * rows) for i in range(n_workers)]
        self._states = [self.network.zero_state(rows) for _ in range(n_workers)]
        self._generators = [
            torch.Generator(device).manual_seed(_mixed(config.seed, first + i)) for i in range(n_workers)
        ]
        self._weight = torch.zeros((), device=device)
        self._pool: ThreadPoolExecutor | None = None
        self._cores = torch.get_num_threads()
        self.step_count = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        """While a run lasts: one core a worker, and numbers too small to matter are zero."""
        threads = self._cores = torch.get_num_threads()
        try:
            torch.set_flush_denormal(True)
            if len(self._rows) > 1:
                torch.set_num_threads(max(1, threads // len(self._rows)))
                self._pool = ThreadPoolExecutor(len(self._rows), initializer=torch.set_flush_denormal, initargs=(True,))
            yield
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None
            torch.set_num_threads(threads)
            torch.set_flush_denormal(False)

    @contextmanager
    def all_cores(self) -> Iterator[None]:
        """Between steps, while the workers have nothing to do: every core for one product."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._cores)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def step(self, streams: Streams, lr: float) -> Tensor:
        """Learn one window; returns its mean loss, a scalar on the device: nothing here waits for a GPU."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        count = self.step_count
        self._weight.fill_(self.mean_weight())
        loss = self._apply(self._map(lambda i: self._part(i, *streams.window(count, self._rows[i]))))
        self.step_count += 1
        return loss

    def mean_weight(self) -> float:
        """How far the next step moves the running mean: early on far, so that the random start is soon forgotten."""
        return 1 - min(self._config.ema, (2 + self.step_count) / (11 + self.step_count)) if self._config.ema else 1.0

    def _apply(self, parts: list[_Part]) -> Tensor:
        """Add up the parts of a batch in their order, here and over the ranks, and take the step."""
        gradients, loss = list(parts[0][0]), parts[0][2]
        for others, _, nats in parts[1:]:
            torch._foreach_add_(gradients, others)
            loss = loss + nats
        self._states = [state for _, state, _ in parts]
        n_parts = len(parts) * self._ranks.world
        gradients, loss = self._ranks.sum(gradients, loss)
        if n_parts > 1:
            torch._foreach_div_(gradients, n_parts)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self._parameters, self._config.clip)
        self.optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(self.average.parameters(), self._parameters, strict=True):
                mean.lerp_(parameter, self._weight)
        return loss / n_parts

    def _map(self, work: Callable[[int], _Part]) -> list[_Part]:
        if self._pool is None:
            return [work(i) for i in range(len(self._rows))]
        return list(self._pool.map(work, range(len(self._rows))))

    def _part(self, i: int, x: Tensor, y: Tensor) -> _Part:
        """The gradients of some rows. They are returned, not accumulated: several threads share the parameters."""
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self._config.precision)
        with torch.autocast(torch.device(self._device).type, dtype=precision, enabled=precision is not None):
            logits, state = regularized_forward(
                self.network, x, self._states[i], self._config, self._generators[i], self.native
            )
        nats = F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())
        # fp16's small gradients would vanish; a fixed factor is enough, for the gradient's norm is cut anyway.
        scale = 1024.0 if precision is torch.float16 else 1.0
        gradients = torch.autograd.grad(nats * scale, self._parameters)
        if scale != 1.0:
            torch._foreach_div_(gradients, scale)
        return gradients, tuple(s.float() for s in detach(state)), nats.detach()

    def tensors(self) -> dict[str, Tensor]:
        """All that a step depends on, by name, of all ranks; `load` takes it back."""
        found = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        found |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            found |= {f"optimizer.{name}.{k}": v for k, v in self.optimizer.state[parameter].items()}
        for i, (state, generator) in enumerate(zip(self._states, self._generators, strict=True)):
            own = {f"state.{s}": tensor for s, tensor in enumerate(state)} | {"generator": generator.get_state()}
            for name, tensor in own.items():
                for rank, one in enumerate(self._ranks.gathered(tensor)):
                    found[f"{name}.{rank * len(self._rows) + i}"] = one
        return {name: tensor.detach() for name, tensor in found.items()}

    def load(self, tensors: Mapping[str, Tensor], step_count: int) -> None:
        """Become the learner that `tensors` came from, after so many steps. Raised: KeyError when one is missing."""
        self.step_count = step_count
        for prefix, network in (("network.", self.network), ("average.", self.average)):
            network.load_state_dict({k: tensors[prefix + k] for k in network.state_dict()})
        for name, parameter in self.network.named_parameters():
            self.optimizer.state[parameter] = {
                k: tensors[f"optimizer.{name}.{k}"].clone().to(self._device) for k in ("step", "exp_avg", "exp_avg_sq")
            }
        n_tensors = self.network.config.state_tensors
        for i in range(len(self._rows)):
            part = self._ranks.rank * len(self._rows) + i
            self._states[i] = tuple(tensors[f"state.{s}.{part}"].clone().to(self._device) for s in range(n_tensors))
            self._generators[i].set_state(tensors[f"generator.{part}"].clone())


def _optimizer(network: CharRNN, config: TrainConfig) -> torch.optim.Optimizer:
    matrices = [p for p in network.parameters() if p.dim() >= 2]
    rest = [p for p in network.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99), fused=True)


def _mixed(seed: int, part: int) -> int:
    """A seed for each part of a batch, far from its neighbours' (the constant is Weyl's, 2^64 / golden ratio)."""
    return (seed + (part + 1) * 0x9E3779B97F4A7C15) % 2**63
