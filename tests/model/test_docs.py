"""What the documents show is what happens."""

from __future__ import annotations

import doctest

from tests.servers import ROOT


def test_every_shape_in_networks_md_is_right() -> None:
    """Each example of docs/networks.md is run, and there are as many as there should be."""
    found = doctest.testfile(str(ROOT / "docs" / "networks.md"), module_relative=False)
    assert found.failed == 0
    assert found.attempted >= 40
