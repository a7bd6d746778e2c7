"""``python -m benchmarks.registers``: registers, shared memory and spills of every CUDA kernel.

Reads what ptxas said while ``setup.py`` compiled ``csrc/cuda`` (``build/objects/cuda/*.log``), and
prints one line per kernel with the registers on every architecture. Exit status 1 when a forward
kernel spills, or when there is nothing to read. More than 64 registers get a mark: a multiprocessor
then holds fewer than half of the threads that it could.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

LOGS = Path(__file__).resolve().parent.parent / "build" / "objects" / "cuda"
REGISTERS_TARGET = 64

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_TYPES = {"__half": "half", "__nv_bfloat16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture."""

    file: str
    kernel: str
    architecture: str
    registers: int
    shared: int  # bytes, without what a launch adds
    spill_stores: int  # bytes
    spill_loads: int  # bytes

    @property
    def spills(self) -> bool:
        return self.spill_stores + self.spill_loads > 0

    @property
    def is_wrong(self) -> bool:
        """A forward kernel has no excuse for a spill."""
        return self.spills and "forward" in self.kernel


def read_log(text: str, file: str) -> list[Usage]:
    """The kernels of one log of ``nvcc -Xptxas -v``; those of libraries are left out."""
    found, name, architecture, spills = [], "", "", (0, 0)
    for line in text.splitlines():
        if match := _ENTRY.search(line):
            name, architecture, spills = match[1], match[2], (0, 0)
        elif match := _SPILLS.search(line):
            spills = (int(match[1]), int(match[2]))
        elif (match := _USED.search(line)) and "varemb" in name and "3cub" not in name:
            shared = _SHARED.search(line)
            size = int(shared[1]) if shared else 0
            found.append(Usage(file, name, architecture, int(match[1]), size, *spills))
            name = ""
    return found


def shorten(signature: str) -> str:
    """A demangled kernel without namespaces, return type and arguments.

    Example:
        >>> shorten("void varemb::(anonymous namespace)::sum_kernel<__half, (int)8>(T1 const*)")
        'sum_kernel<half, 8>'
    """
    text = signature.replace("(anonymous namespace)::", "").replace("varemb::", "")
    text = re.sub(r"\((?:int|bool|long|unsigned int)\)", "", text)
    for long, short in _TYPES.items():
        text = text.replace(long, short)
    depth = 0
    for place, character in enumerate(text):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            text = text[:place]
            break
    return re.sub(r"^void ", "", text)


def demangle(usages: Sequence[Usage]) -> list[Usage]:
    """The same with readable names; the mangled ones where there is no c++filt."""
    names = "\n".join(usage.kernel for usage in usages)
    try:
        done = subprocess.run(["c++filt"], input=names, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return list(usages)
    readable = [shorten(line) for line in done.stdout.splitlines()]
    pairs = zip(usages, readable, strict=True)
    return [dataclasses.replace(usage, kernel=name) for usage, name in pairs]


def format_table(usages: Iterable[Usage]) -> str:
    """Markdown: a line per kernel, a column of registers per architecture."""
    kernels: dict[tuple[str, str], dict[str, Usage]] = {}
    for usage in usages:
        kernels.setdefault((usage.file, usage.kernel), {})[usage.architecture] = usage
    architectures = sorted(
        {name for places in kernels.values() for name in places}, key=lambda name: (len(name), name)
    )
    heads = [f"{name} registers" for name in architectures]
    lines = [
        " | ".join(["| file", "kernel", *heads, "shared bytes", "spills |"]),
        " | ".join(["| ---", "---", *["--:"] * len(heads), "--:", "--- |"]),
    ]
    for (file, kernel), places in sorted(kernels.items()):
        numbers = [_registers(places.get(name)) for name in architectures]
        shared = max(usage.shared for usage in places.values())
        spills = ", ".join(_spills(usage) for usage in places.values() if usage.spills) or "none"
        lines.append(" | ".join([f"| {file}", f"`{kernel}`", *numbers, str(shared), f"{spills} |"]))
    return "\n".join(lines)


def _registers(usage: Usage | None) -> str:
    if usage is None:
        return "-"
    return f"{usage.registers}{' **>64**' if usage.registers > REGISTERS_TARGET else ''}"


def _spills(usage: Usage) -> str:
    flag = "**ERROR** " if usage.is_wrong else ""
    return f"{flag}{usage.architecture}: {usage.spill_stores} B out, {usage.spill_loads} B in"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and what is wrong; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registers", description=__doc__)
    parser.add_argument("--logs", type=Path, default=LOGS, help="folder of the compiler's messages")
    parser.add_argument("--out", type=Path, help="also write the table here")
    options = parser.parse_args(argv)
    logs = sorted(options.logs.glob("*.log"))
    usages = demangle([usage for log in logs for usage in read_log(log.read_text(), log.stem)])
    if not usages:
        print("registers: no CUDA kernel was compiled here (VAREMB_BUILD=cuda)", file=sys.stderr)
        return 1
    table = format_table(usages)
    wrong = [usage for usage in usages if usage.is_wrong]
    wide = [usage for usage in usages if usage.registers > REGISTERS_TARGET]
    summary = (
        f"{len(usages)} kernels and architectures: {len(wide)} above {REGISTERS_TARGET} registers, "
        f"{sum(usage.spills for usage in usages)} spill, {len(wrong)} of them forward"
    )
    print(table, summary, sep="\n\n")
    if options.out:
        options.out.write_text(f"{table}\n\n{summary}\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
