"""A pytest plugin: the tests load the native library whose path is in NATIVE_LIBRARY, in place of the built one.

NATIVE_LIBRARY=path python -m pytest -p tests.model.native.other_library ...
"""

from __future__ import annotations

import os
from pathlib import Path

from model.native import library

library.library_path = lambda: Path(os.environ["NATIVE_LIBRARY"])  # type: ignore[assignment]
