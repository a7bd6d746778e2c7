"""``python -m benchmarks.run lookup|lookup_bag|update|overhead|all``: test, then measure.

Red tests, no numbers. Without options the standard cases of ``cases.py`` run; with any of --dims,
--zipf, --rows, --width, --pooling, --bags, --dtype, --access every combination of these runs
instead. At the end stands a summary: ours beside the best of the others in every case.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks import bench_lookup, bench_lookup_bag, bench_overhead, bench_update, timing
from benchmarks.cases import DIMS, Spec, bags_of, key_of, of_one_index, standard_specs
from benchmarks.contenders import Settings, measure_case
from benchmarks.plot import draw_results
from benchmarks.progress import Records, seconds_left
from benchmarks.summary import format_summary
from benchmarks.table import LEGEND, case_record, format_case
from varemb.files import atomic_write

BENCHES = {
    bench.OP: bench for bench in (bench_lookup, bench_lookup_bag, bench_update, bench_overhead)
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "numpy", "varemb", "fbgemm-gpu-cpu")
WARMUP = 3  # rounds that are not counted
Cases = list[tuple[ModuleType, Spec]]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status, 1 if an operation's tests fail."""
    parser = _parser()
    options = parser.parse_args(argv)
    benches = list(BENCHES.values()) if options.op == "all" else [BENCHES[options.op]]
    cases = _cases(options, benches)
    if options.resume and not options.json:
        parser.error("--resume goes on with a file: --json FILE")
    if options.plot and not any(spec.is_target for _, spec in cases):
        parser.error("--plot draws the targets' case, which is not among these")
    if options.threads:
        torch.set_num_threads(options.threads)
    tested = dict.fromkeys(op for bench in benches for op in bench.TESTS)
    failed = [op for op in tested if not tests_pass(op)]
    if failed:
        print(f"no numbers: the tests of {', '.join(failed)} fail", file=sys.stderr)
        return 1
    keeps_memory = timing.keep_freed_memory()
    settings = Settings(
        rounds=options.rounds,
        warmup=WARMUP,
        is_warm=options.warm,
        memory_limit=options.memory_gb * 1e9,
        copy_bandwidth=timing.copy_bandwidth(),
    )
    environment = describe_environment() | {
        "rounds": settings.rounds,
        "caches are": "warm" if settings.is_warm else "as the other contenders leave them",
        "freed_memory": "kept" if keeps_memory else "as the allocator does",
        "memory_gb": options.memory_gb,
        "copy_gb_per_s": settings.copy_bandwidth / 1e9,
    }
    path = Path(options.json) if options.json else None
    try:
        records = Records(path, environment, resume=options.resume)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for key, value in records.environment.items():
        print(f"{key}: {value}")
    _measure(cases, settings, records)
    print(f"\n{LEGEND}\n\n{format_summary(records.cases)}")
    if options.plot:
        atomic_write(options.plot, draw_results(records.cases, []))
    return 0


def _measure(cases: Cases, settings: Settings, records: Records) -> None:
    """Measures what is not there yet; a line after each case says how long the others take."""
    waiting = [case for case in cases if not records.has(key_of(case[0].OP, case[1]))]
    done = len(cases) - len(waiting)
    if done:
        print(f"{done} of {len(cases)} cases are there already")
    for number, (bench, spec) in enumerate(waiting, start=1):
        result = measure_case(bench, spec, settings)
        records.append(case_record(result))
        print(f"\n{format_case(result)}")
        left = seconds_left(records.cases, [later.OP for later, _ in waiting[number:]])
        minutes = "" if left is None else f", about {left / 60:.1f} minutes left"
        took = f"{result.seconds:.0f} s"
        print(f"case {done + number} of {len(cases)} took {took}{minutes}", flush=True)


