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
    """Small models, where a second thread costs more than it brings, benchmarks, whose times do not
    matter here and whose threads would wait for each other on a busy machine, and all tests beside
    those of another worker. Tests of threads set their number."""
    before = torch.get_num_threads()
    is_beside_others = "PYTEST_XDIST_WORKER" in os.environ
    folder, file = request.path.parent.name, request.path.stem
    is_benchmark = "benchmark" in file or file == "test_model_step"
    is_small = folder in ("models", "search") or file == "test_experiment"
    if is_beside_others or is_small or is_benchmark:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
