"""A pytest plugin: the operations of the `cpu` backend are the emulated CUDA kernels.

So every test of the CPU kernels runs the CUDA kernels and their host functions instead. Tests of
other backends are left out, and those whose subject a GPU does not share.
"""

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
import torch

PACKAGE = Path(__file__).parents[2] / "varemb"
LIBRARY = os.environ["EMULATOR_LIBRARY"]

# Parts of test names, and why these tests are left out.
LEFT_OUT = {
    **dict.fromkeys(
        (
            "refuses_an_index_outside",
            "refuses_broken_offsets",
            "refuses_a_row_without_a_matrix",
            "lookup_linear_refuses_what_does_not_fit",
            "coalesce_refuses_what_does_not_fit",
            "update_refuses_what_does_not_fit",
            "checks_its_own_contract",
        ),
        "the device finds bad numbers and has another message: test_asserts.py",
    ),
    **dict.fromkeys(
        ("refuses_moves_out_of_range", "absent_row_is_refused_before"),
        "a device assert may come after others have written",
    ),
    "past_2_to_31": "takes gigabytes and minutes",
    "number_of_threads": "blocks run one after another",
    "other_instruction_sets": "about the CPU libraries",
    "opcheck": "about schemas and fake kernels, which the CPU's tests cover",
    "compile_fullgraph": "about tracing; calls the compiler",
}
LONGEST_RUN = 64  # lookups of one row that are added in one go (kWindow)


def _load_library(name: str, why_not_built: str | None) -> str | None:
    if not name.startswith("_C_cpu"):
        return "the emulator stands in for the GPU"
    torch.ops.load_library(LIBRARY)
    return None


# varemb loads its kernels when it is imported: the loader must be another one before.
_spec = importlib.util.spec_from_file_location("varemb._native", PACKAGE / "_native.py")
_native = importlib.util.module_from_spec(_spec)
sys.modules["varemb._native"] = _native
_spec.loader.exec_module(_native)
assert hasattr(_native, "_load_library")
_native._load_library = _load_library

# Triton's interpreter is slow and has its own tests.
sys.modules["triton"] = None

from ops import cases  # noqa: E402 (imports varemb)


def _sums_agree(backend: str, name: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    """A longer run is added in parts, so its sum is rounded elsewhere."""
    longest = int(cases.CASES[name].indices.bincount(minlength=1).max())
    if backend == "cpu" and longest > LONGEST_RUN:
        cases.assert_agree(got, expected)
    else:
        assert torch.equal(got, expected), f"{backend} differs from the reference in {name}"


assert hasattr(cases, "assert_sums_agree")
cases.assert_sums_agree = _sums_agree


def _is_kept(item: pytest.Item) -> bool:
    parameters = getattr(item, "callspec", None)
    backend = parameters.params.get("backend", "cpu") if parameters else "cpu"
    return backend == "cpu" and not re.search("|".join(LEFT_OUT), item.name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if not _is_kept(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if _is_kept(item)]
