"""Characters per second on an NVIDIA GPU, beside cuDNN's LSTM and this machine's CPU.

    python -m bench.decode_gpu [--model 2x512] [--rows 1,64,1024] [--rounds 5]

"cudnn" is the loop of most courses on the GPU: nn.LSTM, one step, torch.multinomial. "cudnn graph" is the same loop
with 16 steps captured as one CUDA graph, the fastest way to run it. Both sample without a seed of their own per text,
and a text depends on its batch. All are timed in turn, round after round; the median of the rounds counts. The kernels'
registers and spills are printed first. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from bench.decode import EMBED, VOCAB, block_of
from model.config import ModelConfig
from model.network.char_rnn import CharRNN
from model.stepper import Stepper
from model.stepper.cpu import CpuStepper
from model.stepper.cuda import CudaStepper, compiler
from model.stepper.cuda.driver import Gpu

STEPS, GRAPH_STEPS = 64, 16
CPU_ROWS = 64  # more are no faster on a CPU


def stepper_turn(stepper: Stepper, rows: int) -> Callable[[], object]:
    """One block of a stepper."""
    block = block_of(rows, STEPS)
    return lambda: stepper.run(block)


def cudnn_turn(network: CharRNN, rows: int, *, is_graph: bool) -> Callable[[], object]:
    """STEPS steps of nn.LSTM on the GPU, launched one by one or as graphs."""
    network = network.cuda()
    network.rnn.flatten_parameters()
    ids = torch.arange(rows, device="cuda")[:, None] % VOCAB
    state = tuple(s.cuda() for s in network.zero_state(rows))

    def steps(n: int) -> None:
        nonlocal ids, state
        for _ in range(n):
            logits, state = network(ids, state)
            ids = torch.multinomial(torch.softmax(logits[:, -1], dim=-1), 1)

    with torch.inference_mode():
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            steps(3)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        if is_graph:
            first, begin = ids, state
            with torch.cuda.graph(graph):
                steps(GRAPH_STEPS)
                first.copy_(ids)
                for old, new in zip(begin, state, strict=True):
                    old.copy_(new)

    def turn() -> None:
        with torch.inference_mode():
            if is_graph:
                for _ in range(STEPS // GRAPH_STEPS):
                    graph.replay()
            else:
                steps(STEPS)
            torch.cuda.synchronize()

    return turn


def measure(network: CharRNN, rows: int, rounds: int) -> dict[str, Any]:
    """Time every implementation at one batch size."""
    steppers: dict[str, Stepper] = {
        "fp32": CudaStepper(network, rows, "fp32"),
        "int8": CudaStepper(network, rows, "int8"),
    }
    turns = {name: (stepper_turn(stepper, rows), rows) for name, stepper in steppers.items()}
    on_cpu = min(rows, CPU_ROWS)
    turns["cpu int8"] = stepper_turn(CpuStepper(network, on_cpu, "int8"), on_cpu), on_cpu
    copies = [CharRNN(network.config) for _ in range(2)]
    for copy in copies:
        copy.load_state_dict(network.state_dict())
    turns["cudnn"] = cudnn_turn(copies[0].eval(), rows, is_graph=False), rows
    turns["cudnn graph"] = cudnn_turn(copies[1].eval(), rows, is_graph=True), rows
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds + 1):
        for name, (turn, _) in turns.items():
            began = time.perf_counter()
            turn()
            seconds[name].append(time.perf_counter() - began)
    return {"rows": rows, "chars_per_s": {n: STEPS * r / median(seconds[n][1:]) for n, (_, r) in turns.items()}}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="2x512", help="layers x hidden units")
    parser.add_argument("--rows", default="1,4,16,64,256,1024,4096")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    layers, hidden = (int(n) for n in options.model.split("x"))
    torch.manual_seed(1)
    network = CharRNN(ModelConfig(VOCAB, hidden, layers, EMBED)).eval()
    gpu = Gpu()
    _, log = compiler.compile_for(gpu.architecture)
    print(f"{gpu.name}, {gpu.architecture}, {gpu.processors} multiprocessors, driver for CUDA {gpu.driver_version}")
    print("kernel: registers, bytes spilled:", compiler.spills(log))
    gpu.close()
    results = [measure(network, int(rows), options.rounds) for rows in options.rows.split(",")]
    names = list(results[0]["chars_per_s"])
    print("characters a second\n  rows" + "".join(f"{n:>14}" for n in names))
    for r in results:
        print(f"{r['rows']:6}" + "".join(f"{r['chars_per_s'][n]:14,.0f}" for n in names), flush=True)
    print(json.dumps({"model": options.model, "results": results}))


if __name__ == "__main__":
    main()
