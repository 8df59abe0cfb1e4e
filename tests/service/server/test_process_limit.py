"""Too few threads for the settings end the start, not the streams."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.server.process_limit import check_limit, needed_threads
from service.settings import Settings, SettingsError


def test_too_small_a_limit_ends_the_start(tmp_path: Path) -> None:
    """The message names the settings, the need and the limit; without a limit, or a large one, nothing is said."""
    settings, file = Settings.model_validate({"slots": 100, "workers": 3}), tmp_path / "pids.max"
    check_limit(settings, file)
    for enough in ("max\n", "100000\n"):
        file.write_text(enough)
        check_limit(settings, file)
    file.write_text("400\n")
    with pytest.raises(SettingsError, match=r"SLOTS=100, .*WORKERS=3: need up to \d+ threads.* 400;"):
        check_limit(settings, file)
    assert needed_threads(settings, cores=2) > 3 * (100 + 64)
