"""The examples of the course are run."""

from __future__ import annotations

import doctest

from tests.servers import ROOT


def test_every_example_of_networks_md_is_right() -> None:
    """Every example of docs/course/networks.md gives the result that it shows, and none is lost by a change."""
    results = doctest.testfile(str(ROOT / "docs" / "course" / "networks.md"), module_relative=False)
    assert results.failed == 0
    assert results.attempted >= 40
