"""The memory that some code takes on its way, measured in a process of its own (Linux)."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a peak of memory")

_SCRIPT = """
from benchmarks.timing import forget_peak, resident_bytes

{setup}
forget_peak()
before = resident_bytes("VmRSS")
{code}
print(resident_bytes("VmHWM") - before)
"""


def assert_takes_less(most: float, setup: str, code: str) -> None:
    """Raises AssertionError unless `code` takes less than `most` bytes beyond those after `setup`.

    The least of three tries counts: on a busy machine the same code now and then held 66 MB more
    for a while, and nothing but the system adds to it.
    """
    peaks: list[int] = []
    while len(peaks) < 3 and not (peaks and peaks[-1] < most):
        peaks.append(_peak_bytes(setup, code))
    assert min(peaks) < most, f"{code} took {min(peaks)} bytes at least, of {most:.0f}: {peaks}"


def _peak_bytes(setup: str, code: str) -> int:
    """Most resident memory while `code` runs, beyond that after `setup`."""
    script = _SCRIPT.format(setup=setup, code=code)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return int(done.stdout.splitlines()[-1])
