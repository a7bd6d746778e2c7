"""`python -m benchmarks.bench_scale`: one table of 1, 10 and 100 million rows, from dims to disk.

A table 128 wide whose rows have 12 numbers on average, popular rows wide, is built, trained, saved
and loaded: with Adam over bfloat16 rows and with row-wise Adagrad over float32 rows. Each table has
a process of its own, so that its peak memory is its own (Linux). Steps and lookups are 4096 bags of
20 rows, the rows drawn by Zipf 1.05 and all alike. Beside save and load stands a plain write and
read of as many bytes in the same run; both reads begin with nothing of the file in memory.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import varemb
from benchmarks import timing
from benchmarks.cases import POWER_LAWS
from benchmarks.large import make_batches, make_dims
from benchmarks.peers import Lookup, forward_runner, step_runner
from benchmarks.plot import draw_results
from benchmarks.run import ROOT, describe_environment
from varemb.files import atomic_write, load_state_into, save_json, save_state

WIDTH = 128
POOLING = 20
# Share of the rows, the most popular first, and their dim: 12.0 on average.
DIMS = tuple((share, round(fraction * WIDTH)) for share, fraction in POWER_LAWS["mean12"])
ZIPFS = (1.05, 0.0)
METHODS = {
    "bf16 Adam": (torch.bfloat16, varemb.optim.Adam),
    "fp32 row-wise Adagrad": (torch.float32, varemb.optim.RowWiseAdagrad),
}
_BATCHES_AT_A_TIME = 50  # drawn ahead: 33 MB
_PART = 16 << 20  # bytes of a plain write or read
_CPU = torch.device("cpu")
Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long a table is trained and where it is saved."""

    steps: int = 1000  # training steps, and so many lookups, by each law
    bags: int = 4096
    threads: int = 1
    folder: str = ""  # for the file; the system's temporary folder where empty


class Phases:
    """Seconds and peak memory of what happens one after another in this process."""

    def __init__(self) -> None:
        self.base = timing.resident_bytes("VmRSS")
        self.found: dict[str, Json] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measures the block: by clock, by processor, and its memory.

        peak_bytes is beyond the memory before the first phase; extra_bytes beyond that before and
        after this phase: what was only needed on the way.
        """
        timing.forget_peak()
        before = timing.resident_bytes("VmRSS")
        start, own = time.perf_counter(), time.process_time()
        yield
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - own
        most, after = timing.resident_bytes("VmHWM"), timing.resident_bytes("VmRSS")
        self.found[name] = {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "peak_bytes": most - self.base,
            "extra_bytes": max(0, most - max(before, after)),
        }


def measure_table(rows: int, method: str, settings: Settings) -> Json:
    """Everything about one table; to be called in a process that has done nothing else."""
    torch.set_num_threads(settings.threads)
    timing.keep_freed_memory()
    dtype, make_optimizer = METHODS[method]
    _warm_up(method)
    phases = Phases()
    dims = make_dims(rows, DIMS, _CPU)
    with phases("build"):
        table = varemb.VarEmbeddingBag(
            rows, WIDTH, mode="sum", include_last_offset=True, dtype=dtype, dims=dims
        )
    del dims
    with phases("optimizer"):
        optimizer = make_optimizer([table.weight], lr=1e-3)
    record: Json = {"rows": rows, "method": method, "threads": settings.threads}
    report = varemb.memory_report(table, optimizer)
    record |= {"numbers": report.params, "mean_dim": report.params / rows, "bytes": report.bytes}
    record["uniform_bytes"] = report.bytes_full
    grad = torch.full((settings.bags, WIDTH), 1e-3, dtype=dtype)
    lookup = Lookup(lambda batch: table(batch.indices, batch.offsets), lambda: [])
    for name, runner in (
        ("step", step_runner(lookup, [optimizer], grad)),
        ("lookup", forward_runner(lookup)),
    ):
        for zipf in ZIPFS:
            with phases(f"{name}, Zipf {zipf:g}"):
                record[f"{name}_ms, Zipf {zipf:g}"] = _measure(runner, rows, zipf, settings)
    with tempfile.TemporaryDirectory(dir=settings.folder or None) as folder:
        record |= _save_and_load(table, optimizer, Path(folder), phases)
    record["peak_bytes"] = max(phase["peak_bytes"] for phase in phases.found.values())
    return record | {"phases": phases.found}


def _warm_up(method: str) -> None:
    """A step of a small table: what torch and the library load once is not the table's."""
    dtype, make_optimizer = METHODS[method]
    table = varemb.VarEmbeddingBag(100, WIDTH, mode="sum", dtype=dtype, dims=4)
    optimizer = make_optimizer([table.weight])
    table(torch.zeros(4, 2, dtype=torch.int64)).sum().backward()
    optimizer.step()


