"""A table of a billion rows of 6 numbers on average: what it takes, and a training step."""

from __future__ import annotations

import math
import resource
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Batch
from benchmarks.gpu import timing
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
_ROWS_AT_A_TIME = 1 << 24
_STATE_BYTES = 4  # row-wise Adagrad's, a row


def multiplier_of(rows: int) -> int:
    """A number without common divisor with N: rank * multiplier mod N then reaches every row."""
    candidate = max(1, round(rows * 0.618))
    while math.gcd(candidate, rows) != 1:
        candidate += 1
    return candidate


def make_dims(rows: int, device: torch.device) -> Tensor:  # [N], uint8, on the host
    """Dims by popularity, popular rows anywhere in the table; made in slices."""
    inverse = pow(multiplier_of(rows), -1, rows)
    bounds, total = [], 0.0
    for share, _ in DIMS[:-1]:
        total += share
        bounds.append(round(total * rows))
    limits = torch.tensor(bounds, device=device)
    sizes = torch.tensor([dim for _, dim in DIMS], dtype=torch.uint8, device=device)
    out = torch.empty(rows, dtype=torch.uint8)
    for first in range(0, rows, _ROWS_AT_A_TIME):
        stop = min(rows, first + _ROWS_AT_A_TIME)
        row = torch.arange(first, stop, device=device)
        rank = row * inverse % rows  # below 2^60 while N is below 2^30
        out[first:stop] = sizes[torch.bucketize(rank, limits, right=True)].cpu()
    return out


def make_batches(rows: int, bags: int, count: int, device: torch.device) -> list[Batch]:
    """Fresh lookups whose ranks follow 1 / rank^s, drawn from the continuous law."""
    generator = torch.Generator(device).manual_seed(0)
    offsets = torch.arange(0, bags * POOLING + 1, POOLING, device=device)  # [G + 1]
    power = 1 - ZIPF
    out = []
    for _ in range(count):
        draws = torch.rand(
            bags * POOLING, dtype=torch.float64, device=device, generator=generator
        )  # [L]
        ranks = ((rows**power - 1) * draws + 1).pow(1 / power).long() - 1
        indices = ranks.clamp_(0, rows - 1) * multiplier_of(rows) % rows
        out.append(Batch(indices, offsets))
    return out


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
    storage = PackedStorage(make_dims(rows, device), WIDTH, device=device, dtype=dtype)
    with torch.no_grad():
        storage.weight.normal_(std=0.01)
    optimizer = RowWiseAdagrad([storage.weight])
    timing.clock_of(device).finish()
    built, allocated = time.perf_counter() - begin, _allocated(device) - before
    batches = make_batches(rows, bags, rounds + 2, device)
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
