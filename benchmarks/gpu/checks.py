"""What must be green before a number counts: the build, the tests on the GPU, compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SANITIZED = "tests/gpu/test_small.py"  # every CUDA operation once, on small tables
SANITIZER_TOOLS = ("memcheck", "racecheck")
SANITIZER_FAILED = 66  # the exit status that compute-sanitizer is told to give
TAIL = 1500  # characters of output that a record keeps


def run_limited(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Runs a command for at most so long; its end, how it ended and what it said last."""
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **(environment or {})}, timeout=seconds,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        status, said = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        status, said = None, _text(error.stdout)
    return {
        "command": " ".join(command).replace(sys.executable, "python"),
        "status": status,  # None: stopped at the limit
        "seconds": time.perf_counter() - begin,
        "said": said.strip()[-TAIL:],
    }


def _text(said: bytes | str | None) -> str:
    if isinstance(said, bytes):
        return said.decode(errors="replace")
    return said or ""


def build_for(capability: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Compiles the libraries beside the sources, the CUDA one for this GPU alone."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    architecture = f"{capability[0]}.{capability[1]}"
    wanted = {"VAREMB_BUILD": "cuda", "VAREMB_CUDA_ARCH_LIST": architecture}
    return run_limited(command, seconds, wanted)


def run_tests(seconds: float, path: str = "tests/gpu") -> dict[str, Any]:
    """The tests that need a GPU. `outcome` is green, red or stopped (out of time)."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--no-header", "-rf", path]
    record = run_limited(command, seconds)
    record["outcome"] = {None: "stopped", 0: "green"}.get(record["status"], "red")
    lines = record["said"].splitlines()
    record["summary"] = lines[-1].strip("= ") if lines else "said nothing"
    return record


def find_sanitizer() -> str | None:
    """Path of compute-sanitizer, or None."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    candidates = ["compute-sanitizer", *(f"{h}/bin/compute-sanitizer" for h in homes if h)]
    return next((found for name in candidates if (found := shutil.which(name))), None)


def run_sanitizer(seconds: float, path: str = SANITIZED) -> dict[str, Any]:
    """memcheck and racecheck over the CUDA kernels on small tables, half of the time each."""
    sanitizer = find_sanitizer()
    if sanitizer is None:
        return {"outcome": "missing", "summary": "compute-sanitizer was not found: nothing checked"}
    tools = {}
    for tool in SANITIZER_TOOLS:
        command = [
            sanitizer, "--tool", tool, "--error-exitcode", str(SANITIZER_FAILED),
            sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--no-header", "-k", "cuda", path,
        ]  # fmt: skip
        # torch's own cache of memory would hide an access beyond a tensor's end.
        uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        record = run_limited(command, seconds / len(SANITIZER_TOOLS), uncached)
        record["command"] = record["command"].replace(sanitizer, "compute-sanitizer")
        record["outcome"] = {None: "stopped", 0: "green"}.get(record["status"], "red")
        tools[tool] = record
    outcomes = {record["outcome"] for record in tools.values()}
    outcome = "red" if "red" in outcomes else "stopped" if "stopped" in outcomes else "green"
    summary = ", ".join(f"{tool} {record['outcome']}" for tool, record in tools.items())
    return {"outcome": outcome, "summary": summary, "tools": tools}
