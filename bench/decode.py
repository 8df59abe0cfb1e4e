"""Characters per second of the steppers, beside other implementations of the same network and the machine's limits.

    python -m bench.decode [--models 2x512] [--rows 1,64] [--rounds 7] [--picture decode.svg]

Other implementations: the loop of most courses (nn.LSTM, one step, multinomial), the same over nn.LSTMCell, and ONNX
Runtime (bench/requirements.txt), once with sampling in numpy and once, "onnx step", without any; "onnx int8" is its
dynamic quantization, without sampling. All are timed in turn, round after round, and the best round of each counts: on
a machine that also does other work, that is what repeats.

Limits: "reading" and "reading i8" are the measured speed of reading as many bytes as the weights have; "fma peak",
"dot peak" (int8, vpdpbusd) and "tile peak" (int8, AMX) are the multiply-adds per second of registers alone, "sgemm"
those of torch's matrix product. The last line is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.config import ModelConfig, WeightPrecision
from model.native.build import BuildError, compile_to, compilers
from model.network.char_rnn import CharRNN
from model.network.sampling import SamplingParams, as_batch
from model.stepper import SAMPLE, Block, Stepper
from model.stepper.cpu import CpuStepper, Unsupported, available_cores
from model.stepper.reference import ReferenceStepper

VOCAB, EMBED = 65, 64
ROUND_S = 0.15
STEPS = 16  # of a block, and of a turn of another implementation

Result = dict[str, Any]
Turn = Callable[[], object]
"""A function that advances every row by STEPS characters."""


def block_of(rows: int, steps: int = STEPS, vocab_size: int = VOCAB) -> Block:
    """A block of new texts, sampled at temperature 1 without filters."""
    forced_ids = np.full((steps, rows), SAMPLE, np.int32)
    forced_ids[0] = np.arange(rows) % vocab_size
    return Block(
        slots=np.arange(rows, dtype=np.int32),
        steps=np.full(rows, steps, np.int32),
        forced_ids=forced_ids,
        random_values=np.random.default_rng(1).random((steps, rows)),
        sampling=as_batch([SamplingParams()] * rows),
    )


def stepper_turn(stepper: Stepper, rows: int) -> Turn:
    """One block of a stepper."""
    block = block_of(rows)
    return lambda: stepper.run(block)


def course_loop_turn(network: CharRNN, rows: int) -> Turn:
    """The loop of most courses: nn.LSTM, a step at a time."""

    def turn() -> None:
        ids, state = torch.arange(rows)[:, None] % VOCAB, network.zero_state(rows)
        with torch.inference_mode():
            for _ in range(STEPS):
                logits, state = network(ids, state)
                ids = torch.multinomial(torch.softmax(logits[:, -1], dim=-1), 1)

    return turn


def lstm_cell_turn(network: CharRNN, rows: int) -> Turn:
    """The same loop over nn.LSTMCell."""
    config = network.config
    cells = []
    for layer in range(config.n_layers):
        cell = torch.nn.LSTMCell(config.n_embed if layer == 0 else config.n_hidden, config.n_hidden)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, name).data.copy_(getattr(network.rnn, f"{name}_l{layer}"))
        cells.append(cell)

    def turn() -> None:
        ids = torch.arange(rows) % VOCAB
        states = [(torch.zeros(rows, config.n_hidden), torch.zeros(rows, config.n_hidden)) for _ in cells]
        with torch.inference_mode():
            for _ in range(STEPS):
                x = network.embedding(ids)
                for i, cell in enumerate(cells):
                    states[i] = cell(x, states[i])
                    x = states[i][0]
                ids = torch.multinomial(torch.softmax(network.head(x), dim=-1), 1)[:, 0]

    return turn


def onnx_turn(network: CharRNN, rows: int, threads: int, *, sampled: bool, int8: bool = False) -> Turn:
    """The same loop over ONNX Runtime, with or without sampling, with or without dynamic quantization.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
    """
    import onnxruntime  # type: ignore[import, unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    graph = onnx_step(network, rows)
    graph = _quantized(graph) if int8 else graph
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    layers, hidden = network.config.n_layers, network.config.n_hidden
    chance = np.random.default_rng(1)

    def turn() -> None:
        ids = (np.arange(rows) % VOCAB)[None]
        state = [np.zeros((1, rows, hidden), np.float32) for _ in range(2 * layers)]
        for _ in range(STEPS):
            feeds = {"ids": ids, **{f"{n}{i}": state[2 * i + j] for i in range(layers) for j, n in enumerate("hc")}}
            logits, *state = session.run(None, feeds)
            if sampled:
                weights = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)
                ids = (weights < chance.random((rows, 1)) * weights[:, -1:]).sum(axis=1)[None]

    return turn


def _quantized(graph: bytes) -> bytes:
    """Apply ONNX Runtime's dynamic quantization: int8 weights, activations quantized at each step."""
    import onnx  # type: ignore[import, unused-ignore]
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import, unused-ignore]

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantize_dynamic(onnx.load_model_from_string(graph), target, weight_type=QuantType.QInt8)
        return target.read_bytes()


