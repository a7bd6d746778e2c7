"""`python -m benchmarks.bench_floor`: every CPU kernel alone, beside the bytes that it must move.

The kernels are called as the compiled library offers them, without modules and autograd, on the
case of the design's targets: a million rows 64 wide, 22 numbers on average, popular rows wide, 4096
bags of 20 by Zipf 1.05. All of them take turns on fresh batches. What must move is counted once per
distinct row: numbers, state, 32 bytes of index, the int64 indices, outputs and gradients. The share
is that over the time and over the bandwidth of a copy in the same run: 100 % would be a kernel that
does nothing but wait for memory. `sort, find rows` is a backward that may touch no numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import varemb
from benchmarks import timing
from benchmarks.cases import Batch, Case, Facts, Spec, bytes_per_distinct_row
from benchmarks.ours import OPTIMIZERS
from benchmarks.run import describe_environment
from varemb.files import save_json

Json = dict[str, Any]
_NO_PADDING, _SUM, _HAS_LAST = -1, 0, True
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One line.

    Attributes:
        call: runs it on a batch.
        must: bytes that memory must move.
        flops: multiplications and additions, where they and not memory decide.
    """

    name: str
    call: Callable[[Batch], Any]
    must: float
    flops: float = 0.0


def forward_kernels(case: Case, facts: Facts) -> list[Kernel]:
    """Lookups of one table, and what their backward asks of the rows."""
    spec, ops = case.spec, torch.ops.varemb
    size = spec.dtype.itemsize
    table = _table(case)
    rows, values = table.storage.rows, table.weight.detach()
    where = (rows.num_rows, rows.width, rows.granule)
    linear = varemb.VarEmbedding(
        spec.rows, spec.width, dims=case.dims, unify="linear", dtype=spec.dtype
    )
    assert linear.unify is not None
    groups = linear.unify.groups
    weight, bias = (matrix.detach() for matrix in linear.unify.matrices())
    pooled = case.full((spec.bags, spec.width), 1e-3)  # [G, D]
    projected = case.full((spec.lookups, spec.width), 1e-3)  # [L, O]
    samples = case.full((spec.lookups,), 1.0)

    def must(out_rows: int) -> float:
        return bytes_per_distinct_row(
            spec, facts, layout="jagged", out_rows=out_rows, optimizer=None
        )

    def bag(batch: Batch, weights: Tensor | None = None) -> Any:
        options = (*where, _SUM, _NO_PADDING, _HAS_LAST)
        return ops.lookup_bag(values, rows.index, *batch, weights, None, *options)

    def dots(batch: Batch) -> Any:
        options = (spec.rows, rows.granule, _NO_PADDING, _HAS_LAST)
        return ops.lookup_bag_weights_backward(pooled, values, rows.index, *batch, None, *options)

    def matrices(batch: Batch) -> tuple[Any, ...]:
        return values, rows.index, batch.indices, groups, weight, bias, *where

    products = 2 * spec.lookups * facts.access_dim * spec.width
    gradient = spec.lookups * spec.width * size
    return [
        Kernel(
            "lookup",
            lambda batch: ops.lookup(values, rows.index, batch.indices, None, *where),
            must(spec.lookups),
        ),
        Kernel("lookup_bag", bag, must(spec.bags)),
        Kernel(
            "lookup_bag, weighted",
            lambda batch: bag(batch, samples),
            must(spec.bags) + spec.lookups * size,
        ),
        Kernel("lookup_bag, weights' gradient", dots, must(spec.bags) + spec.lookups * size),
        Kernel(
            "lookup_linear",
            lambda batch: ops.lookup_linear(*matrices(batch)),
            must(spec.lookups),
            products,
        ),
        Kernel(
            "lookup_linear, gradients",
            lambda batch: ops.lookup_linear_backward(projected, *matrices(batch)),
            must(spec.lookups) + gradient,
            2 * products,
        ),
    ]


