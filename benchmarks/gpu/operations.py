"""Every operation on a table of 10 million rows: ours on each backend beside what users have."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers, size_classes
from benchmarks.cases import (
    Batch,
    Case,
    Facts,
    Spec,
    bytes_per_distinct_row,
    bytes_per_lookup,
    coalesce_bytes,
    key_of,
)
from benchmarks.contenders import Contender, output_grad
from benchmarks.gpu import timing
from benchmarks.gpu.tables import (
    CLASS_MULTIPLE,
    OurTable,
    class_linears,
    padded_linear,
    torch_coalescing,
)
from benchmarks.peers import UnavailableError, first_line, forward_runner, step_runner
from benchmarks.timing import Nanoseconds, Runner, speedup, summarize, tensor_bytes

OPERATIONS = (
    "lookup",
    "lookup_bag",
    "step rowwise_adagrad",
    "step adam",
    "lookup_linear",
    "coalesce",
)
POOLED = ("lookup_bag", "step rowwise_adagrad", "step adam")
Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the cases are and how often each is measured.

    Attributes:
        copy_megabytes: of the copy that the bandwidth is measured with.
        billion_rows: rows of the table of many narrow rows.
    """

    rows: int = 10_000_000
    width: int = 128
    bags: int = 65_536
    pooling: int = 20
    rounds: int = 9
    warmup: int = 2
    dims: tuple[str, ...] = ("power", "equal", "uniform")
    zipfs: tuple[float, ...] = (1.05, 0.6)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    copy_megabytes: int = 4096
    billion_rows: int = 1_000_000_000

    def specs(self) -> list[Spec]:
        """The cases, each dtype of a law of dims and access beside the other."""
        return [
            Spec(
                dims=dims, zipf=zipf, rows=self.rows, width=self.width, dtype=dtype,
                bags=self.bags, pooling=self.pooling,
            )
            for zipf in self.zipfs
            for dims in self.dims
            for dtype in self.dtypes
        ]  # fmt: skip


QUICK = Sizes(
    rows=1_000_000, rounds=5, dims=("power",), zipfs=(1.05,), copy_megabytes=1024,
    billion_rows=100_000_000,
)  # fmt: skip


def measure_cases(
    sizes: Sizes,
    device: torch.device,
    backends: Sequence[str],
    copy_bytes_per_s: float,
    has_time: Callable[[], bool],
    done: Sequence[str] = (),
) -> Iterator[Json]:
    """One record per case and operation, as each is finished.

    Args:
        sizes: what to measure.
        backends: ours, the one that the others are compared with first.
        copy_bytes_per_s: bandwidth that shares are taken of.
        has_time: whether the next one may begin.
        done: keys of records that are there already.
    """
    for spec in sizes.specs():
        wanted = [op for op in OPERATIONS if key_of(op, spec) not in done]
        if not wanted or not has_time():
            continue
        case = Case(spec, device)
        batches = case.batches(sizes.rounds + sizes.warmup)
        facts = case.facts(batches[:3])
        table = OurTable(case)
        for op in wanted:
            if not has_time():
                return
            begin = time.perf_counter()
            lines = _measure(op, case, facts, table, batches, sizes.warmup, backends)
            _count_bytes(lines, op, spec, facts, copy_bytes_per_s)
            yield {
                "key": key_of(op, spec),
                "op": op,
                "spec": dataclasses.asdict(spec) | {"dtype": _name(spec.dtype)},
                "facts": dataclasses.asdict(facts),
                "seconds": time.perf_counter() - begin,
                "lines": lines,
            }
        del table, case  # before the next one needs the memory


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _optimizer_of(op: str) -> str | None:
    return op.removeprefix("step ") if op.startswith("step ") else None


def contenders(
    op: str, case: Case, table: OurTable, backends: Sequence[str]
) -> tuple[list[Contender], list[Contender]]:
    """Ours and the peers of an operation; `table` is trained as the operation needs."""
    optimizer = _optimizer_of(op)
    table.train(optimizer)
    ours = [
        Contender(
            f"varemb {backend}", partial(_our_runner, op, table, backend), "jagged", optimizer
        )
        for backend in backends
    ]
    if op == "coalesce":
        grad = _sequence_grad(case)
        return ours, [Contender("torch coalesce", lambda c: torch_coalescing(c, grad), "padded")]
    kinds = {
        "lookup": (peers.padded_embedding, peers.masked_embedding, size_classes.class_embeddings),
        "lookup_linear": (padded_linear, None, class_linears),
    }
    padded, masked, classes = kinds.get(
        op, (peers.padded_bag, peers.masked_bag, size_classes.class_bags)
    )
    module = "nn.EmbeddingBag" if op in POOLED else "nn.Embedding"
    builds = [
        (f"{module} padded", padded, "padded"),
        ("dense table x mask", masked, "masked"),
        (f"{module} per size class", partial(classes, multiple=CLASS_MULTIPLE), "classes"),
    ]
    make = {"rowwise_adagrad": peers.torch_adagrad, "adam": peers.torch_sparse_adam}.get(
        optimizer or ""
    )
    # torch has no row-wise Adagrad; the one it has keeps a number of state per number.
    state = "adagrad" if optimizer == "rowwise_adagrad" else optimizer
    suffix = {"rowwise_adagrad": " + Adagrad", "adam": " + SparseAdam"}.get(optimizer or "", "")
    return ours, [
        Contender(f"{name}{suffix}", partial(_peer_runner, build, make), layout, state)
        for name, build, layout in builds
        if build is not None
    ]