def onnx_step(network: CharRNN, rows: int) -> bytes:
    """One step as an ONNX graph. Its LSTM operator has the gates in the order i, o, f, c."""
    import onnx  # type: ignore[import, unused-ignore]
    from onnx import TensorProto, helper, numpy_helper

    config = network.config
    layers, hidden = config.n_layers, config.n_hidden
    weights = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}

    def iofc(array: Any) -> Any:
        i, f, g, o = np.split(array, 4)
        return np.concatenate([i, o, f, g])

    names = {"embedding": "embedding.weight", "head_w": "head.weight", "head_b": "head.bias"}
    constants = {short: weights[name] for short, name in names.items()}
    nodes = [helper.make_node("Gather", ["embedding", "ids"], ["x0"])]
    for n in range(layers):
        constants[f"w{n}"] = iofc(weights[f"rnn.weight_ih_l{n}"])[None]
        constants[f"r{n}"] = iofc(weights[f"rnn.weight_hh_l{n}"])[None]
        bias = [iofc(weights[f"rnn.bias_{which}_l{n}"]) for which in ("ih", "hh")]
        constants[f"b{n}"] = np.concatenate(bias)[None]
        inputs = [f"x{n}", f"w{n}", f"r{n}", f"b{n}", "", f"h{n}", f"c{n}"]
        nodes.append(helper.make_node("LSTM", inputs, [f"y{n}", f"new_h{n}", f"new_c{n}"], hidden_size=hidden))
        nodes.append(helper.make_node("Squeeze", [f"y{n}", "axis"], [f"x{n + 1}"]))
    constants["axis"] = np.array([1])
    nodes.append(helper.make_node("Squeeze", [f"x{layers}", "first"], ["top"]))
    constants["first"] = np.array([0])
    nodes.append(helper.make_node("Gemm", ["top", "head_w", "head_b"], ["logits"], transB=1))
    shape = (1, rows, hidden)
    states = [f"{n}{i}" for i in range(layers) for n in "hc"]
    graph = helper.make_graph(
        nodes,
        "step",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, (1, rows))]
        + [helper.make_tensor_value_info(s, TensorProto.FLOAT, shape) for s in states],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (rows, VOCAB))]
        + [helper.make_tensor_value_info(f"new_{s}", TensorProto.FLOAT, shape) for s in states],
        [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in constants.items()],
    )
    step = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(step)
    return bytes(step.SerializeToString())


