"""Compiles the CUDA kernels and their host functions as C++, with AddressSanitizer."""

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
FOLDER = ROOT / "build" / "emulator"
TORCH = Path(torch.__file__).parent
COMPILER = os.environ.get("CXX", "g++")
JOBS = 2  # each compilation takes up to a gigabyte
FLAGS = [
    "-x", "c++", "-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall",
    # -Wno: "#pragma unroll" is nvcc's; products and sums round apart, as in the CUDA build
    "-Wno-unknown-pragmas", "-ffp-contract=off", "-fsanitize=address",
    "-DVAREMB_EMULATOR", "-DTORCH_TARGET_VERSION=0x020b000000000000",
    f"-I{HERE / 'include'}", "-isystem", str(TORCH / "include"),
]  # fmt: skip


def make(command: list[str], made: Path) -> Path:
    """Runs a compiler; raises with its messages when it fails.

    The file has its name only when it is whole, so that a stopped build leaves none to go on with.
    """
    partial = made.with_name(f"{made.name}.partial")
    result = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    return partial.rename(made)


def reads(compiled: Path) -> list[Path]:
    """The files that went into an object, or nothing when there is none."""
    listing = compiled.with_suffix(".d")
    if not compiled.exists() or not listing.exists():
        return []
    names = listing.read_text().replace("\\\n", " ").split()
    return [Path(name) for name in names if not name.endswith(":")]


def is_newer(made: Path, inputs: list[Path]) -> bool:
    when = made.stat().st_mtime if made.exists() else 0.0
    return all(path.exists() and path.stat().st_mtime < when for path in inputs)


def compile_object(source: Path, folder: Path) -> Path:
    """The object of a source; compiled only when something that it reads is newer."""
    compiled = folder / f"{source.stem}.o"
    inputs = reads(compiled)
    if not inputs or not is_newer(compiled, [*inputs, Path(__file__)]):
        folder.mkdir(parents=True, exist_ok=True)
        listing = str(compiled.with_suffix(".d"))
        make([COMPILER, *FLAGS, "-MD", "-MF", listing, "-c", str(source)], compiled)
    return compiled


def link(objects: list[Path], library: Path) -> Path:
    if not is_newer(library, objects):
        libraries = [f"-L{TORCH / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"]
        names = [str(path) for path in objects]
        make([COMPILER, "-shared", "-fsanitize=address", *names, *libraries], library)
    return library


def compile_all(sources: list[Path], folder: Path) -> list[Path]:
    with ThreadPoolExecutor(JOBS) as pool:
        return list(pool.map(lambda source: compile_object(source, folder), sources))


def sources_of(csrc: Path) -> list[Path]:
    """The longest first: begun last, it would be alone at the end."""
    return sorted((csrc / "cuda").glob("*.cu"), key=lambda path: path.stat().st_size, reverse=True)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Lets other workers of the tests wait until this one has built what all of them use."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(folder: Path = FOLDER) -> Path:
    """The library of all emulated operations, in a folder that also keeps the objects.

    Raises:
        RuntimeError: a file does not compile; with the compiler's messages.
    """
    with only_one(folder):
        objects = compile_all([HERE / "fibers.cpp", *sources_of(CSRC)], folder)
        return link(objects, folder / "emulator.so")


def build_probes(folder: Path = FOLDER) -> Path:
    """The program of broken kernels that the emulator is tested with."""
    program = folder / "probes"
    with only_one(folder):
        objects = compile_all([HERE / "fibers.cpp", HERE / "probes.cpp"], folder)
        if not is_newer(program, objects):
            make([COMPILER, "-fsanitize=address", *map(str, objects)], program)
    return program


def rebuild(csrc: Path, changed: str, operation: str, folder: Path) -> Path:
    """The library with one operation compiled from a copy of csrc in which a file was changed.

    Raises:
        RuntimeError: the operation does not read that file, or does not compile.
    """
    with only_one(FOLDER):
        objects = compile_all([HERE / "fibers.cpp", *sources_of(CSRC)], FOLDER)
    if CSRC / changed not in [path.resolve() for path in reads(FOLDER / f"{operation}.o")]:
        raise RuntimeError(f"{changed} is not part of {operation}")
    broken = compile_object(csrc / "cuda" / f"{operation}.cu", folder)
    kept = [path for path in objects if path.name != broken.name]
    return link([broken, *kept], folder / "emulator.so")
