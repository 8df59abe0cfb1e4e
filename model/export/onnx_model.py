"""A checkpoint as an ONNX model of one step: `ids, h, c -> logits, h_next, c_next`, the batch dimension free.

One step, not a sequence: a program that samples needs the logits after each character, and a sequence is a loop over
steps with the same result. The recurrent layers are the operators LSTM, GRU and RNN of the standard, so every runtime
has kernels for them.

In int8 the matrices that the native stepper rounds are rounded in the same way, and DequantizeLinear restores them.
Activations stay float32: the integer products of some CPUs saturate at 16 bits, so what they give depends on the CPU.
The error that the rounding causes is measured here and stated in the metadata.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from model import __version__
from model.checkpoints.file_format import Checkpoint
from model.config import WeightPrecision
from model.export.rounding import rounded_weights
from model.network.sampling import SamplingParams
from model.stepper.generate import write
from model.stepper.reference import ReferenceStepper

FORMAT = "longhand-onnx-1"
"""The name and version of the layout of the metadata."""

OPSET = 22
"""The operator set: the newest that changed one of the recurrent operators."""

_IR_VERSION = 10  # of the file; the one that belongs to OPSET
_MEASURED_CHARS = 1000
_OPERATORS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}
"""For each gate in ONNX's order, its place in torch's: lstm i o f c from i f g o, gru z r h from r z n."""


@dataclass(frozen=True, slots=True)
class Int8Error:
    """What rounding the weights changes, on text that the model generated.

    Attributes:
        max_logit: The largest absolute difference of a logit.
        cost: What it adds to the loss, in nats per character: the Kullback-Leibler divergence of the distributions.
    """

    max_logit: float
    cost: float


def to_onnx(checkpoint: Checkpoint, precision: WeightPrecision = "fp32") -> bytes:
    """Return a checkpoint as the bytes of an ONNX file.

    Args:
        checkpoint: The model.
        precision: "fp32", or "int8" for matrices of 8 bits.
    """
    builder = _GraphBuilder(checkpoint, precision)
    builder.build()
    config = checkpoint.config
    state: list[str | int | None] = [config.n_layers, "batch", config.n_hidden]
    names = ("h", "c")[: config.state_tensors]
    float_, int64 = TensorProto.FLOAT, TensorProto.INT64
    graph = helper.make_graph(
        builder.nodes,
        "step",
        [
            helper.make_tensor_value_info("ids", int64, ["batch"]),
            *(helper.make_tensor_value_info(name, float_, state) for name in names),
        ],
        [
            helper.make_tensor_value_info("logits", float_, ["batch", config.vocab_size]),
            *(helper.make_tensor_value_info(f"{name}_next", float_, state) for name in names),
        ],
        builder.initializers,
    )
    model = helper.make_model(
        graph,
        producer_name="longhand",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
    )
    helper.set_model_props(model, _metadata(checkpoint, precision))
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def int8_error(checkpoint: Checkpoint) -> Int8Error:
    """Measure what rounding changes, on 1,000 characters that the model generates (temperature 1, seed 0)."""
    network = checkpoint.network()
    restored = {
        name: torch.from_numpy(matrix.whole * matrix.steps[:, None].astype(np.float32))
        for name, matrix in rounded_weights(checkpoint).items()
    }
    rounded = replace(checkpoint, weights={**checkpoint.weights, **restored}).network()
    text = "".join(write(ReferenceStepper(network, 1), checkpoint.vocab, "", _MEASURED_CHARS, SamplingParams(), seed=0))
    ids = torch.tensor([[checkpoint.vocab.start, *checkpoint.vocab.encode(text).tolist()]])
    with torch.inference_mode():
        exact, other = (n(ids, n.zero_state(1))[0][0].double() for n in (network, rounded))
    cost = F.kl_div(other.log_softmax(-1), exact.log_softmax(-1), log_target=True, reduction="batchmean")
    return Int8Error(float((exact - other).abs().max()), float(cost))


class _GraphBuilder:
    """The nodes and weights of a graph, in the order in which they are computed."""

    def __init__(self, checkpoint: Checkpoint, precision: WeightPrecision) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._rounded = rounded_weights(checkpoint) if precision == "int8" else {}

    def build(self) -> None:
        """Add everything from the inputs to the outputs."""
        config = self.config
        state = {name: self._before(name) for name in ("h", "c")[: config.state_tensors]}
        self._constant("embedding.weight", self.checkpoint.weights["embedding.weight"].numpy())
        vectors = self._node("Gather", ["embedding.weight", "ids"], "embedded")  # (batch, E)
        below = self._node("Unsqueeze", [vectors, self._constant("time_axis", np.array([0]))], "x_l0")  # (1, batch, E)
        after: dict[str, list[str]] = {name: [] for name in state}
        for layer in range(config.n_layers):
            outputs = [f"{name}_l{layer}_next" for name in state]
            inputs = [below, *self._layer_weights(layer), "", *(parts[layer] for parts in state.values())]
            node = helper.make_node(_OPERATORS[config.cell], inputs, ["", *outputs], hidden_size=config.n_hidden)
            if config.cell == "gru":
                node.attribute.append(helper.make_attribute("linear_before_reset", 1))  # as torch computes a gru
            self.nodes.append(node)
            below = outputs[0]
            for name, output in zip(state, outputs, strict=True):
                after[name].append(output)
        top = self._node("Squeeze", [below, "time_axis"], "top")  # (batch, H)
        bias = self._constant("head.bias", self.checkpoint.weights["head.bias"].numpy())
        self._node("Gemm", [top, self._matrix("head.weight"), bias], "logits", transB=1)
        for name, outputs in after.items():
            self._node("Concat", outputs, f"{name}_next", axis=0)

    def _before(self, name: str) -> list[str]:
        """Return a state tensor by layer, each (1, batch, H): zeros where an item of a list begins."""
        source = name
        if self.checkpoint.items is not None:
            if name == "h":
                self._constant("item_end", np.array(self.checkpoint.vocab.start))
                ends = self._node("Equal", ["ids", "item_end"], "ends")  # (batch,)
                self._node("Unsqueeze", [ends, self._constant("state_axes", np.array([0, 2]))], "begins_item")
                self._constant("zero", np.array(0, np.float32))
            source = self._node("Where", ["begins_item", "zero", name], f"{name}_before")
        layers = [f"{name}_l{layer}" for layer in range(self.config.n_layers)]
        self.nodes.append(helper.make_node("Split", [source], layers, axis=0, num_outputs=len(layers)))
        return layers

    def _layer_weights(self, layer: int) -> list[str]:
        """Return the names of W (1, G H, inputs), R (1, G H, H) and B (1, 2 G H)."""
        biases = [self._by_gate(self.checkpoint.weights[f"rnn.bias_{kind}_l{layer}"].numpy()) for kind in ("ih", "hh")]
        bias = self._constant(f"rnn.bias_l{layer}", np.concatenate(biases)[None])
        return [*(self._matrix(f"rnn.weight_{kind}_l{layer}") for kind in ("ih", "hh")), bias]

    def _matrix(self, name: str) -> str:
        """Add a matrix, and where it is rounded the node that restores it; return the name of the float32 one."""
        is_layer = name.startswith("rnn.")
        place = (lambda array: self._by_gate(array)[None]) if is_layer else (lambda array: array)
        if name not in self._rounded:
            return self._constant(name, place(self.checkpoint.weights[name].numpy()))
        whole, steps = self._rounded[name].whole, self._rounded[name].steps.astype(np.float32)
        inputs = [
            self._constant(f"{name}.int8", place(whole)),
            self._constant(f"{name}.step", place(steps)[0] if is_layer else steps),
        ]
        return self._node("DequantizeLinear", inputs, name, axis=1 if is_layer else 0)

    def _by_gate(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return rows (G H, ...) in ONNX's order of the gates."""
        gates = array.reshape(self.config.gates, self.config.n_hidden, *array.shape[1:])
        return np.ascontiguousarray(gates[list(_GATES[self.config.cell])]).reshape(array.shape)

    def _constant(self, name: str, array: NDArray[np.generic]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _node(self, operator: str, inputs: list[str], output: str, **attributes: int) -> str:
        node = helper.make_node(operator, inputs, [output])
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self.nodes.append(node)
        return output


def _metadata(checkpoint: Checkpoint, precision: WeightPrecision) -> dict[str, str]:
    """Return what a program needs besides the graph; every value is JSON, but `format` and `precision`."""
    vocab = checkpoint.vocab
    values: dict[str, object] = {
        "vocab": list(vocab.characters),
        "start": vocab.start,
        "normalization": vocab.normalization,
        "config": asdict(checkpoint.config),
        "fingerprint": checkpoint.fingerprint,
        "val_loss": checkpoint.val_loss,
        "val_protocol": checkpoint.val_protocol,
        "item_end": vocab.end if checkpoint.items is not None else None,
        "options": dict(checkpoint.options),
    }
    if precision == "int8":
        values["int8_error"] = asdict(int8_error(checkpoint))
    return {"format": FORMAT, "precision": precision, **{name: json.dumps(value) for name, value in values.items()}}
