"""Anomalies in a log: how many are found, and how fast lines are scored over HTTP.

    python -m bench.logs

A script makes a log as servers write it, and another day of the same log in which --anomalies lines are damaged in one
of five ways: fields in another order, a command that never occurs, an address of another network, a truncated line, a
wrong level. A model is trained on the first log for --minutes. All lines of the second one are scored over HTTP in
batches of --batch lines, --clients requests at a time, with int8 weights and with fp32 weights. The area under the ROC
curve and the share found at 0.1% false alarms are those of each statistic that /score can rank by; the ones by kind
are of the default, the most surprising character. Beside the rate is how much of the multiply-adds it would be that
the machine can do, if every character were computed; equal beginnings are not. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.decode import Machine
from model.checkpoints import registry
from model.config import ModelConfig, TrainConfig
from model.native.build import BuildError
from model.stepper.cpu import available_cores
from model.text.items.layout import ItemLayout
from model.text.items.record import DEFAULT_STATISTIC
from model.text.memory_map import read_corpora
from model.training.loop import fit
from tests.servers import Service

FALSE_ALARMS = 0.001
TRAINING = {"batch_size": 32, "lr": 6e-3, "validations": 4}
USERS = ("anna", "ben", "carla", "dora", "emil", "frida")
REQUESTS = ("GET /", "GET /orders", "POST /orders", "GET /login", "POST /login", "GET /status", "DELETE /orders")
EVENTS = (("INFO", "200"), ("INFO", "200"), ("INFO", "304"), ("WARN", "404"), ("ERROR", "500"))
Fields = tuple[str, str, str, str, str]


def usual(rng: random.Random) -> Fields:
    """Return the fields of a line: level, address, user, request, status."""
    level, status = rng.choice(EVENTS)
    address = f"10.{rng.randrange(4)}.{rng.randrange(8)}.{rng.randrange(1, 255)}"
    return level, address, rng.choice(USERS), rng.choice(REQUESTS), status


def reordered(line: Fields, rng: random.Random) -> str:
    """Two neighbouring fields have changed places."""
    place = rng.randrange(len(line) - 1)
    return " ".join([*line[:place], line[place + 1], line[place], *line[place + 2 :]])


def unseen_command(line: Fields, rng: random.Random) -> str:
    """A method that no usual line has."""
    command = rng.choice(["TRACE", "CONNECT", "PROPFIND", "PATCH"])
    return " ".join([*line[:3], f"{command} {line[3].split()[1]}", line[4]])


def odd_address(line: Fields, rng: random.Random) -> str:
    """An address of another network."""
    return " ".join([line[0], f"{rng.randrange(11, 224)}.{rng.randrange(256)}.{rng.randrange(256)}.9", *line[2:]])


def truncated(line: Fields, rng: random.Random) -> str:
    """The line ends within its request or before its status."""
    whole = " ".join(line)
    return whole[: len(whole) - rng.randrange(1, 12)].rstrip()


def wrong_level(line: Fields, rng: random.Random) -> str:
    """A level that never comes with the status."""
    return " ".join([rng.choice([level for level in ("INFO", "WARN", "ERROR") if level != line[0]]), *line[1:]])


KINDS: dict[str, Callable[[Fields, random.Random], str]] = {
    kind.__name__: kind for kind in (reordered, unseen_command, odd_address, truncated, wrong_level)
}


def make_log(n: int, n_anomalies: int, seed: int) -> tuple[list[str], dict[int, str]]:
    """Return the lines of a log, and the kind of each anomaly by the number of its line.

    Args:
        n: How many lines.
        n_anomalies: How many of them are damaged: as many of each kind, as far as possible.
        seed: Of everything.
    """
    rng = random.Random(seed)
    log = [usual(rng) for _ in range(n)]
    lines = [" ".join(fields) for fields in log]
    damaged: dict[int, str] = {}
    for number, place in enumerate(rng.sample(range(n), n_anomalies)):
        kind = list(KINDS)[number % len(KINDS)]
        damaged[place] = kind
        lines[place] = KINDS[kind](log[place], rng)
    return lines, damaged


def area_under_curve(scores: NDArray[np.float64], is_anomaly: NDArray[np.bool_]) -> float:
    """Return the probability that an anomaly has a higher score than a usual line, equal ones counted half."""
    usual_scores = np.sort(scores[~is_anomaly])
    below = np.searchsorted(usual_scores, scores[is_anomaly], "left")
    up_to = np.searchsorted(usual_scores, scores[is_anomaly], "right")
    return float(np.mean((below + up_to) / 2) / len(usual_scores))


def recall(scores: NDArray[np.float64], is_anomaly: NDArray[np.bool_]) -> float:
    """Return the share of anomalies whose score is above that of all but FALSE_ALARMS of the usual lines."""
    threshold = np.quantile(scores[~is_anomaly], 1 - FALSE_ALARMS, method="higher")
    return float(np.mean(scores[is_anomaly] > threshold))


def scored(
    service: Service, lines: Sequence[str], batch: int, clients: int
) -> tuple[dict[str, NDArray[np.float64]], float]:
    """Return each statistic of each line, infinity for one with unknown characters, and lines per second."""

    def score(start: int) -> list[dict[str, Any]]:
        body = {"text": lines[start : start + batch], "on_unknown": "skip"}
        results: list[dict[str, Any]] = service.client.post("/score", json=body).raise_for_status().json()["results"]
        return results

    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        results = [result for part in pool.map(score, range(0, len(lines), batch)) for result in part]
    rate = len(lines) / (time.monotonic() - began)
    values = {
        "bits": [result["bits"] for result in results],
        "bits_per_character": [result["bits_per_character"] for result in results],
        "peak_bits": [result["peak"]["bits"] for result in results],
    }
    return {
        name: np.array([np.inf if bits is None else bits for bits in column]) for name, column in values.items()
    }, rate


def limit(precision: str, n_hidden: int, vocab_size: int) -> float:
    """Return the characters per second whose multiply-adds the machine can do; not a number without a compiler."""
    try:
        machine = Machine(available_cores())
    except BuildError:
        return math.nan
    products = machine.dot_products_per_s() if precision == "int8" else machine.products_per_s()
    return products / (4 * n_hidden * n_hidden + n_hidden * vocab_size)


def main() -> None:
    """Train, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=200_000)
    parser.add_argument("--anomalies", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=0, help="a budget in steps instead of minutes")
    parser.add_argument("--seq-length", type=int, default=64, help="of the training; shorter than a line, it is worse")
    parser.add_argument("--n-hidden", type=int, default=256)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--batch", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--timed-lines", type=int, default=0, help="lines that fp32 scores (default: all)")
    args = parser.parse_args()
    lines, damaged = make_log(args.lines, args.anomalies, seed=2)
    is_anomaly = np.isin(np.arange(len(lines)), list(damaged))
    matches: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "usual.log").write_text("\n".join(make_log(args.lines, 0, seed=1)[0]), "utf-8")
        config = TrainConfig.from_dict(
            {**TRAINING, "seq_length": args.seq_length, "minutes": args.minutes, "steps": args.steps}
        )
        corpus = read_corpora([folder / "usual.log"], lambda _sizes, _n: config, folder, layout=ItemLayout("lines"))
        path = fit(corpus, ModelConfig(len(corpus.vocab), n_hidden=args.n_hidden), config, folder / "run")
        registry.promote(registry.register(path, folder / "checkpoints"))
        for precision in ("int8", "fp32"):
            some = lines if precision == "int8" or not args.timed_lines else lines[: args.timed_lines]
            settings = {"CHECKPOINT_DIR": str(folder / "checkpoints"), "PRECISION": precision}
            with Service(**settings, SLOTS=str(args.slots), MAX_BODY_BYTES=str(1 << 24)) as service:
                scores, rate = scored(service, some, args.batch, args.clients)
            matches[f"{precision}_lines_per_s"] = round(rate)
            characters = rate * sum(len(line) + 1 for line in some) / len(some)
            share = characters / limit(precision, args.n_hidden, len(corpus.vocab))
            print(
                f"{precision}: {rate:,.0f} lines, {characters:,.0f} characters/s, {share:.0%} of the limit", flush=True
            )
            if precision == "int8":
                for statistic, values in scores.items():
                    figures = {"auc": area_under_curve(values, is_anomaly), "found": recall(values, is_anomaly)}
                    print(f"{statistic}: AUC {figures['auc']:.4f}, found {figures['found']:.1%}", flush=True)
                    if statistic == DEFAULT_STATISTIC:
                        matches |= figures
                for kind in KINDS:
                    places = [place for place, its in damaged.items() if its == kind]
                    of_kind = ~is_anomaly
                    of_kind[places] = True
                    part = recall(scores[DEFAULT_STATISTIC][of_kind], is_anomaly[of_kind])
                    print(f"{kind}: {part:.1%} of {len(places)} at {FALSE_ALARMS:.1%} false alarms", flush=True)
    print(json.dumps(matches))


if __name__ == "__main__":
    main()
