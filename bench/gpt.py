"""nanoGPT's CPU recipe, the opponent of `bench.train race`: from a checkout of it, or by our own reimplementation.

The recipe (its README, "I only have a macbook"): 4 layers, 4 heads, 128 wide, block 64, batch 12, 2,000 iterations, no
dropout, AdamW 1e-3 decaying to 1e-4 by a cosine, warm-up of 100, betas .9 and .99, decay .1, clip 1. The
reimplementation has the same shape (pre-norm blocks, learned positions, tied head, no biases); results name it.
"""

from __future__ import annotations

import math
import pickle
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.text.corpus import Corpus

LAYERS, HEADS, WIDTH, BLOCK, BATCH, ITERATIONS = 4, 4, 128, 64, 12, 2000


@dataclass
class Curve:
    """Loss against seconds: (seconds, nats per character on the validation part by the recipe's crops of 64)."""

    name: str
    points: list[tuple[float, float]]
    seconds: float  # of training, without validations


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (p.view(b, t, HEADS, -1).transpose(1, 2) for p in self.qkv(self.before_attention(x)).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, WIDTH)
        x = x + self.out(attended)
        mlp: Tensor = x + self.down(F.gelu(self.up(self.before_mlp(x))))
        return mlp


class _GPT(nn.Module):
    def __init__(self, n_vocab: int) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(n_vocab, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.blocks = nn.Sequential(*(_Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(
                    p, std=0.02 / (math.sqrt(2 * LAYERS) if name.endswith(("out.weight", "down.weight")) else 1)
                )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.characters(ids) + self.positions.weight[: ids.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.characters.weight)


def reimplementation(corpus: Corpus, iterations: int = ITERATIONS) -> Curve:
    """Run the recipe by our reimplementation of it."""
    torch.manual_seed(1337)
    network = _GPT(len(corpus.vocab))
    matrices = [p for p in network.parameters() if p.dim() >= 2]
    rest = [p for p in network.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    draws = np.random.default_rng(1337)
    points, seconds, began = [], 0.0, time.perf_counter()
    for step in range(iterations):
        done = (step - 100) / (iterations - 100)
        lr = 1e-3 * (step + 1) / 101 if step < 100 else 1e-4 + 0.5 * (1 + math.cos(math.pi * done)) * 9e-4
        for group in optimizer.param_groups:
            group["lr"] = lr
        x, y = _crops(corpus.train, draws)
        loss = F.cross_entropy(network(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % (iterations // 8) == 0:
            seconds += time.perf_counter() - began
            points.append((seconds, _validation_loss(network, corpus)))
            began = time.perf_counter()
    return Curve("nanoGPT's CPU recipe (our reimplementation)", points, seconds)


def _crops(ids: np.ndarray, draws: np.random.Generator) -> tuple[Tensor, Tensor]:
    at = draws.integers(len(ids) - BLOCK - 1, size=BATCH)[:, None] + np.arange(BLOCK + 1)
    chunk = torch.from_numpy(ids[at].astype(np.int64))
    return chunk[:, :-1], chunk[:, 1:]


@torch.inference_mode()
def _validation_loss(network: _GPT, corpus: Corpus) -> float:
    """Return the loss of the whole validation part in crops of 64: what the recipe estimates from a sample."""
    n = (len(corpus.val) - 1) // BLOCK
    chunk = torch.from_numpy(corpus.val[: n * BLOCK + 1].astype(np.int64))
    x, y = chunk[:-1].view(n, BLOCK), chunk[1:].view(n, BLOCK)
    total = sum(
        float(F.cross_entropy(network(x[i : i + 64]).flatten(0, 1), y[i : i + 64].flatten(), reduction="sum"))
        for i in range(0, n, 64)
    )
    return total / (n * BLOCK)


def from_checkout(path: Path, corpus: Corpus) -> Curve:
    """Run the recipe by nanoGPT's own train.py, on this corpus and split.

    Raises:
        RuntimeError: train.py failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "nanoGPT"
        shutil.copytree(path, home, ignore=shutil.ignore_patterns(".git"))
        data = home / "data" / "shakespeare_char"
        data.mkdir(parents=True, exist_ok=True)
        corpus.train.astype(np.uint16).tofile(data / "train.bin")
        corpus.val.astype(np.uint16).tofile(data / "val.bin")
        characters = corpus.vocab.characters
        meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters))}
        meta["stoi"] = {c: i for i, c in enumerate(characters)}
        (data / "meta.pkl").write_bytes(pickle.dumps(meta))  # the format that it reads; nothing here loads a pickle
        shape = f"--n_layer={LAYERS} --n_head={HEADS} --n_embd={WIDTH} --block_size={BLOCK} --batch_size={BATCH}"
        run = f"--max_iters={ITERATIONS} --lr_decay_iters={ITERATIONS} --dropout=0.0 --eval_iters=20 --log_interval=1"
        command = [sys.executable, "train.py", "config/train_shakespeare_char.py", "--device=cpu", "--compile=False"]
        process = subprocess.Popen(
            [*command, *shape.split(), *run.split()], cwd=home, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        return _read(process)


def _read(process: subprocess.Popen[str]) -> Curve:
    """Parse its output: losses against steps times the median step; a step after a validation includes its time."""
    assert process.stdout is not None
    validations, steps_ms = [], []
    with process:
        lines = process.stdout.readlines()
    for line in lines:
        if evaluated := re.match(r"step (\d+): train loss [\d.]+, val loss ([\d.]+)", line):
            validations.append((int(evaluated[1]), float(evaluated[2])))
        elif stepped := re.match(r"iter \d+: loss [\d.]+, time ([\d.]+)ms", line):
            steps_ms.append(float(stepped[1]))
    if process.returncode or not validations or not steps_ms:
        raise RuntimeError(f"nanoGPT's train.py exited with {process.returncode} after {len(validations)} validations")
    step_s = statistics.median(steps_ms) / 1000
    return Curve("nanoGPT's CPU recipe", [(n * step_s, nats) for n, nats in validations], validations[-1][0] * step_s)
