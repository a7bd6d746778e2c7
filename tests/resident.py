"""The memory that some code takes on its way, measured in a process of its own (Linux)."""

import subprocess
import sys

import pytest

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a peak of memory")

_SCRIPT = """
from pathlib import Path

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

{setup}
Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
before = resident("VmRSS")
{code}
print(resident("VmHWM") - before)
"""


def peak_bytes(setup: str, code: str) -> int:
    """Most resident memory while `code` runs, beyond that after `setup`."""
    script = _SCRIPT.format(setup=setup, code=code)
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True
    )
    return int(done.stdout.splitlines()[-1])
