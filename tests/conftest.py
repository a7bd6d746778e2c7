"""What every test runs under."""

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads it when it is first imported, so before varemb is.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan() -> Iterator[None]:
    """A kernel that leaves a number unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small models, where a second thread costs more than it brings, and benchmarks, whose times do
    not matter here and whose threads would wait for each other on a busy machine."""
    before = torch.get_num_threads()
    folder, file = request.path.parent.name, request.path.stem
    is_benchmark = "benchmark" in file or file == "test_model_step"
    if folder in ("models", "search") or is_benchmark or file == "test_experiment":
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
