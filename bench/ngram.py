"""An n-gram of characters on a text: the simplest model that the network is to beat.

    python -m bench.ngram                     # tinyshakespeare, orders 3 to 8
    python -m bench.ngram names.txt --orders 2,3,4

The counts of all orders are interpolated by Witten and Bell's rule: the more different characters followed a context,
the more weight its shorter context has. The split is the one of `python -m model train`: the last 10% validate, and the
context is carried through them. The best order is chosen on the part that it is measured on, which favours the n-gram.

Source: Witten & Bell (1991); Bell, Cleary & Witten (1990).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from pathlib import Path

from model.evaluation.protocols import bits
from model.text.decoding import read_text
from model.text.default_text import default_text

VAL_FRACTION = 0.1


class NGram:
    """How often each character followed each context of up to `order` - 1 characters."""

    def __init__(self, text: str, order: int) -> None:
        """Count a text."""
        self.order = order
        self.n_characters = len(set(text))
        self.counts: list[defaultdict[str, dict[str, int]]] = [defaultdict(dict) for _ in range(order)]
        for i, character in enumerate(text):
            for length in range(min(order, i + 1)):
                followers = self.counts[length][text[i - length : i]]
                followers[character] = followers.get(character, 0) + 1

    def probability(self, character: str, before: str) -> float:
        """Return the probability of a character after a text."""
        p = 1 / (self.n_characters + 1)
        for length in range(min(self.order, len(before) + 1)):
            followers = self.counts[length].get(before[len(before) - length :])
            if followers is None:
                break
            different = len(followers)
            p = (followers.get(character, 0) + different * p) / (sum(followers.values()) + different)
        return p

    def loss(self, before: str, text: str) -> float:
        """Return the loss of a text that follows another one, nats per character."""
        whole = before[-self.order :] + text
        start = len(whole) - len(text)
        total = sum(
            math.log(self.probability(whole[i], whole[max(0, i - self.order + 1) : i]))
            for i in range(start, len(whole))
        )
        return -total / len(text)

    @property
    def n_counts(self) -> int:
        """The numbers that the model stores."""
        return sum(len(followers) for counts in self.counts for followers in counts.values())


def main() -> None:
    """Print the loss of each order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, nargs="?", help="a text file (default: the works of Shakespeare)")
    parser.add_argument("--orders", default="3,4,5,6,7,8")
    args = parser.parse_args()
    text = read_text(args.text)[0] if args.text else default_text()
    border = len(text) - int(len(text) * VAL_FRACTION)
    train, val = text[:border], text[border:]
    for order in map(int, args.orders.split(",")):
        began = time.perf_counter()
        model = NGram(train, order)
        counted = time.perf_counter()
        nats = model.loss(train, val)
        figures = {
            "order": order,
            "nats": round(nats, 4),
            "bits": round(bits(nats), 4),
            "counts": model.n_counts,
            "count_s": round(counted - began, 1),
            "chars_per_s": round(len(val) / (time.perf_counter() - counted)),
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
