"""The libraries for older processors: the operations' own tests, with torch told to be modest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from varemb.ops.backend import why_not

FOLDER = Path(__file__).parent
# A width of the indices is the same to rows of any dtype.
TESTS = (
    "(cpu or agree) and not opcheck and not past_2 and not float64 and not refuses"
    " and not (int32 and float16)"
)


@pytest.mark.skipif(why_not("cpu", "cpu") is not None, reason=str(why_not("cpu", "cpu")))
@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_operations_on_other_instruction_sets(capability):
    # Only C++ kernels differ; the interpreter's tests need not run again.
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "TRITON_INTERPRET": "0"}
    shown = subprocess.run(
        [sys.executable, "-c", "import varemb; print(varemb.build_info()['cpu_capability'])"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.strip() == capability
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", TESTS, FOLDER],
        env=environment, cwd=FOLDER.parent.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout
