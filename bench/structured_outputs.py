"""What structured outputs cost: the native stepper with a different pattern in every row beside the same without any.

    python -m bench.structured_outputs [--models 2x512] [--rows 1,64] [--rounds 7]

Both are timed in turn, round after round; the ratio is the median over the rounds. The patterns have no end, so every
step of every row is masked. Beside them, where they are installed (bench/requirements.txt), the masks alone of
outlines-core and llguidance, computed and applied in Python for as many characters, without any network. Then how long
compiling takes. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bench.decode import block_of
from model.config import WEIGHT_PRECISIONS, ModelConfig
from model.errors import StructuredOutputError
from model.network.char_rnn import CharRNN
from model.stepper.cpu import CpuStepper
from model.structured_outputs.automaton import Automaton
from model.structured_outputs.masks import Constraints, RowConstraint
from model.structured_outputs.specification import StructuredOutputs
from model.text.vocab import Vocabulary

VOCAB = Vocabulary("\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
BUDGET = 1_000_000
STEPS = 64  # of a block: those of the engine have so many, or more
BLOCKS_PER_ROUND = 4
COMPILED = {
    "date": ("regex", "[0-9A-Z]{4}-[0-3]{2}-[0-9]{2}|[a-z]{4}"),
    "words": ("regex", r"[A-Z][a-z]{1,20}( [a-z]{1,20}){0,30}[.!?]"),
    "1,000 choices": ("choice", [f"{a}{b}{c}" for a in "abcdefghij" for b in "klmnopqrst" for c in "uvwxyzABCD"]),
    "exponential": ("regex", "(a|b)*a(a|b){18}"),
    "huge repeats": ("regex", "(a{1,1000}){1,1000}"),
    "optional parts": ("regex", "(?:.?){5000}"),
}


def pattern(row: int) -> str:
    """An expression without an end, another one for each row."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    low = row % 13
    return f"(?:[{letters[low]}-{letters[low + 12]}]{{1,{2 + row % 9}}}[ ,;]|[A-Z][a-z]{{{1 + row // 9}}}[.!?]\\n)+"


def seconds_of(turn: Callable[[], object]) -> float:
    """The time of a round."""
    started = time.perf_counter()
    for _ in range(BLOCKS_PER_ROUND):
        turn()
    return time.perf_counter() - started


