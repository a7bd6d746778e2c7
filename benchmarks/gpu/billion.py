"""A table of a billion rows of 6 numbers on average: what it takes, and a training step."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Batch
from benchmarks.gpu import timing
from benchmarks.large import make_batches, make_dims
from benchmarks.peers import Lookup, step_runner
from benchmarks.timing import summarize
from varemb.ops import lookup_bag
from varemb.optim import RowWiseAdagrad
from varemb.storage import PackedStorage

WIDTH = 128
ZIPF = 1.05
BAGS, POOLING = 65_536, 20
# Share of the rows, the most popular first, and their dim: 5.98 on average.
DIMS = ((0.005, 128), (0.025, 32), (0.10, 16), (0.20, 8), (0.67, 2))
_STATE_BYTES = 4  # row-wise Adagrad's, a row


def measure_billion(
    rows: int,
    dtype: torch.dtype,
    device: torch.device,
    backend: str,
    *,
    bags: int = BAGS,
    rounds: int = 10,
) -> dict[str, Any]:
    """Memory and a step's time of one table trained with row-wise Adagrad inside backward.

    Returns: allocated bytes as torch counts them (0 on the CPU, where it does not), the sum of what
    the table must hold, the arithmetic of a table of full width, milliseconds of a step.
    """
    before = _allocated(device)
    begin = time.perf_counter()
    storage = PackedStorage(make_dims(rows, DIMS, device), WIDTH, device=device, dtype=dtype)
    with torch.no_grad():
        storage.weight.normal_(std=0.01)
    optimizer = RowWiseAdagrad([storage.weight])
    timing.clock_of(device).finish()
    built, allocated = time.perf_counter() - begin, _allocated(device) - before
    batches = make_batches(rows, ZIPF, bags, POOLING, rounds + 2, device)
    generator = torch.Generator(device).manual_seed(1)
    grad = torch.randn(bags, WIDTH, device=device, generator=generator).to(dtype)

    def call(batch: Batch) -> Tensor:
        return lookup_bag(
            storage.weight, storage.rows, batch.indices, batch.offsets, mode="sum",
            include_last_offset=True, fused=storage.fused, backend=backend,
        )  # fmt: skip

    runner = step_runner(Lookup(call, lambda: []), [optimizer], grad)
    (cold,) = timing.measure([runner], batches, 2, device, is_cold=True)
    exact = storage.numbers * dtype.itemsize + storage.index_nbytes() + _STATE_BYTES * rows
    return {
        "rows": rows,
        "width": WIDTH,
        "mean_dim": storage.numbers / rows,
        "numbers": storage.numbers,
        "dtype": str(dtype).removeprefix("torch."),
        "backend": backend,
        "zipf": ZIPF,
        "lookups": bags * POOLING,
        "distinct_rows": batches[-1].indices.unique().numel(),
        "build_seconds": built,
        "host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "allocated_bytes": allocated,
        "exact_bytes": exact,
        "uniform_bytes": rows * (WIDTH * dtype.itemsize + _STATE_BYTES),
        "temporary_bytes": timing.temporary_bytes(runner, batches[0], device),
        "step_ms": vars(summarize(cold)),
        "stages_ms": dict(
            zip(
                [name for name, _ in runner.stages],
                (torch.from_numpy(cold).double().median(0).values / 1e6).tolist(),
                strict=True,
            )
        ),
    }


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