def _cases(options: argparse.Namespace, benches: Sequence[ModuleType]) -> Cases:
    """All operations of a case one after another, so that the time left is known early."""
    chosen = _chosen_specs(options)
    specs = {
        bench.OP: of_one_index(chosen)
        if chosen and bench is bench_overhead
        else chosen or standard_specs(bench.OP, options.quick)
        for bench in benches
    }
    most = max(len(own) for own in specs.values())
    return [
        (bench, specs[bench.OP][i])
        for i in range(most)
        for bench in benches
        if i < len(specs[bench.OP])
    ]


def _chosen_specs(options: argparse.Namespace) -> list[Spec]:
    """Every combination of the options that make a case; none where none is given."""
    default = Spec()
    sizes = (options.rows, options.width, options.pooling, options.bags)
    chosen = (options.dims, options.zipf, *sizes, options.dtype, options.access)
    if not any(chosen):
        return []
    return [
        Spec(
            dims=dims,
            zipf=zipf,
            rows=rows,
            width=width,
            pooling=pooling,
            bags=bags or bags_of(pooling),
            dtype=DTYPES[dtype],
            popular_wide=access == "popular-wide",
        )
        for dims, zipf, rows, width, pooling, bags, dtype, access in itertools.product(
            options.dims or [default.dims],
            options.zipf or [default.zipf],
            options.rows or [default.rows],
            options.width or [default.width],
            options.pooling or [default.pooling],
            options.bags or [None],
            options.dtype or ["float32"],
            options.access or ["popular-wide"],
        )
    ]


def tests_pass(op: str) -> bool:
    """Whether the operation's tests are green; a checkout without them is said and passes."""
    path = ROOT / "tests" / "ops" / f"test_{op}.py"
    if not path.exists():
        print(f"{op}: tests not run, {path.relative_to(ROOT)} is not in this checkout")
        return True
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    print(f"{op}: tests: {lines[-1] if lines else done.stderr.strip()[-200:]}")
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    return done.returncode == 0


def describe_environment() -> dict[str, Any]:
    """Device, versions and commit that every result carries."""
    commit = _output("git", "rev-parse", "HEAD") or "not a git checkout"
    # Results that a run has just written change nothing of what it ran.
    changed = _output("git", "status", "--porcelain", "--", ".", ":!benchmarks/results")
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "caches": _caches(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": versions,
        "commit": commit + (" with changes" if changed else ""),
    }


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def _caches() -> str:
    """Sizes of the first processor's caches, as Linux tells them."""
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            (folder / part).read_text(encoding="utf-8").strip()
            for part in ("level", "type", "size")
        )
        found.append(f"L{level} {kind.lower()} {size}")
    return ", ".join(found) or "unknown"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("op", choices=[*BENCHES, "all"])
    parser.add_argument("--quick", action="store_true", help="the targets' case only")
    parser.add_argument("--json", metavar="FILE", help="write each finished case here")
    parser.add_argument("--resume", action="store_true", help="skip the cases of that file")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the targets' case")
    parser.add_argument("--dims", nargs="+", choices=DIMS, help="laws of the rows' dims")
    parser.add_argument("--zipf", nargs="+", type=float, help="exponents of the access law")
    parser.add_argument("--rows", nargs="+", type=int, help="rows of the table")
    parser.add_argument("--width", nargs="+", type=int, help="padded widths")
    parser.add_argument("--pooling", nargs="+", type=int, help="lookups in a bag")
    parser.add_argument(
        "--bags", nargs="+", type=int, help="bags in a call (default: about 82,000 lookups)"
    )
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES))
    parser.add_argument("--access", nargs="+", choices=["popular-wide", "unrelated"])
    parser.add_argument(
        "--warm", action="store_true", help="every timed call follows an untimed one of its own"
    )
    parser.add_argument("--rounds", type=int, default=11, help="timed rounds (default 11)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own)")
    parser.add_argument(
        "--memory-gb",
        type=float,
        default=16.0,
        help="most memory of peers measured together (default 16: for a machine with 24)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
