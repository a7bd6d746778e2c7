"""``python -m benchmarks.run lookup|lookup_bag|update|all``: test an operation, then measure it.

Red tests, no numbers. Without options the standard cases of ``cases.py`` run; with any of --dims,
--zipf, --rows, --width, --bags, --dtype, --access every combination of these runs instead.
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

from benchmarks import bench_lookup, bench_lookup_bag, bench_update, timing
from benchmarks.cases import DIMS, Spec, standard_specs
from benchmarks.contenders import CaseResult, Settings, measure_case
from benchmarks.table import LEGEND, format_case, to_json

BENCHES = {bench.OP: bench for bench in (bench_lookup, bench_lookup_bag, bench_update)}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "numpy", "varemb", "fbgemm-gpu-cpu")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status, 1 if an operation's tests fail."""
    options = _parser().parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    benches = list(BENCHES.values()) if options.op == "all" else [BENCHES[options.op]]
    failed = [bench.OP for bench in benches if not tests_pass(bench.OP)]
    if failed:
        print(f"no numbers: the tests of {', '.join(failed)} fail", file=sys.stderr)
        return 1
    keeps_memory = timing.keep_freed_memory()
    settings = Settings(
        rounds=options.rounds or (11 if options.quick else 31),
        warmup=3,
        is_warm=options.warm,
        memory_limit=options.memory_gb * 1e9,
        copy_bandwidth=timing.copy_bandwidth(),
    )
    environment = describe_environment() | {
        "rounds": settings.rounds,
        "caches are": "warm" if settings.is_warm else "as the other contenders leave them",
        "freed_memory": "kept" if keeps_memory else "as the allocator does",
        "copy_gb_per_s": settings.copy_bandwidth / 1e9,
    }
    for key, value in environment.items():
        print(f"{key}: {value}")
    results = _measure(benches, _specs(options), settings)
    print(LEGEND)
    if options.json:
        Path(options.json).write_text(to_json(environment, results) + "\n", encoding="utf-8")
    return 0


def _measure(benches: list[ModuleType], specs: list[Spec], settings: Settings) -> list[CaseResult]:
    results = []
    for bench, spec in itertools.product(benches, specs):
        results.append(measure_case(bench, spec, settings))
        print(f"\n{format_case(results[-1])}", flush=True)
    print()
    return results


def _specs(options: argparse.Namespace) -> list[Spec]:
    default = Spec()
    sizes = (options.rows, options.width, options.bags)
    chosen = (options.dims, options.zipf, *sizes, options.dtype, options.access)
    if not any(chosen):
        return standard_specs(options.quick)
    return [
        Spec(
            dims=dims,
            zipf=zipf,
            rows=rows,
            width=width,
            bags=bags,
            dtype=DTYPES[dtype],
            popular_wide=access == "popular-wide",
        )
        for dims, zipf, rows, width, bags, dtype, access in itertools.product(
            options.dims or [default.dims],
            options.zipf or [default.zipf],
            options.rows or [default.rows],
            options.width or [default.width],
            options.bags or [default.bags],
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
    parser.add_argument("--quick", action="store_true", help="the targets' case only, 11 rounds")
    parser.add_argument("--json", metavar="FILE", help="also write the results here")
    parser.add_argument("--dims", nargs="+", choices=DIMS, help="laws of the rows' dims")
    parser.add_argument("--zipf", nargs="+", type=float, help="exponents of the access law")
    parser.add_argument("--rows", nargs="+", type=int, help="rows of the table")
    parser.add_argument("--width", nargs="+", type=int, help="padded widths")
    parser.add_argument("--bags", nargs="+", type=int, help="bags of 20 lookups in a call")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES))
    parser.add_argument("--access", nargs="+", choices=["popular-wide", "unrelated"])
    parser.add_argument(
        "--warm", action="store_true", help="every timed call follows an untimed one of its own"
    )
    parser.add_argument("--rounds", type=int, help="timed rounds (default 31)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own)")
    parser.add_argument(
        "--memory-gb", type=float, default=8.0, help="most memory of peers measured together"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
