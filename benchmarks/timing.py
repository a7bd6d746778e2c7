"""Interleaved timing: every contender runs once per round on the same fresh batch."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Stage = Callable[[Any], None]  # of a batch, whatever that is for the runner
Nanoseconds = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Runner:
    """Something to time: stages that run one after another on a batch, and the tensors it keeps.

    Attributes:
        stages: name and function of each timed part; their times are added up.
        tensors: the tensors that stay between calls (weights, index, optimizer state); asked for
            after the first call because optimizers make their state late.
        cleanup: drops outputs and gradients; runs after a call, outside of the timed region.
        calls: how often a stage does its work on the batch; the time is that of one of them.
    """

    stages: tuple[tuple[str, Stage], ...]
    tensors: Callable[[], Iterable[Tensor]]
    cleanup: Callable[[], None]
    calls: int = 1


def measure(
    runners: Sequence[Runner], batches: Sequence[Any], warmup: int, *, is_warm: bool = False
) -> list[Nanoseconds]:
    """Nanoseconds of every stage of every runner, one round per batch after the warm-up.

    The order turns by one place each round, so that none always follows the same neighbour. A
    runner finds the caches as the others left them, as it would between the layers of a model;
    with ``is_warm`` it first runs untimed on another batch. All kept tensors are written once after
    the first call: no timed call meets an untouched page.

    Returns: for each runner an array [rounds, stages].
    """
    times = [np.zeros((len(batches), len(runner.stages)), np.int64) for runner in runners]
    for number, batch in enumerate(batches):
        for turn in range(len(runners)):
            which = (turn + number) % len(runners)
            runner = runners[which]
            if is_warm:
                run_once(runner, batches[number - 1])
            for column, (_, stage) in enumerate(runner.stages):
                start = time.perf_counter_ns()
                stage(batch)
                times[which][number, column] = (time.perf_counter_ns() - start) // runner.calls
            runner.cleanup()
            if number == 0:
                touch_pages(runner.tensors())
    return [t[warmup:] for t in times]


def run_once(runner: Runner, batch: Any) -> None:
    """One untimed call."""
    for _, stage in runner.stages:
        stage(batch)
    runner.cleanup()


@torch.no_grad()
def touch_pages(tensors: Iterable[Tensor]) -> None:
    """Write every tensor once, values unchanged: memory that was only reserved becomes real."""
    for tensor in tensors:
        if tensor.dtype is not torch.bool:
            tensor.detach().add_(0)


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed blocks of up to 32 MB; returns whether it does.

    An output of some 20 MB would otherwise now and then be returned to the system and mapped anew
    page by page, which costs more than the lookup itself and falls on any contender by chance.
    """
    trim_threshold, mmap_threshold = -1, -3  # their numbers in glibc's malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(mmap_threshold, 32 << 20) and mallopt(trim_threshold, (1 << 31) - 1))


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind the tensors."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@dataclasses.dataclass(frozen=True)
class Summary:
    """Median and 20 / 80 percentiles, in milliseconds."""

    median: float
    low: float
    high: float


def summarize(nanoseconds: Nanoseconds) -> Summary:
    """Percentiles of the rounds. nanoseconds: [rounds] or [rounds, stages], stages are added."""
    total = nanoseconds.sum(axis=1) if nanoseconds.ndim == 2 else nanoseconds
    low, median, high = np.percentile(total, [20, 50, 80]) / 1e6
    return Summary(float(median), float(low), float(high))


def speedup(
    ours: Nanoseconds,  # [rounds, stages]
    peer: Nanoseconds,  # [rounds, stages]
) -> Summary:
    """Time of the peer over ours, round by round; above 1 the peer is slower."""
    ratios = peer.sum(axis=1) / ours.sum(axis=1)  # [rounds]
    low, median, high = np.percentile(ratios, [20, 50, 80])
    return Summary(float(median), float(low), float(high))


def copy_bandwidth(megabytes: int = 256, repeats: int = 7) -> float:
    """Bytes per second of a large copy, read and write both counted, on torch's threads."""
    source = torch.full((megabytes << 18,), 0.5)  # [megabytes * 2^18], float32
    target = torch.empty_like(source).fill_(0.0)
    best = min(_copy_seconds(source, target) for _ in range(repeats))
    return 2 * source.nbytes / best


def cpu_seconds() -> tuple[float, float]:
    """Processor seconds used so far by the whole machine and this process; zeros if unknown."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            fields = [int(x) for x in file.readline().split()[1:9]]
    except OSError:
        return 0.0, 0.0
    busy = sum(fields) - fields[3] - fields[4]  # all but idle and waiting for disks
    own = os.times()
    return busy / os.sysconf("SC_CLK_TCK"), own.user + own.system


def resident_bytes(name: str) -> int:
    """A line of this process's memory as Linux tells it: VmRSS now, VmHWM the most so far.

    Raises:
        OSError: the system does not tell.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def forget_peak() -> None:
    """Lets VmHWM begin anew; its memory, unlike ru_maxrss, is this process's alone.

    Raises:
        OSError: the system does not offer it.
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _copy_seconds(source: Tensor, target: Tensor) -> float:
    start = time.perf_counter_ns()
    target.copy_(source)
    return (time.perf_counter_ns() - start) / 1e9
