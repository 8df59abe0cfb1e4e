"""The training step as one CUDA graph: a recurrent step is many small kernels, and launching them dominates its time.

Shapes are fixed, buffers are static, the learning rate and the weight of the moving average are tensors that the graph
reads, and nothing in the step waits for the host. Its tests are skipped without a GPU; docs/gpu.md says where they ran.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.text.corpus import Streams
from model.text.items.streams import ItemStreams
from model.training.learner import Learner

_WARM_UP_STEPS = 3  # before the capture, so that cuDNN has chosen its algorithms and the optimizer has its state


class CudaGraphLearner(Learner):
    """A Learner whose step is captured once and replayed; for a text, one GPU, one process and one shard."""

    _graph: torch.cuda.CUDAGraph | None = None
    _x: Tensor
    _y: Tensor
    _loss: Tensor
    _warm_up_steps = 0

    def step(self, streams: Streams | ItemStreams, lr: float) -> Tensor:
        """Learn one window, see `Learner.step`."""
        x, y = streams.window(self.step_count, self._rows[0])
        if self._graph is None:
            self._x, self._y = x.clone(), y.clone()
            for group in self.optimizer.param_groups:  # a learning rate that a graph can read
                group["lr"] = torch.tensor(lr, device=self._device)
                group["capturable"] = True
        self._set_inputs(lr)
        if self._graph is None and self._warm_up_steps < _WARM_UP_STEPS:
            side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side_stream):
                self._loss = self._apply_gradients([self._shard_gradients(0, x, y)])
            torch.cuda.current_stream().wait_stream(side_stream)
            self._warm_up_steps += 1
        else:
            self._x.copy_(x)
            self._y.copy_(y)
            if self._graph is None:
                self._capture()
            assert self._graph is not None
            self._graph.replay()
        self.step_count += 1
        return self._loss.clone()

    def _set_inputs(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(lr)
        self._average_weight.fill_(self.average_weight())

    def _capture(self) -> None:
        """Capture a step. The hidden states that it reads are the buffers that it writes."""
        state = tuple(s.clone() for s in self._states[0])
        self._states[0] = state
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(self._generators[0])
        with torch.cuda.graph(self._graph):
            self._loss = self._apply_gradients([self._shard_gradients(0, self._x, self._y)])
            for buffer, new in zip(state, self._states[0], strict=True):
                buffer.copy_(new)
        self._states[0] = state
