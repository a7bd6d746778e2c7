"""Builds the native parts of varemb; without torch or a compiler, a pure-Python install.

VAREMB_BUILD=auto (default) builds what it can and says what it could not; python builds nothing;
cpu builds the CPU libraries alone, cuda these and the CUDA library, and both fail loudly when they
cannot. VAREMB_CUDA_ARCH_LIST (or TORCH_CUDA_ARCH_LIST) names GPUs, such as "8.0;9.0+PTX"; MAX_JOBS
is how many files compile at a time. Nothing here looks at the devices of the machine that builds:
the CUDA library is built wherever nvcc is, against a torch with or without CUDA. `varemb._host`
(the id map and the negative sampler, numpy in and out) needs pybind11 where the build runs; without
it everything else is built.
"""

import functools
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
OBJECTS = ROOT / "build" / "objects"
BUILD = os.environ.get("VAREMB_BUILD", "auto")
STABLE_ABI = "0x020b000000000000"  # torch 2.11: one binary serves it and every later torch
COMMON = ["-std=c++20", "-O3", f"-DTORCH_TARGET_VERSION={STABLE_ABI}"]
CPU_FLAGS = [
    *COMMON, "-fPIC", "-fvisibility=hidden", "-ffp-contract=off",
    # gcc 12 warns of both inside its own AVX-512 headers
    "-Wall", "-Wno-uninitialized", "-Wno-maybe-uninitialized",
]  # fmt: skip
# One library per instruction set and no dispatch inside: inline functions of the standard library
# would otherwise be merged by the linker, and an AVX-512 copy could run on a machine that has none.
CAPABILITIES = {
    "avx512": [
        "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl",
        "-mavx2", "-mfma", "-mf16c", "-mbmi2",
    ],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    "default": [],
}  # fmt: skip
# --fmad=false: products and sums round apart, as on the CPU and in the reference.
CUDA_FLAGS = [
    *COMMON, "-DUSE_CUDA", "--fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden",
    "--threads", "1", "-Xptxas", "-v",
]  # fmt: skip
HOST_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall"]
HOST_NAME = f"_host{sysconfig.get_config_var('EXT_SUFFIX')}"
BUILT = ("_C_*.so", HOST_NAME)
PTXAS_SAYS = ("ptxas info", "    0 bytes stack")  # of every kernel, between nvcc's own messages
ARCHITECTURES = ["8.0", "9.0", "10.0+PTX"]


def folder_of(package):
    """An installed package, found without importing it (torch takes seconds), or None."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec else None


def compiler_missing():
    """Why nothing can be compiled here, or None."""
    if BUILD == "python":
        return "VAREMB_BUILD=python asked for a pure-Python install"
    if shutil.which(cxx()) is None:
        return "no C++ compiler (set CXX, or install g++)"
    return None


def cpu_missing():
    """Why the CPU libraries cannot be built here, or None."""
    if BUILD != "python" and folder_of("torch") is None:
        return "torch is not installed where the build runs (pip install --no-build-isolation .)"
    return compiler_missing()


def host_missing():
    """Why varemb._host cannot be built here, or None."""
    if BUILD != "python" and folder_of("pybind11") is None:
        return "pybind11 was not installed where varemb was built (pip install pybind11)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python.h was not found when varemb was built (install python3-dev)"
    return compiler_missing()


def cuda_missing():
    """Why the CUDA library cannot be built here, or None."""
    if BUILD == "cpu":
        return "VAREMB_BUILD=cpu asked for the CPU libraries alone"
    if nvcc() is None:
        return "nvcc was not found when varemb was installed (set CUDACXX or CUDA_HOME, or PATH)"
    return cpu_missing()


def cxx():
    return os.environ.get("CXX", "g++")


def nvcc():
    """Path of the CUDA compiler, or None."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    candidates = [
        os.environ.get("CUDACXX"),
        "nvcc",
        *(f"{home}/bin/nvcc" for home in homes if home),
    ]
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def version_of(compiler):
    """The line of a compiler's --version that holds it, or None."""
    if compiler is None or shutil.which(compiler) is None:
        return None
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    lines = [line for line in text.splitlines() if re.search(r"\d+\.\d+", line)]
    return lines[0] if lines else None


