"""The same step on a GPU as one CUDA graph: a recurrent step is many small kernels, and starting them costs most.

Shapes are fixed, buffers are static, the rate and the mean's decay are tensors that the graph reads, and nothing in it
waits for the host. Written for a GPU and not yet run on one: docs/decisions.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.text.corpus import Streams
from model.training.learner import Learner

_WARM_UP = 3  # steps before the capture, so that cuDNN has chosen and the optimizer has its state


class CudaGraphLearner(Learner):
    """A Learner whose step is captured once and replayed; one device, one process, one part."""

    _graph: torch.cuda.CUDAGraph | None = None
    _x: Tensor
    _y: Tensor
    _loss: Tensor
    _steps_here = 0

    def step(self, streams: Streams, lr: float) -> Tensor:
        x, y = streams.window(self.step_count, self._rows[0])
        if self._graph is None:
            self._x, self._y = x.clone(), y.clone()
            for group in self.optimizer.param_groups:  # a rate that a graph can read
                group["lr"] = torch.tensor(lr, device=self._device)
                group["capturable"] = True
        self._set(lr)
        if self._graph is None and self._steps_here < _WARM_UP:
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._loss = self._apply([self._part(0, x, y)])
            torch.cuda.current_stream().wait_stream(side)
            self._steps_here += 1
        else:
            self._x.copy_(x)
            self._y.copy_(y)
            if self._graph is None:
                self._capture()
            assert self._graph is not None
            self._graph.replay()
        self.step_count += 1
        return self._loss.clone()

    def _set(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(lr)
        self._weight.fill_(self.mean_weight())

    def _capture(self) -> None:
        """Record a step. The states it reads are the buffers it writes."""
        state = tuple(s.clone() for s in self._states[0])
        self._states[0] = state
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(self._generators[0])
        with torch.cuda.graph(self._graph):
            self._loss = self._apply([self._part(0, self._x, self._y)])
            for buffer, new in zip(state, self._states[0], strict=True):
                buffer.copy_(new)
        self._states[0] = state
