"""The real data beside a checkout (`../shared/data`), for tests that count all of it."""

import os
from pathlib import Path

import pytest

REAL = Path(__file__).parents[3] / "shared" / "data"

# Only the whole folder may be missing: beside it, a data set that is not there fails.
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data in {os.fspath(REAL)}")