def architectures():
    """GPUs to compile for, such as ["8.0", "9.0+PTX"]: those asked for, or all that nvcc can."""
    asked = os.environ.get("VAREMB_CUDA_ARCH_LIST") or os.environ.get("TORCH_CUDA_ARCH_LIST")
    if asked:
        return [name for name in re.split(r"[;,\s]+", asked) if name]
    listed = subprocess.run([nvcc(), "--list-gpu-arch"], capture_output=True, text=True).stdout
    return [name for name in ARCHITECTURES if f"compute_{number_of(name)}" in listed.split()]


def number_of(architecture):
    """The architecture as nvcc writes it: 90 for "9.0+PTX"."""
    match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", architecture)
    if match is None:
        raise RuntimeError(
            f"varemb: architectures look like 9.0 or 9.0+PTX, got {architecture!r} "
            "(VAREMB_CUDA_ARCH_LIST or TORCH_CUDA_ARCH_LIST)"
        )
    return match[1] + match[2]


def code_flags():
    """Machine code for every architecture, and PTX that later GPUs compile for themselves."""
    flags = []
    for name in architectures():
        number = number_of(name)
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if name.endswith("+PTX"):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def run(command):
    """Runs a compiler; returns what it wrote to stderr, and prints it when it fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr
    except subprocess.CalledProcessError as error:
        lines = error.stderr.splitlines()
        error.stderr = "\n".join(line for line in lines if not line.startswith(PTXAS_SAYS))
        print(error.stderr)
        raise


def compile_object(source, folder, command):
    """Compiles a file unless its object is newer than all it reads and made by the same command.

    Beside the object lie the command and the compiler's messages: nvcc's name the registers and
    spills of every kernel.
    """
    out = OBJECTS / folder / f"{source.stem}.o"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [*command, "-c", str(source)]
    stamp, line = out.with_suffix(".command"), " ".join(command)
    reads = [source, *(ROOT / "csrc").glob("*.h"), *source.parent.glob("*.*h")]
    is_current = out.exists() and stamp.exists() and stamp.read_text() == line
    if is_current and all(out.stat().st_mtime > path.stat().st_mtime for path in reads):
        return str(out)
    stamp.unlink(missing_ok=True)
    out.with_suffix(".log").write_text(run([*command, "-o", str(out)]))
    stamp.write_text(line)
    return str(out)


@functools.cache
def compilers():
    """Threads that compile, for all libraries together."""
    return ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1))


def compile_all(jobs):
    """Objects of (source, folder, command) jobs, MAX_JOBS of all libraries at a time."""
    return list(compilers().map(lambda job: compile_object(*job), jobs))


def sources_of(room, pattern):
    """Files of a folder of csrc, the longest first: begun last, it would be alone at the end."""
    found = (ROOT / "csrc" / room).glob(pattern)
    return sorted(found, key=lambda path: path.stat().st_size, reverse=True)


def torch_headers():
    return ["-isystem", str(folder_of("torch") / "include")]


def torch_libraries():
    # libtorch.so has no code of its own; in a CUDA build of torch it brings libtorch_cuda.so.
    return [f"-L{folder_of('torch') / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]


def build_host(target):
    headers = [folder_of("pybind11") / "include", sysconfig.get_path("include")]
    command = [cxx(), *HOST_FLAGS]
    for folder in headers:
        command += ["-isystem", str(folder)]
    sources = sources_of("host", "*.cpp")
    # Its own folder: pybind11 goes with one version of Python.
    objects = compile_all([(source, HOST_NAME, command) for source in sources])
    run([cxx(), "-shared", "-pthread", *objects, "-o", str(target / HOST_NAME)])


def build_cpu(target):
    machine_is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    capabilities = list(CAPABILITIES if machine_is_x86 else ["default"])
    jobs = [
        (source, capability, [cxx(), *CPU_FLAGS, *CAPABILITIES[capability], *torch_headers()])
        for source in sources_of("cpu", "*.cpp")
        for capability in capabilities
    ]
    objects = compile_all(jobs)
    for number, capability in enumerate(capabilities):
        own = objects[number :: len(capabilities)]
        library = str(target / f"_C_cpu_{capability}.so")
        run([cxx(), "-shared", *own, "-o", library, "-Wl,--no-as-needed", *torch_libraries()])


def build_cuda(target):
    sources = sources_of("cuda", "*.cu")
    host = ["-ccbin", cxx()] if "CXX" in os.environ else []
    command = [nvcc(), *host, *CUDA_FLAGS, *code_flags(), *torch_headers()]
    objects = compile_all([(source, "cuda", command) for source in sources])
    library = str(target / "_C_cuda.so")
    # The static CUDA runtime: the library then loads beside whichever runtime torch brought, and
    # shares its contexts and streams, which belong to the driver. Its symbols stay inside, or those
    # of torch's runtime would be taken in their place.
    linked = ["-cudart", "static", "-Xlinker", "--exclude-libs,ALL", "-Xlinker", "--no-as-needed"]
    run([nvcc(), *host, "-shared", *objects, "-o", library, *linked, *torch_libraries()])


def attempt(build, reason, target):
    """Builds unless there is a reason not to; returns the reason or why it failed."""
    if reason is None:
        try:
            build(target)
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
            wrong = next((line for line in lines if "error" in line), lines[0])
            return f"the compiler failed: {wrong}"
    return reason


def found(folder):
    """The libraries in a folder, those of other Pythons aside."""
    return [path for name in BUILT for path in sorted(folder.glob(name))]


class BuildNative(build_ext):
    """Compiles csrc/cpu once per instruction set, csrc/cuda for every GPU, and csrc/host."""

    def build_extension(self, ext):
        target = self.target()
        target.mkdir(parents=True, exist_ok=True)
        for old in found(target):
            old.unlink()
        if BUILD not in ("auto", "python", "cpu", "cuda"):
            raise RuntimeError(f"VAREMB_BUILD must be auto, python, cpu or cuda, got {BUILD!r}")
        # Side by side: while the last file of one library compiles, the others use the other cores.
        asked = [(build_cuda, cuda_missing()), (build_cpu, cpu_missing()),
                 (build_host, host_missing())]  # fmt: skip
        with ThreadPoolExecutor(len(asked)) as builds:
            cuda, cpu, host = builds.map(lambda each: attempt(*each, target), asked)
        if cpu is not None:
            if BUILD in ("cpu", "cuda"):
                raise RuntimeError(f"varemb: cannot build the native CPU kernels: {cpu}")
            print(f"varemb: PURE-PYTHON INSTALL, slow reference kernels only: {cpu}")
        if cuda is not None:
            if BUILD == "cuda":
                raise RuntimeError(f"varemb: cannot build the CUDA kernels: {cuda}")
            print(f"varemb: NO CUDA KERNELS, on GPUs Triton or the reference run: {cuda}")
        if host is not None:
            if BUILD in ("cpu", "cuda") and host_missing() is None:
                raise RuntimeError(f"varemb: cannot build varemb._host: {host}")
            print(f"varemb: NO ID MAP, NO NEGATIVE SAMPLER (varemb._host): {host}")
        facts = {
            "cpu_missing": cpu,
            "cuda_missing": cuda,
            "host_missing": host,
            "compiler": version_of(cxx()),
            "nvcc": version_of(nvcc()),
            "cuda_architectures": None if cuda else ";".join(architectures()),
            "stable_abi": STABLE_ABI,
        }
        (target / "build_info.json").write_text(json.dumps(facts, indent=1))

    def get_outputs(self):
        return [str(path) for path in (*found(self.target()), self.target() / "build_info.json")]

    def target(self):
        return Path(self.build_lib) / "varemb"

    def copy_extensions_to_source(self):
        """Editable installs run the package from its sources: the libraries go beside them."""
        package = ROOT / "varemb"
        built = [Path(path) for path in self.get_outputs()]
        for stale in {path.name for path in found(package)} - {path.name for path in built}:
            (package / stale).unlink()
        for path in built:
            # Replaced in one step: a process that runs the old library keeps it.
            shutil.copy2(path, package / f"{path.name}.tmp")
            os.replace(package / f"{path.name}.tmp", package / path.name)


class Wheel(bdist_wheel):
    """Only varemb._host calls Python: a wheel without it serves every Python 3."""

    def get_tag(self):
        python, abi, platform_tag = super().get_tag()
        return (
            (python, abi, platform_tag) if host_missing() is None else ("py3", "none", platform_tag)
        )


setup(
    ext_modules=[Extension("varemb._C_cpu", sources=[])],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
