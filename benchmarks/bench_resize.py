"""`python -m benchmarks.bench_resize`: rows of a large table change their dims, with Adam's state.

A resizable table changes some rows of many; users of fixed tables rebuild the table. Tables of all
sizes are changed in turns, so that other load on the machine meets them alike. Memory is the most
that the process had in a call beyond what it had before and has after it (Linux).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
import torch

import varemb
from benchmarks.cases import DIMS, ranked_dims
from benchmarks.timing import forget_peak, resident_bytes
from varemb.ops import repack
from varemb.storage import PackedStorage

Call = Callable[[], object]


class Changing:
    """A resizable table with Adam's state, and rows to change."""

    def __init__(self, rows: int, width: int, law: str, changed: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pool = ranked_dims(law, 1 << 16, width, generator)
        self.generator = np.random.default_rng(0)
        self.changed = changed
        dims = self.pool[torch.randint(0, len(self.pool), (rows,), generator=generator)]
        self.table = varemb.VarEmbedding(rows, width, dims=dims, resizable=True)
        self.optimizer = varemb.optim.Adam([self.table.weight])

    def plan(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Distinct random rows, and dims by the table's own law, so that it stays as large."""
        present = self.table.num_present
        rows = np.unique(self.generator.integers(0, present, 2 * self.changed))
        rows = self.generator.permutation(rows)[: self.changed]
        dims = self.pool[self.generator.integers(0, len(self.pool), len(rows))]
        return torch.from_numpy(rows), dims.long()

    def describe(self) -> str:
        report = varemb.memory_report(self.table, self.optimizer).tables[0]
        return (
            f"{report.num_rows:>11,} rows, {report.params / report.num_rows:.1f} wide: index "
            f"{report.bytes['index'] / report.num_rows:.3f} bytes a row, allocated / live "
            f"{self.table.fragmentation:.3f}"
        )


def timed(call: Call) -> tuple[float, float]:
    """Milliseconds of a call, and the most memory that it took, in MiB (NaN if untold)."""
    try:
        before = resident_bytes("VmRSS")
        forget_peak()
    except OSError:
        before = None
    start = time.perf_counter()
    call()
    milliseconds = 1e3 * (time.perf_counter() - start)
    if before is None:
        return milliseconds, float("nan")
    most = resident_bytes("VmHWM") - max(before, resident_bytes("VmRSS"))
    return milliseconds, most / 2**20


def measure(tables: list[Changing], rounds: int) -> None:
    """Prints what changes of a few rows take, then growth of a full buffer and compaction."""
    for changing in tables:
        print(changing.describe())
        report("the first change, for which the full buffer grows", [timed(_resize(changing))])
    calls: dict[str, Callable[[Changing], Call]] = {
        'resize, init="zeros"': _resize,
        'resize, init="normal"': lambda changing: _resize(changing, "normal"),
        "remove, then extend": _replace,
    }
    for name, make in calls.items():
        found: list[list[tuple[float, float]]] = [[] for _ in tables]
        for turn in range(rounds + 10):
            for changing, results in zip(tables, found, strict=True):
                call = make(changing)
                if turn >= 10:
                    results.append(timed(call))
        for changing, results in zip(tables, found, strict=True):
            report(f"{changing.table.num_present:>11,} rows: {name}", results)
    for changing in tables:
        changing.table.remove(torch.arange(0, changing.table.num_present, 4))
        print(changing.describe())
        report("compact, after a fourth of the rows was removed", [timed(changing.table.compact)])
        print(changing.describe())


def _resize(changing: Changing, init: str = "zeros") -> Call:
    rows, dims = changing.plan()
    return lambda: changing.table.resize(rows, dims, init)


def _replace(changing: Changing) -> Call:
    rows, dims = changing.plan()

    def call() -> None:
        changing.table.remove(rows)
        changing.table.extend(len(rows), dims)

    return call


def rebuild(rows: int, width: int, law: str, changed: int) -> None:
    """Prints what it takes to make a packed table and Adam's state anew for a few other dims."""
    generator = torch.Generator().manual_seed(0)
    pool = ranked_dims(law, 1 << 16, width, generator)
    dims = pool[torch.randint(0, len(pool), (rows,), generator=generator)]
    old = PackedStorage(dims, width)
    tensors = [old.weight.detach(), *(torch.zeros(old.numbers) for _ in range(2))]
    dims[torch.randperm(rows, generator=generator)[:changed]] = width

    def call() -> None:
        new = PackedStorage(dims, width)
        tensors[:] = repack(tensors, old.rows, new.rows)
        old.weight.data = tensors[0]

    report(f"{rows:>11,} rows: a packed table made anew (repack)", [timed(call)])


def report(name: str, results: list[tuple[float, float]]) -> None:
    """Prints percentiles of the time, and the most memory of any call."""
    low, median, high, last = np.percentile([time for time, _ in results], [20, 50, 80, 99])
    most = max(memory for _, memory in results)
    print(
        f"  {name:<55}{median:>10.3f} ms  [{low:.3f}, {high:.3f}; 99 %: {last:.3f}]"
        f"  {most:>8.1f} MiB"
    )


def main() -> None:
    """Measures tables that change, then tables made anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dims", choices=DIMS, default="mean22", help="law of the rows' dims")
    parser.add_argument("--changed", type=int, default=512, help="rows that change in a call")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{os.cpu_count()} cores, {options.threads} threads, load {os.getloadavg()[0]:.1f}")
    shape = (options.width, options.dims, options.changed)
    measure([Changing(rows, *shape) for rows in options.rows], options.rounds)
    for rows in options.rows:
        rebuild(rows, *shape)


if __name__ == "__main__":
    main()
