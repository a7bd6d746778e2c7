"""Runs tests of the operations on the emulated kernels, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

from emulator.build import COMPILER, ROOT

TESTS = ROOT / "tests"


def library_of_compiler(name: str) -> str:
    command = [COMPILER, f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def environment(library: Path) -> dict[str, str]:
    """What a Python process needs that loads the emulator."""
    return {
        **os.environ,
        "EMULATOR_LIBRARY": str(library),
        # AddressSanitizer must be the process's first library, and find the functions that throw.
        "LD_PRELOAD": " ".join(map(library_of_compiler, ("libasan.so", "libstdc++.so"))),
        # Python keeps memory until it ends; fibers have stacks that asan did not see begin.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:verify_asan_link_order=0",
        "PYTHONPATH": str(TESTS),
        "OMP_NUM_THREADS": "1",
    }


def start_tests(library: Path, arguments: list[str]) -> subprocess.Popen[str]:
    """pytest with the emulator in the place of the CPU kernels; paths are relative to tests/."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "emulator.plugin"]
    return subprocess.Popen(
        [*command, "-p", "no:cacheprovider", "--capture=sys", *arguments],
        cwd=TESTS, env=environment(library), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
