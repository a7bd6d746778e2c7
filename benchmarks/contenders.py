"""Measuring one case: what competes, which groups fit into memory, what numbers come out."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch

from benchmarks import timing
from benchmarks.cases import (
    Batch,
    Case,
    Facts,
    Spec,
    bytes_per_distinct_row,
    bytes_per_lookup,
    table_bytes,
)
from benchmarks.peers import Build, UnavailableError, first_line, forward_runner
from benchmarks.timing import Runner, Summary


@dataclasses.dataclass(frozen=True)
class Target:
    """A promise of the design against one peer, for the case it is stated for.

    Attributes:
        speedup: the peer's time over ours must be at least this.
        words: the promise as the design says it.
    """

    speedup: float
    words: str


@dataclasses.dataclass(frozen=True)
class Contender:
    """One line of the table.

    Attributes:
        build: makes the runner from a case, or raises ``UnavailableError`` with the reason.
        layout: how the rows are stored, one of ``cases.LAYOUTS``; bytes are counted by it.
        optimizer: the optimizer in the timed region, None for a forward.
        target: what is promised against this peer.
    """

    name: str
    build: Callable[[Case], Runner]
    layout: str
    optimizer: str | None = None
    target: Target | None = None


@dataclasses.dataclass(frozen=True)
class Block:
    """One of ours and the peers it is compared with."""

    ours: Contender
    peers: tuple[Contender, ...]


@dataclasses.dataclass
class Result:
    """The numbers of one line; only name, layout and reason are set where a peer cannot run."""

    name: str
    layout: str
    optimizer: str | None
    reason: str = ""
    time: Summary | None = None  # milliseconds
    stages: dict[str, float] = dataclasses.field(default_factory=dict)  # median milliseconds
    speedup: Summary | None = None  # this line's time over ours
    lookup_bytes: float = 0.0
    distinct_bytes: float = 0.0
    copy_share: float = 0.0  # distinct bytes a second over the bandwidth of a copy
    tensor_bytes: int = 0
    padded_share: float = 0.0  # of the bytes of a padded table with the same optimizer's state
    target: Target | None = None

    @property
    def is_met(self) -> bool:
        """Whether the target holds."""
        return bool(self.target and self.speedup and self.speedup.median >= self.target.speedup)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to measure."""

    rounds: int
    warmup: int
    is_warm: bool  # every timed call follows an untimed one of the same contender
    memory_limit: float  # bytes that the peers measured together may take
    copy_bandwidth: float  # bytes per second


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """All lines of one operation on one case; in each block the first line is ours."""

    op: str
    spec: Spec
    facts: Facts
    blocks: list[list[Result]]
    others_share: float  # processors that other processes kept busy meanwhile
    seconds: float  # that measuring took


def measure_case(bench: ModuleType, spec: Spec, settings: Settings) -> CaseResult:
    """Time every contender of an operation on one case."""
    begin = time.perf_counter()
    case = Case(spec)
    batches = case.batches(settings.rounds + settings.warmup)
    facts = case.facts(batches[:5])
    before, own_before, start = *timing.cpu_seconds(), time.perf_counter()
    blocks = []
    for block in bench.blocks():
        blocks.append(_measure_block(bench.out_rows(spec), block, case, facts, batches, settings))
    after, own_after = timing.cpu_seconds()
    others = (after - before) - (own_after - own_before)
    share = max(0.0, others / (time.perf_counter() - start))
    return CaseResult(bench.OP, spec, facts, blocks, share, time.perf_counter() - begin)


def _measure_block(
    out_rows: int,
    block: Block,
    case: Case,
    facts: Facts,
    batches: list[Batch],
    settings: Settings,
) -> list[Result]:
    results = [_blank(block.ours), *(_blank(peer) for peer in block.peers)]
    for group in _groups(block, case, settings.memory_limit, results):
        members = [(block.ours, results[0]), *((block.peers[i], results[i + 1]) for i in group)]
        built: list[tuple[Runner, Result, Contender]] = []
        for contender, result in members:
            try:
                runner = contender.build(case)
                timing.run_once(runner, batches[0])
                built.append((runner, result, contender))
            except UnavailableError as error:
                result.reason = str(error)
            except (RuntimeError, NotImplementedError, TypeError) as error:
                if contender is block.ours:
                    raise
                result.reason = f"fails: {first_line(error)}"
        times = timing.measure(
            [runner for runner, _, _ in built], batches, settings.warmup, is_warm=settings.is_warm
        )
        for (runner, result, contender), own in zip(built, times, strict=True):
            _fill(result, runner, own, times[0])
            padded = table_bytes(case, "padded", contender.optimizer)
            result.padded_share = result.tensor_bytes / padded
            _count_bytes(result, contender, case.spec, facts, out_rows, settings.copy_bandwidth)
        del built, runner  # the next group needs the memory
        gc.collect()  # a table in a cycle of references would keep it
    results[0].speedup = None
    return results


def _blank(contender: Contender) -> Result:
    return Result(contender.name, contender.layout, contender.optimizer, target=contender.target)


def _groups(block: Block, case: Case, limit: float, results: list[Result]) -> list[list[int]]:
    """Peers by number, in groups that fit the limit; what never fits gets its reason."""
    groups: list[list[int]] = [[]]
    room = limit
    for i, peer in enumerate(block.peers):
        needed = table_bytes(case, peer.layout, peer.optimizer)
        if needed > limit:
            sizes = f"takes {needed / 1e9:.1f} GB, --memory-gb allows {limit / 1e9:.1f}"
            results[i + 1].reason = f"not run: {sizes}"
            continue
        if needed > room:
            groups.append([])
            room = limit
        groups[-1].append(i)
        room -= needed
    return groups


def _fill(
    result: Result,
    runner: Runner,
    own: timing.Nanoseconds,  # [rounds, stages]
    ours: timing.Nanoseconds,  # [rounds, stages]
) -> None:
    result.time = timing.summarize(own)
    result.speedup = timing.speedup(ours, own)
    medians = np.median(own, axis=0) / 1e6
    result.stages = {name: float(ms) for (name, _), ms in zip(runner.stages, medians, strict=True)}
    result.tensor_bytes = timing.tensor_bytes(runner.tensors())


def _count_bytes(
    result: Result,
    contender: Contender,
    spec: Spec,
    facts: Facts,
    out_rows: int,
    copy_bandwidth: float,
) -> None:
    optimizer, layout = contender.optimizer, contender.layout
    result.lookup_bytes = bytes_per_lookup(
        spec, facts, layout=layout, out_rows=out_rows, is_step=optimizer is not None
    )
    result.distinct_bytes = bytes_per_distinct_row(
        spec, facts, layout=layout, out_rows=out_rows, optimizer=optimizer
    )
    if result.time is not None:
        seconds = result.time.median / 1e3
        result.copy_share = result.distinct_bytes / seconds / copy_bandwidth


def forward_of(build: Build) -> Callable[[Case], Runner]:
    """Builds a runner of the forward alone."""
    return lambda case: forward_runner(build(case))


def output_grad(case: Case) -> torch.Tensor:
    """A fixed gradient of a pooled output. [G, D]"""
    generator = torch.Generator().manual_seed(case.spec.seed + 1)
    grad = torch.randn(case.spec.bags, case.spec.width, generator=generator)
    return grad.to(case.device, case.spec.dtype)