def _measure(runner: timing.Runner, rows: int, zipf: float, settings: Settings) -> Json:
    """Median and 20 / 80 percentiles of a call on fresh batches, in milliseconds."""
    times = []
    for first in range(0, settings.steps, _BATCHES_AT_A_TIME):
        count = min(_BATCHES_AT_A_TIME, settings.steps - first)
        batches = make_batches(rows, zipf, settings.bags, POOLING, count, _CPU, seed=first)
        times.extend(timing.measure([runner], batches, 0))
    nanoseconds = np.concatenate(times)  # [steps, stages]
    stages = zip(runner.stages, np.median(nanoseconds, axis=0) / 1e6, strict=True)
    return dataclasses.asdict(timing.summarize(nanoseconds)) | {
        "seconds": float(nanoseconds.sum() / 1e9),  # of all steps, without drawing the batches
        "stages": {name: float(median) for (name, _), median in stages},
        "distinct_rows": int(batches[-1].indices.unique().numel()),
    }


def _save_and_load(
    table: varemb.VarEmbeddingBag,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    phases: Phases,
) -> Json:
    """Bytes on disk; times go into the phases.

    Raises:
        RuntimeError: what was loaded is not what was saved.
    """

    def state() -> dict[str, Any]:
        return {"table": table.state_dict(), "optimizer": optimizer.state_dict()}

    path, plain = folder / "table.safetensors", folder / "plain"
    with phases("save"):
        save_state(path, state())
    on_disk = path.stat().st_size
    with phases("plain write"):
        _write(plain, on_disk)
    _drop_from_memory(plain)
    with phases("plain read"):
        _read(plain)
    plain.unlink()
    _drop_from_memory(path)
    tensors = [
        table.weight.detach(),
        *(value for value in optimizer.state[table.weight].values() if isinstance(value, Tensor)),
    ]
    before = [_sample(tensor) for tensor in tensors]
    for tensor in tensors:
        tensor.fill_(-1)
    with phases("load"):
        loaded = load_state_into(path, state())
        table.load_state_dict(loaded["table"])
        optimizer.load_state_dict(loaded["optimizer"])
        del loaded
    if not all(
        torch.equal(_sample(tensor), kept) for tensor, kept in zip(tensors, before, strict=True)
    ):
        raise RuntimeError("bench_scale: the loaded table is not the saved one")
    return {"disk_bytes": on_disk}


