"""bench.items at a small size: the split is makemore's, and the figures are of its test names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.items import makemore_split
from tests.servers import ROOT


def test_both_orders_of_a_list_give_the_same_loss(tmp_path: Path) -> None:
    """Every name is in one part; the list as it is and the sorted list train the same model."""
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "ra", "los", "min", "dor")]
    train, test = makemore_split("\n".join(words))
    assert sorted([*train, *test]) == sorted(words)
    assert len(test) == 30
    path = tmp_path / "names.txt"
    path.write_text("\n".join(words))
    command = [sys.executable, "-m", "bench.items", "names", str(path), "--steps", "4"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    first, second = output.splitlines()
    assert first.partition(": ")[2] == second.partition(": ")[2]
    assert "nats per character" in first


def test_items_over_http_beside_the_engine(tmp_path: Path) -> None:
    """The rates of one round, after the items over HTTP were found to be those of the command line."""
    path = tmp_path / "names.txt"
    path.write_text(
        "\n".join(f"{a}{b}{c}{d}" for a in "bdfgkl" for b in "aeiou" for c in "mnrst" for d in ("", "a", "io"))
    )
    options = ["--steps", "10", "--items", "50", "--slots", "4", "--rounds", "1", "--bare-s", "0.2"]
    command = [sys.executable, "-m", "bench.items", "serve", str(path), *options]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    *_, result, rates = output.splitlines()
    assert result.startswith("seed 0: ")
    assert {"engine_chars_per_s", "http", "command_line"} == set(json.loads(rates))