def backward_kernels(case: Case, facts: Facts) -> list[Kernel]:
    """Sums of gradients of pooled lookups, stored or applied at once."""
    spec, ops = case.spec, torch.ops.varemb
    grad = case.full((spec.bags, spec.width), 1e-3)  # [G, D]
    nothing = torch.zeros(1, dtype=torch.int32)  # a limit of 0 numbers
    size = spec.dtype.itemsize
    numbers = facts.distinct_rows * facts.distinct_dim
    index = 32 * facts.distinct_rows + 8 * spec.lookups
    entering = index + spec.bags * spec.width * size
    plain = _table(case)
    first = plain.storage.rows

    def looked_up(rows: Any, batch: Batch, limit: Tensor | None = None) -> tuple[Any, ...]:
        options = (rows.num_rows, rows.granule, _SUM, _NO_PADDING, _HAS_LAST)
        return grad, rows.index, *batch, None, limit, None, *options

    kernels = [
        Kernel(
            "coalesce",
            lambda batch: ops.coalesce(*looked_up(first, batch), first.numbers),
            entering + numbers * (size + 8),  # sums, and their places in int64
        )
    ]
    for name, make in OPTIMIZERS.items():
        table = _table(case)
        optimizer = make([table.weight], lr=1e-3)
        fused = table.storage.fused
        assert fused is not None
        state = (table.weight.detach(), *fused[1:5])
        must = bytes_per_distinct_row(
            spec, facts, layout="jagged", out_rows=spec.bags, optimizer=name
        ) - bytes_per_distinct_row(spec, facts, layout="jagged", out_rows=spec.bags, optimizer=None)

        def step(
            batch: Batch,
            limit: Tensor | None = None,
            *,
            state: tuple[Any, ...] = state,
            rows: Any = table.storage.rows,
            algorithm: int = fused.algorithm,
            keep: Any = optimizer,  # the state lives as long as it does
        ) -> None:
            ops.coalesce_update_(*state, *looked_up(rows, batch, limit), algorithm)

        if not kernels[1:]:
            kernels.append(Kernel("sort, find rows", lambda b, f=step: f(b, nothing), index))
        kernels.append(Kernel(f"coalesce, {name}", step, must))
    return kernels


def _table(case: Case) -> varemb.VarEmbeddingBag:
    spec = case.spec
    return varemb.VarEmbeddingBag(
        spec.rows, spec.width, mode="sum", include_last_offset=True, dims=case.dims,
        dtype=spec.dtype,
    )  # fmt: skip


def measure_kernels(case: Case, rounds: int, copy_bandwidth: float) -> list[Json]:
    """Median milliseconds of every kernel and what they mean."""
    batches = case.batches(rounds + 3)
    facts = case.facts(batches[:5])
    records = []
    for make in (forward_kernels, backward_kernels):
        kernels = make(case, facts)
        runners = [
            timing.Runner(((kernel.name, kernel.call),), lambda: [], lambda: None)
            for kernel in kernels
        ]
        with torch.no_grad():
            times = timing.measure(runners, batches, 3)
        for kernel, own in zip(kernels, times, strict=True):
            seconds = float(np.median(own)) / 1e9
            records.append({
                "kernel": kernel.name,
                "dtype": str(case.spec.dtype).removeprefix("torch."),
                "ms": seconds * 1e3,
                "ns_per_lookup": seconds / case.spec.lookups * 1e9,
                "must_mb": kernel.must / 1e6,
                "copy_share": kernel.must / seconds / copy_bandwidth,
                "gflops": kernel.flops / seconds / 1e9,
            })  # fmt: skip
    return records


def format_kernels(records: Sequence[Json]) -> str:
    """A line per kernel."""
    lines = [f"{'':38} {'ms':>8} {'ns/lookup':>10} {'must MB':>8} {'of copy':>8} {'GFLOP/s':>8}"]
    for record in records:
        flops = f"{record['gflops']:8.0f}" if record["gflops"] else ""
        lines.append(
            f"{record['kernel'] + ', ' + record['dtype']:38} {record['ms']:8.3f}"
            f" {record['ns_per_lookup']:10.1f} {record['must_mb']:8.1f}"
            f" {record['copy_share']:8.1%} {flops}".rstrip()
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_floor", description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=Spec.rows)
    parser.add_argument("--width", type=int, default=Spec.width)
    parser.add_argument("--zipf", type=float, default=Spec.zipf)
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--json", metavar="FILE", help="also write the results here")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    timing.keep_freed_memory()
    bandwidth = timing.copy_bandwidth()
    environment = describe_environment() | {"copy_gb_per_s": bandwidth / 1e9}
    records: list[Json] = []
    for name in options.dtype:
        spec = Spec(rows=options.rows, width=options.width, zipf=options.zipf, dtype=DTYPES[name])
        records += measure_kernels(Case(spec), options.rounds, bandwidth)
    print(*(f"{key}: {value}" for key, value in environment.items()), sep="\n")
    print(format_kernels(records))
    if options.json:
        save_json(options.json, {"environment": environment, "kernels": records})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
