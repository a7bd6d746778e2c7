"""``python -m benchmarks.gpu``: builds, tests, sanitizes and measures on this machine's GPU.

Writes one JSON file and one Markdown table under ``benchmarks/results/``, again after every step:
a run that is stopped has lost only the step it was in, and ``--resume`` goes on from there. Red
tests, no numbers. Needs a GPU; without one it says so and exits with 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import importlib.metadata
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu import checks, timing
from benchmarks.gpu.billion import measure_billion
from benchmarks.gpu.operations import OPERATIONS, QUICK, Json, Sizes, measure_cases
from benchmarks.gpu.report import Results
from benchmarks.peers import first_line
from benchmarks.run import describe_environment
from varemb.ops.backend import PREFERENCE, why_not

SECTIONS = ("build", "tests", "sanitizer", "copy", "operations", "billion")
RESULTS = checks.ROOT / "benchmarks" / "results"
REBUILT = "VAREMB_BENCH_REBUILT"  # set for the process that starts after a build
# Most seconds of a section, so that none takes the time of the next.
BUILD_SECONDS, TESTS_SECONDS, SANITIZER_SECONDS = 240.0, 150.0, 90.0
MEASURING_SECONDS = 150.0  # kept for what follows the checks
BILLION_SECONDS = 45.0  # of these, for the last section


class Deadline:
    """Counts down from the start of the run."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def left(self, kept: float = 0.0) -> float:
        """Seconds left when so many are kept for later."""
        return self._end - time.monotonic() - kept


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status, 1 if a check is red or there is no GPU."""
    options = _parser().parse_args(argv)
    if not torch.cuda.is_available():
        print(f"benchmarks.gpu: torch {torch.__version__} sees no GPU here; nothing was measured")
        return 1
    deadline = Deadline(options.minutes)
    wanted = [name for name in SECTIONS if name in (options.only or SECTIONS)]
    if "build" in wanted and not _build(deadline):
        return 1
    sizes = QUICK if options.quick else Sizes()
    environment = describe_gpu() | {"sizes": _plain(sizes)}
    slug = re.sub(r"[^a-z0-9]+", "-", environment["gpu"].lower()).strip("-")
    name = f"gpu-{slug}{'-quick' if options.quick else ''}.json"
    results = Results(options.out or RESULTS / name, environment, resume=options.resume)
    backends = [name for name in ("cuda", "triton") if why_not(name, "cuda") is None]
    status = run_sections(wanted, results, sizes, torch.device("cuda"), backends, deadline)
    print(f"written: {results.path.name} and {results.path.with_suffix('.md').name}")
    return status


def run_sections(
    wanted: Sequence[str],
    results: Results,
    sizes: Sizes,
    device: torch.device,
    backends: Sequence[str],
    deadline: Deadline,
) -> int:
    """Runs what is wanted and not there yet; returns the exit status."""
    missing = [
        f"backend {name}: {why_not(name, device.type)}"
        for name in PREFERENCE[device.type]
        if name not in backends and name != "reference"
    ]
    results.put("not_run", missing)
    if not backends:
        print("nothing to measure", *missing, sep="\n")
        return 1
    for name, check in (("tests", checks.run_tests), ("sanitizer", checks.run_sanitizer)):
        if name in wanted and name not in results.sections:
            most = TESTS_SECONDS if name == "tests" else SANITIZER_SECONDS
            record = check(max(0.0, min(most, deadline.left(MEASURING_SECONDS))))
            print(f"{name}: {record['summary']}", flush=True)
            results.put(name, record)
        if results.sections.get(name, {}).get("outcome") == "red":
            print(results.sections[name].get("said", ""), f"no numbers: the {name} are red")
            return 1
    if "copy" not in results.sections:  # everything below is measured against it
        results.put("copy", timing.copy_bandwidth(device, sizes.copy_megabytes))
        print(f"copy: {results.sections['copy']['median_bytes_per_s'] / 1e9:.0f} GB/s", flush=True)
    failures = 0
    if "operations" in wanted:
        kept = BILLION_SECONDS if "billion" in wanted else 0.0
        failures += _operations(results, sizes, device, backends, deadline, kept)
    if "billion" in wanted and "billion" not in results.sections:
        failures += _billion(results, sizes, device, backends[0], deadline)
    return 1 if failures or missing else 0


def _build(deadline: Deadline) -> bool:
    """Compiles the libraries if they are not there, then starts this program anew with them."""
    reason = why_not("cuda", "cuda")
    if reason is None:
        return True
    if os.environ.get(REBUILT):
        print(f"build: still no CUDA kernels: {reason}")
        return True  # Triton is measured alone, and the results say why
    print(f"build: {reason}; compiling", flush=True)
    seconds = min(BUILD_SECONDS, deadline.left())
    record = checks.build_for(torch.cuda.get_device_capability(), seconds)
    print(f"build: status {record['status']} after {record['seconds']:.0f} s\n{record['said']}")
    if record["status"] != 0:
        return False
    left = str(max(0.0, deadline.left() / 60))
    os.environ[REBUILT] = "1"
    arguments = [*sys.argv[1:], "--minutes", left]
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *arguments])


def _operations(
    results: Results,
    sizes: Sizes,
    device: torch.device,
    backends: Sequence[str],
    deadline: Deadline,
    kept: float,
) -> int:
    done = [record["key"] for record in results.sections.get("operations", [])]
    bandwidth = results.sections["copy"]["median_bytes_per_s"]
    failures = 0
    for record in measure_cases(
        sizes, device, backends, bandwidth, lambda: deadline.left(kept) > 0, done
    ):
        results.append("operations", record)
        ours = record["lines"][: len(backends)]
        failures += sum("reason" in line for line in ours)
        print(f"{record['key']}: {_one_line(record)}", flush=True)
    total = len(sizes.specs()) * len(OPERATIONS)
    count = len(results.sections.get("operations", []))
    if count < total:
        reason = f"operations: {total - count} of {total} cases, out of time (--resume goes on)"
        results.put("not_run", [*results.sections["not_run"], reason])
    return failures


def _one_line(record: Json) -> str:
    return ", ".join(
        f"{line['name']} {line['cold']['ms']['median']:.3f} ms {line['cold']['copy_share']:.0%}"
        if "cold" in line
        else f"{line['name']}: {line['reason']}"
        for line in record["lines"]
    )


def _billion(
    results: Results, sizes: Sizes, device: torch.device, backend: str, deadline: Deadline
) -> int:
    records: list[Json] = []
    for dtype in sizes.dtypes[::-1]:  # the smaller table first
        if deadline.left() <= 0:
            reason = f"table of {sizes.billion_rows:,} rows: out of time"
            results.put("not_run", [*results.sections["not_run"], reason])
            break
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            bags = {"bags": sizes.bags, "rounds": sizes.rounds}
            record = measure_billion(sizes.billion_rows, dtype, device, backend, **bags)
        except RuntimeError as error:
            record = {
                "rows": sizes.billion_rows,
                "dtype": str(dtype).removeprefix("torch."),
                "reason": f"fails: {first_line(error)}",
            }
        records.append(record)
        print(f"billion: {record}", flush=True)
    results.put("billion", records)
    return sum("reason" in record for record in records)


def _plain(sizes: Sizes) -> Json:
    """The sizes as JSON gives them back."""
    plain = dataclasses.asdict(sizes)
    plain["dtypes"] = [str(dtype) for dtype in sizes.dtypes]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


def describe_gpu() -> Json:
    """Device, versions and commit that the results carry."""
    host = describe_environment()
    versions = host["versions"] | {"cuda": torch.version.cuda, "triton": _triton_version()}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "driver": _driver(),
        "cpu": host["cpu"],
        "cores": host["cores"],
        "versions": versions,
        "commit": host["commit"],
    }


def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections alone")
    parser.add_argument("--quick", action="store_true", help="smaller tables, one case")
    parser.add_argument("--resume", action="store_true", help="go on with the file that is there")
    parser.add_argument("--minutes", type=float, default=7.5, help="stop beginning anything after")
    parser.add_argument("--out", type=Path, help="the JSON file; the table lies beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