class Machine:
    """The limits of the machine, measured with as many threads as the steppers use."""

    def __init__(self, threads: int) -> None:
        """Compile limits.c.

        Raises:
            BuildError: There is no compiler.
        """
        self.threads = threads
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "limits.so"
            flags = ("-O3", "-fPIC", "-shared", "-march=native", "-ffp-contract=fast")
            compile_to(target, (compilers() or [["cc"]])[0], flags, Path(__file__).with_name("limits.c"))
            library = ctypes.CDLL(str(target))
        self._read, self._multiply = library.read_all, library.multiply_all
        self._dot, self._tile = library.dot_all, library.tile_all
        self._read.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int]
        for products in (self._multiply, self._dot, self._tile):
            products.argtypes, products.restype = [ctypes.c_long], ctypes.c_double

    def bytes_per_s(self, size: int) -> float:
        """Read `size` bytes, a part per thread, again and again for about 20 ms; the best of four access patterns."""
        part = max(4096, size // self.threads)
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory gets no huge pages
        size_mapped = (part + 2**21 - 1) // 2**21 * 2**21
        buffers = [mmap.mmap(-1, size_mapped, flags=private) for _ in range(self.threads)]
        for buffer in buffers:
            if hasattr(mmap, "MADV_HUGEPAGE"):
                buffer.madvise(mmap.MADV_HUGEPAGE)
        arrays = [np.frombuffer(b, np.uint64) for b in buffers]
        for array in arrays:
            array[:] = 1
        times = max(1, int(0.02 * 40e9 / part))
        seconds = min(
            self._together(lambda i: self._read(arrays[i].ctypes.data, part // 8, times, streams))  # noqa: B023
            for streams in (1, 2, 4, 8)
        )
        return part * self.threads * times / seconds

    def products_per_s(self) -> float:
        """Multiply-adds of floats per second in registers."""
        return self._in_registers(self._multiply)

    def dot_products_per_s(self) -> float:
        """Multiply-adds of int8 per second in registers; 0 where the CPU has no instruction for them."""
        return self._in_registers(self._dot)

    def tile_products_per_s(self) -> float:
        """Multiply-adds of int8 per second by tiles; 0 where the CPU has none."""
        return self._in_registers(self._tile, 100_000)

    def _in_registers(self, products: Callable[[int], float], times: int = 5_000_000) -> float:
        done: list[float] = []
        seconds = self._together(lambda _: done.append(products(times)))
        return sum(done) / seconds

    def _together(self, work: Callable[[int], object]) -> float:
        """Run work(i) on every thread, and return the seconds that it took."""
        workers = [threading.Thread(target=work, args=(i,)) for i in range(self.threads)]
        start = time.perf_counter()
        for w in workers:
            w.start()
        for w in workers:
            w.join()
        return time.perf_counter() - start


def sgemm_products_per_s() -> float:
    """Multiply-adds per second of torch's matrix product."""
    a, b = torch.randn(512, 512), torch.randn(512, 2048)
    start = time.perf_counter()
    for _ in range(6):
        a @ b
    return 6 * 512 * 512 * 2048 / (time.perf_counter() - start)


def measure(name: str, rows: int, rounds: int, threads: int, machine: Machine | None, notes: set[str]) -> Result:
    """Time every implementation of one network at one batch size; what is missing goes to `notes`."""
    layers, hidden = (int(n) for n in name.split("x"))
    torch.manual_seed(1)
    network = CharRNN(ModelConfig(VOCAB, hidden, layers, EMBED)).eval()
    turns: dict[str, Turn] = {}
    steppers = []
    precisions: tuple[WeightPrecision, ...] = ("fp32", "int8")
    for precision in precisions:
        try:
            steppers.append(CpuStepper(network, rows, precision, threads))
            turns[precision] = stepper_turn(steppers[-1], rows)
            notes.add(f"native: instruction set {steppers[-1].instruction_set}")
        except Unsupported as reason:
            notes.add(f"native: {reason}")
    turns["reference"] = stepper_turn(ReferenceStepper(network, rows), rows)
    turns["nn.LSTM"] = course_loop_turn(network, rows)
    turns["LSTMCell"] = lstm_cell_turn(network, rows)
    try:
        turns["onnx"] = onnx_turn(network, rows, threads, sampled=True)
        turns["onnx step"] = onnx_turn(network, rows, threads, sampled=False)
        turns["onnx int8"] = onnx_turn(network, rows, threads, sampled=False, int8=True)
    except ImportError:
        notes.add("onnx: pip install -r bench/requirements.txt")

    products = 4 * hidden * hidden * (2 * layers - 1) + hidden * VOCAB  # per character; the embedding is a table
    best: dict[str, float] = dict.fromkeys(turns, 0.0)
    read = read_int8 = peak = dot_peak = tile_peak = sgemm = 0.0
    for _ in range(rounds):
        for key, turn in turns.items():
            turn()
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < ROUND_S / 3:
                start = time.perf_counter()
                turn()
                best[key] = max(best[key], STEPS * rows / (time.perf_counter() - start))
                count += 1
        if machine:
            read = max(read, machine.bytes_per_s(products * 4))
            read_int8 = max(read_int8, machine.bytes_per_s(products))
            peak = max(peak, machine.products_per_s())
            dot_peak = max(dot_peak, machine.dot_products_per_s())
            tile_peak = max(tile_peak, machine.tile_products_per_s())
        sgemm = max(sgemm, sgemm_products_per_s())
    for stepper in steppers:
        stepper.close()
    limits = {
        "reading": read / (products * 4) * rows,
        "reading i8": read_int8 / products * rows,
        "fma peak": peak / products,
        "dot peak": dot_peak / products,
        "tile peak": tile_peak / products,
        "sgemm": sgemm / products,
    }
    return {"model": name, "rows": rows, "chars_per_s": best, "limits": limits}


def table(results: list[Result]) -> str:
    """The results as a text table."""
    names = list(dict.fromkeys(key for r in results for key in (*r["chars_per_s"], *r["limits"])))
    lines = [
        "characters a second",
        "model  rows " + "".join(f"{n:>12}" for n in names) + "   fp32/onnx  int8/onnx int8",
    ]
    for r in results:
        values = {**r["chars_per_s"], **r["limits"]}
        cells = "".join(f"{values[n]:12,.0f}" if values.get(n) else f"{'-':>12}" for n in names)
        peers = {"fp32": "onnx", "int8": "onnx int8"}
        ratios = [values[n] / values[peer] if n in values and peer in values else 0.0 for n, peer in peers.items()]
        lines.append(f"{r['model']:6} {r['rows']:4} {cells}{ratios[0]:10.2f}x {ratios[1]:14.2f}x")
    return "\n".join(lines)


def picture(results: list[Result], target: Path) -> None:
    """Draw the results, as SVG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib  # type: ignore[import, unused-ignore]

    matplotlib.use("svg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(r["model"] for r in results))
    _, axes = pyplot.subplots(1, len(models), figsize=(5 * len(models), 4), squeeze=False)
    for axis, name in zip(axes[0], models, strict=True):
        of_model = [r for r in results if r["model"] == name]
        for key in of_model[0]["chars_per_s"]:
            axis.plot([r["rows"] for r in of_model], [r["chars_per_s"][key] for r in of_model], marker="o", label=key)
        least = [min(r["limits"]["reading"], r["limits"]["fma peak"]) for r in of_model]
        axis.plot([r["rows"] for r in of_model], least, "k:", label="fp32 limit")
        axis.set(title=name, xscale="log", yscale="log", xlabel="rows", ylabel="characters / s")
    axes[0][0].legend(fontsize=7)
    pyplot.tight_layout()
    pyplot.savefig(target)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="1x256,2x512,3x1024", help="layers x hidden units, with commas")
    parser.add_argument("--rows", default="1,4,16,64,256")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--picture", type=Path, help="an .svg; needs matplotlib")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    notes: set[str] = set()
    try:
        machine: Machine | None = Machine(options.threads)
    except BuildError as reason:
        machine = None
        notes.add(f"limits: {reason}")
    results = []
    for name in options.models.split(","):
        for rows in options.rows.split(","):
            results.append(measure(name, int(rows), options.rounds, options.threads, machine, notes))
            print(f"{name} {rows} done", file=sys.stderr)
    print(table(results))
    for note in sorted(notes):
        print("note:", note)
    if options.picture:
        picture(results, options.picture)
    print(json.dumps({"threads": options.threads, "results": results}))


if __name__ == "__main__":
    main()
