"""bench.logs at a small size, and its two figures on scores that are known."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np

from bench.logs import KINDS, area_under_curve, make_log, recall
from tests.servers import ROOT


def test_the_figures_of_known_scores() -> None:
    """AUC: 1 where every anomaly is higher, 1/2 where all are equal; found: above all but a thousandth."""
    is_anomaly = np.arange(2002) >= 2000
    ordered = np.arange(2002, dtype=float)
    assert (area_under_curve(ordered, is_anomaly), recall(ordered, is_anomaly)) == (1.0, 1.0)
    equal = np.ones(2002)
    assert (area_under_curve(equal, is_anomaly), recall(equal, is_anomaly)) == (0.5, 0.0)
    half = np.concatenate([ordered[:2000], [1990.5, 5000.0]])
    assert recall(half, is_anomaly) == 0.5


def test_a_log_has_as_many_anomalies_of_each_kind() -> None:
    """A damaged line differs from the same line of the log without damage; all others are equal."""
    lines, damaged = make_log(500, 50, seed=3)
    assert sorted(damaged.values()) == sorted(list(KINDS) * 10)
    plain, _ = make_log(500, 0, seed=3)
    assert {i for i, (a, b) in enumerate(zip(lines, plain, strict=True)) if a != b} == set(damaged)


def test_a_small_run() -> None:
    """Anomalies are above usual lines, and both precisions have a rate."""
    options = ["--lines", "1500", "--anomalies", "50", "--steps", "120", "--n-hidden", "48", "--batch", "500"]
    command = [sys.executable, "-m", "bench.logs", *options]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    result = json.loads(output.splitlines()[-1])
    assert {"int8_lines_per_s", "fp32_lines_per_s", "auc", "found"} == set(result)
    assert result["auc"] > 0.8
