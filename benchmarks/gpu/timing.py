"""Interleaved timing by the device's own clock, with the cache flushed or not."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import Batch
from benchmarks.timing import Nanoseconds, Runner

FLUSHED_CACHES = 4  # times the L2 cache is written before a cold call
HOST_FLUSH_BYTES = 1 << 20  # on the CPU, where only the code is tried


class Clock(Protocol):
    """Marks moments on a device; differences are read after `finish`."""

    def mark(self) -> Any: ...

    def finish(self) -> None: ...

    def nanoseconds(self, begin: Any, end: Any) -> int: ...


class EventClock:
    """Events on the current stream: nothing waits between two marks."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def finish(self) -> None:
        torch.cuda.synchronize()

    def nanoseconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> int:
        return round(begin.elapsed_time(end) * 1e6)


class HostClock:
    """The host's clock, for tensors on the CPU."""

    def mark(self) -> int:
        return time.perf_counter_ns()

    def finish(self) -> None:
        pass

    def nanoseconds(self, begin: int, end: int) -> int:
        return end - begin


def clock_of(device: torch.device) -> Clock:
    """Events on a GPU, the host's clock on the CPU."""
    return EventClock() if device.type == "cuda" else HostClock()


def flush_buffer(device: torch.device) -> Tensor:
    """What to write so that nothing else is left in the cache."""
    size = HOST_FLUSH_BYTES
    if device.type == "cuda":
        size = FLUSHED_CACHES * torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(size, dtype=torch.uint8, device=device)


def measure(
    runners: Sequence[Runner],
    batches: Sequence[Batch],
    warmup: int,
    device: torch.device,
    *,
    is_cold: bool,
) -> list[Nanoseconds]:
    """Nanoseconds of every stage of every runner, one round per batch after the warm-up.

    The order turns by one place each round. Cold: the L2 cache is flushed before each call. Warm:
    each call follows an untimed one of its own on another batch.

    Returns: for each runner an array [rounds, stages].
    """
    clock, buffer = clock_of(device), flush_buffer(device)
    marks: list[list[list[Any]]] = [[] for _ in runners]
    for number, batch in enumerate(batches):
        for turn in range(len(runners)):
            which = (turn + number) % len(runners)
            runner = runners[which]
            if is_cold:
                buffer.fill_(number % 2)
            else:
                _run(runner, batches[number - 1])
            moments = [clock.mark()]
            for _, stage in runner.stages:
                stage(batch)
                moments.append(clock.mark())
            runner.cleanup()
            marks[which].append(moments)
    clock.finish()
    return [
        np.array(
            [[clock.nanoseconds(*pair) for pair in itertools.pairwise(m)] for m in own],
            dtype=np.int64,
        )[warmup:]
        for own in marks
    ]


def _run(runner: Runner, batch: Batch) -> None:
    for _, stage in runner.stages:
        stage(batch)
    runner.cleanup()


def temporary_bytes(runner: Runner, batch: Batch, device: torch.device) -> int:
    """Most memory that one call takes beyond what is kept between calls; 0 where nobody counts."""
    if device.type != "cuda":
        _run(runner, batch)
        return 0
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    _run(runner, batch)
    return torch.cuda.max_memory_allocated(device) - before


def copy_bandwidth(device: torch.device, megabytes: int, repeats: int = 10) -> dict[str, float]:
    """Bytes per second of a large copy on the device, read and write both counted."""
    source = torch.empty(megabytes << 18, device=device).normal_()  # [megabytes * 2^18], float32
    target = torch.empty_like(source)
    clock, pairs = clock_of(device), []
    for _ in range(repeats + 2):
        begin = clock.mark()
        target.copy_(source)
        pairs.append((begin, clock.mark()))
    clock.finish()
    times = sorted(clock.nanoseconds(*pair) / 1e9 for pair in pairs[2:])
    moved = 2 * source.nbytes
    return {
        "megabytes": megabytes,
        "median_bytes_per_s": moved / times[len(times) // 2],
        "best_bytes_per_s": moved / times[0],
    }