def _our_runner(op: str, table: OurTable, backend: str, case: Case) -> Runner:
    if op == "coalesce":
        return table.coalescing(backend, _sequence_grad(case))
    if op == "lookup":
        return forward_runner(table.sequence(backend))
    if op == "lookup_linear":
        return forward_runner(table.linear(backend))
    if table.optimizer is None:
        return forward_runner(table.bag(backend))
    return step_runner(table.bag(backend), [table.optimizer], output_grad(case))


def _peer_runner(build: peers.Build, make: peers.MakeOptimizer | None, case: Case) -> Runner:
    lookup = build(case)
    if make is None:
        return forward_runner(lookup)
    return step_runner(lookup, [make(lookup.trained)], output_grad(case))


def _sequence_grad(case: Case) -> Tensor:  # [L, D]
    grad = case.full((case.spec.lookups, case.spec.width), 0.0)
    generator = torch.Generator(case.device).manual_seed(case.spec.seed)
    return grad.normal_(generator=generator)


def _measure(
    op: str,
    case: Case,
    facts: Facts,
    table: OurTable,
    batches: list[Batch],
    warmup: int,
    backends: Sequence[str],
) -> list[Json]:
    ours, others = contenders(op, case, table, backends)
    lines, built = [], []
    for contender in [*ours, *others]:
        line: Json = {
            "name": contender.name, "layout": contender.layout, "optimizer": contender.optimizer,
        }  # fmt: skip
        lines.append(line)
        try:
            runner = contender.build(case)
            timing.temporary_bytes(runner, batches[0], case.device)  # compiles, makes the state
            line["temporary_bytes"] = timing.temporary_bytes(runner, batches[1], case.device)
            line["tensor_bytes"] = tensor_bytes(runner.tensors())
            built.append((line, runner))
        except UnavailableError as error:
            line["reason"] = str(error)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            line["reason"] = f"fails: {first_line(error)}"
    runners = [runner for _, runner in built]
    for state, is_cold in (("cold", True), ("warm", False)):
        times = timing.measure(runners, batches, warmup, case.device, is_cold=is_cold)
        for (line, runner), own in zip(built, times, strict=True):
            line[state] = _summary(runner, own, times[0])
    return lines


def _summary(runner: Runner, own: Nanoseconds, first: Nanoseconds) -> Json:
    """Milliseconds of a line, and its time over the first line's in the same round."""
    stages = [name for name, _ in runner.stages]
    medians = torch.from_numpy(own).double().median(0).values / 1e6
    return {
        "ms": dataclasses.asdict(summarize(own)),
        "stages": dict(zip(stages, medians.tolist(), strict=True)),
        "time_over_first": dataclasses.asdict(speedup(first, own)),
    }


def _count_bytes(
    lines: list[Json], op: str, spec: Spec, facts: Facts, copy_bytes_per_s: float
) -> None:
    """Bytes per lookup, per distinct row, and the share of the copy bandwidth that these are."""
    out_rows = spec.bags if op in POOLED else spec.lookups
    for line in lines:
        layout, optimizer = line["layout"], line["optimizer"]
        if op == "coalesce":
            lookups, distinct = coalesce_bytes(spec, facts, layout=layout)
        else:
            lookups = bytes_per_lookup(
                spec, facts, layout=layout, out_rows=out_rows, is_step=optimizer is not None
            )
            distinct = bytes_per_distinct_row(
                spec, facts, layout=layout, out_rows=out_rows, optimizer=optimizer
            )
        line["lookup_bytes"], line["distinct_bytes"] = lookups, distinct
        for state in ("cold", "warm"):
            if state in line:
                seconds = line[state]["ms"]["median"] / 1e3
                line[state]["lookup_bytes_per_s"] = lookups / seconds
                line[state]["copy_share"] = distinct / seconds / copy_bytes_per_s