def _sample(tensor: Tensor) -> Tensor:
    """Some numbers from everywhere in a tensor."""
    flat = tensor.reshape(-1)
    return flat[:: max(1, flat.numel() // 100_003)].clone()


def _write(path: Path, count: int) -> None:
    """Writes so many bytes, until they are on the disk."""
    part = np.random.default_rng(0).bytes(min(count, _PART))
    with open(path, "wb", buffering=0) as file:
        for first in range(0, count, _PART):
            file.write(part[: min(_PART, count - first)])
        os.fsync(file.fileno())


def _read(path: Path) -> None:
    """Reads a file part by part into the same memory."""
    part = bytearray(_PART)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(part):
            pass


def _drop_from_memory(path: Path) -> None:
    """Has the system forget what it keeps of a file in memory."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_apart(rows: int, method: str, settings: Settings) -> Json:
    """`measure_table` in a process of its own."""
    case = json.dumps([rows, method, dataclasses.asdict(settings)])
    command = [sys.executable, "-m", "benchmarks.bench_scale", "--case", case]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    record: Json = json.loads(done.stdout.splitlines()[-1])
    return record


COLUMNS = (
    "rows", "build s", "step ms 1.05", "0", "lookup ms 1.05", "0", "save s", "plain", "load s",
    "plain", "weights MB", "index", "optimizer", "disk", "peak", "+build", "+save", "+load",
)  # fmt: skip


def format_records(records: Sequence[Json]) -> str:
    """One line per table."""
    lines = [COLUMNS] + [_cells(record) for record in records]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    names = ["", *(record["method"] for record in records)]
    first = max(map(len, names))
    return "\n".join(
        "  ".join([name.ljust(first), *map(str.rjust, line, widths)])
        for name, line in zip(names, lines, strict=True)
    )


def _cells(record: Json) -> tuple[str, ...]:
    phases = record["phases"]
    seconds = (f"{phases[name]['seconds']:.2f}" for name in ("save", "plain write", "load"))
    times = (
        f"{record[f'{name}_ms, Zipf {zipf:g}']['median']:.3f}"
        for name in ("step", "lookup")
        for zipf in ZIPFS
    )
    kept = (record["bytes"][part] for part in ("weights", "index", "optimizer"))
    extra = (phases[name]["extra_bytes"] for name in ("build", "save", "load"))
    sizes = (*kept, record["disk_bytes"], record["peak_bytes"], *extra)
    return (
        f"{record['rows']:,}",
        f"{phases['build']['seconds']:.2f}",
        *times,
        *seconds,
        f"{phases['plain read']['seconds']:.2f}",
        *(f"{size / 1e6:,.1f}" for size in sizes),
    )


def format_growth(records: Sequence[Json]) -> str:
    """How much longer a step takes at the most rows than at the fewest."""
    lines = []
    for method in dict.fromkeys(record["method"] for record in records):
        own = sorted((r for r in records if r["method"] == method), key=lambda r: r["rows"])
        few, many = own[0], own[-1]
        if few is many:
            continue
        growth = ", ".join(
            f"{many[key]['median'] / few[key]['median']:.2f} x ({key.removeprefix('step_ms, ')})"
            for key in (f"step_ms, Zipf {zipf:g}" for zipf in ZIPFS)
        )
        lines.append(f"{method}: a step at {many['rows']:,} over {few['rows']:,} rows: {growth}")
    return "\n".join(lines)


LEGEND = """\
step: forward, backward and optimizer; medians, by exponent of Zipf. plain: as many bytes written
until they are on the disk, or read, without a table. Build fills the table with random numbers.
peak: most memory beyond that of a process that has trained a table of 100 rows, in MB of 10^6.
+build, +save, +load: memory that was only needed on the way."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_scale", description=__doc__)
    parser.add_argument("--rows", default="1000000,10000000,100000000", help="by commas")
    parser.add_argument("--methods", default=",".join(METHODS), help="by commas")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--bags", type=int, default=Settings.bags)
    parser.add_argument("--threads", type=int, default=Settings.threads)
    parser.add_argument("--folder", default="", help="where tables are saved and loaded")
    parser.add_argument("--out", metavar="FILE.json", help="also write the results here")
    parser.add_argument("--plot", metavar="FILE.png", help="also draw the steps' times")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.case:
        rows, method, settings = json.loads(options.case)
        print(json.dumps(measure_table(rows, method, Settings(**settings))))
        return 0
    wanted = Settings(options.steps, options.bags, options.threads, options.folder)
    environment = describe_environment() | {"threads": options.threads}
    records = []
    for rows in map(int, options.rows.split(",")):
        for method in options.methods.split(","):
            records.append(measure_apart(rows, method, wanted))
            print(f"{format_records(records[-1:])}\n", flush=True)
    print(f"{json.dumps(environment)}\n\n{format_records(records)}\n{LEGEND}")
    print(format_growth(records))
    if options.out:
        settings_json = dataclasses.asdict(wanted)
        result = {"environment": environment, "settings": settings_json, "tables": records}
        save_json(options.out, result)
    if options.plot:
        atomic_write(options.plot, draw_results([], records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