def stepper_ratios(network: CharRNN, rows: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Characters per second with and without masks, for each precision."""
    automata = [compiled("regex", pattern(row)) for row in range(rows)]
    for precision in WEIGHT_PRECISIONS:
        stepper = CpuStepper(network, rows, precision)
        plain = block_of(rows, STEPS, len(VOCAB))

        def constrained(stepper: CpuStepper = stepper, plain: Any = plain) -> None:
            rows_of_block = [RowConstraint(automaton, 0, BUDGET) for automaton in automata]
            result = stepper.run(replace(plain, constraints=Constraints.of(rows_of_block)))
            assert result.constraints is not None
            assert (result.steps == STEPS).all()

        def unconstrained(stepper: CpuStepper = stepper, plain: Any = plain) -> None:
            stepper.run(plain)

        times: list[tuple[float, float]] = []
        for _ in range(rounds + 1):
            times.append((seconds_of(unconstrained), seconds_of(constrained)))
        times = times[1:]  # the first one warms up
        chars = rows * STEPS * BLOCKS_PER_ROUND
        yield {
            "rows": rows,
            "stepper": stepper.name,
            "unconstrained": round(chars / min(a for a, _ in times)),
            "constrained": round(chars / min(b for _, b in times)),
            "ratio": round(statistics.median(a / b for a, b in times), 3),
        }
        stepper.close()


def compiled(kind: str, value: Any) -> Automaton:
    """Compile a specification."""
    return StructuredOutputs(kind, value).compile(VOCAB)  # type: ignore[arg-type]


def outlines_turn(rows: int) -> Callable[[], object]:
    """Masks of outlines-core: the allowed tokens of each row, written to a mask, and the next state.

    Raises:
        ImportError: It is not installed.
    """
    from outlines_core import Guide, Index  # type: ignore[import, unused-ignore]
    from outlines_core import Vocabulary as Tokens

    tokens = Tokens(len(VOCAB), {c: [i] for i, c in enumerate(VOCAB.characters)})
    guides = [Guide(Index(pattern(row) + r"\z", tokens)) for row in range(rows)]
    logits = torch.randn(rows, len(VOCAB) + 1)

    def turn() -> None:
        for _ in range(STEPS):
            mask = torch.full_like(logits, -torch.inf)
            for row, guide in enumerate(guides):
                mask[row, guide.get_tokens()] = 0.0
            ids = (logits + mask)[:, : len(VOCAB)].argmax(dim=1).tolist()
            for id, guide in zip(ids, guides, strict=True):
                guide.advance(id, return_tokens=False)

    return turn


def llguidance_turn(rows: int) -> Callable[[], object]:
    """Masks of llguidance: a bit mask of each row, and the next state.

    Raises:
        ImportError: It is not installed.
    """
    import llguidance.numpy as masks  # type: ignore[import, unused-ignore]
    from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper  # type: ignore[import, unused-ignore]

    class Tokenizer:
        """One token for each character."""

        eos_token_id, bos_token_id = len(VOCAB), None
        tokens = (*(c.encode() for c in VOCAB.characters), b"<end>")
        special_token_ids = (len(VOCAB),)

        def __call__(self, text: str | bytes) -> list[int]:
            ids: list[int] = VOCAB.encode(text if isinstance(text, str) else text.decode()).tolist()
            return ids

    tokenizer = LLTokenizer(TokenizerWrapper(Tokenizer()))
    matchers = [LLMatcher(tokenizer, LLMatcher.grammar_from_regex(pattern(row))) for row in range(rows)]
    logits = np.random.default_rng(1).standard_normal((rows, tokenizer.vocab_size)).astype(np.float32)
    logits[:, len(VOCAB) :] = -100.0
    bits = masks.allocate_token_bitmask(rows, tokenizer.vocab_size)

    def turn() -> None:
        for _ in range(STEPS):
            for row, matcher in enumerate(matchers):
                masks.fill_next_token_bitmask(matcher, bits, row)
            masked = logits.copy()
            masks.apply_token_bitmask_inplace(masked, bits)
            for id, matcher in zip(masked.argmax(axis=1).tolist(), matchers, strict=True):
                matcher.consume_token(id)

    return turn


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="2x512")
    parser.add_argument("--rows", default="1,64")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    for model in args.models.split(","):
        layers, hidden = map(int, model.split("x"))
        torch.manual_seed(0)
        network = CharRNN(ModelConfig(len(VOCAB), hidden, layers, 64))
        for rows in map(int, args.rows.split(",")):
            for result in stepper_ratios(network, rows, args.rounds):
                results.append({"model": model, **result})
                print(results[-1], flush=True)
    for name, make in (("outlines-core", outlines_turn), ("llguidance", llguidance_turn)):
        for rows in map(int, args.rows.split(",")):
            try:
                turn = make(rows)
            except ImportError as e:
                print(f"{name}: {e}")
                break
            seconds = min(seconds_of(turn) for _ in range(args.rounds))
            rate = round(rows * STEPS * BLOCKS_PER_ROUND / seconds)
            results.append({"masks alone": name, "rows": rows, "constrained": rate})
            print(results[-1], flush=True)
    for name, (kind, value) in COMPILED.items():
        started = time.perf_counter()
        try:
            automaton = compiled(kind, value)
            outcome = f"{len(automaton.distances)} states, {automaton.n_bytes} bytes"
        except StructuredOutputError as e:
            outcome = f"refused: {e.expected}"
        milliseconds = round(1000 * (time.perf_counter() - started), 1)
        results.append({"compile": name, "ms": milliseconds, "outcome": outcome})
        print(results[-1], flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
