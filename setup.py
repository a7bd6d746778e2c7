"""Builds the native parts of varemb; without torch or a compiler, a pure-Python install.

VAREMB_BUILD=auto (default) builds what it can and says what it could not; python builds nothing;
cpu fails loudly when the CPU libraries cannot be built. Nothing here looks at the devices of the
machine that builds.
"""

import importlib.util
import json
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
STABLE_ABI = "0x020b000000000000"  # torch 2.11: one binary serves it and every later torch
COMMON = [
    "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off",
    f"-DTORCH_TARGET_VERSION={STABLE_ABI}",
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


def torch_folder():
    """The installed torch, found without importing it (a second instead of several)."""
    spec = importlib.util.find_spec("torch")
    return Path(spec.submodule_search_locations[0]) if spec else None


def missing():
    """Why the CPU libraries cannot be built here, or None."""
    if os.environ.get("VAREMB_BUILD") == "python":
        return "VAREMB_BUILD=python asked for a pure-Python install"
    if torch_folder() is None:
        return "torch is not installed where the build runs (pip install --no-build-isolation .)"
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return "no C++ compiler (set CXX, or install g++)"
    return None


class BuildNative(build_ext):
    """Compiles csrc/cpu once per instruction set, two files at a time."""

    def build_extension(self, ext):
        reason = missing()
        target = self.target()
        target.mkdir(parents=True, exist_ok=True)
        if reason is None:
            try:
                self.build_cpu(target)
            except subprocess.CalledProcessError as error:
                reason = f"the compiler failed: {error.stderr.strip().splitlines()[0]}"
        if reason is not None:
            if os.environ.get("VAREMB_BUILD", "auto") not in ("auto", "python"):
                raise RuntimeError(f"varemb: cannot build the native CPU kernels: {reason}")
            print(f"varemb: PURE-PYTHON INSTALL, slow reference kernels only: {reason}")
        (target / "build_info.json").write_text(json.dumps(self.describe(reason), indent=1))

    def build_cpu(self, target):
        machine_is_x86 = platform.machine().lower() in ("x86_64", "amd64")
        jobs = [
            (source, capability)
            for capability in (CAPABILITIES if machine_is_x86 else ["default"])
            for source in sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
        ]
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
            objects = list(pool.map(lambda job: self.compile(*job), jobs))
        libraries = torch_folder() / "lib"
        for capability in dict.fromkeys(capability for _, capability in jobs):
            own = [str(o) for o, (_, c) in zip(objects, jobs, strict=True) if c == capability]
            library = target / f"_C_cpu_{capability}.so"
            linked = [f"-L{libraries}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"]
            self.call(["-shared", *own, "-o", str(library), *linked])

    def compile(self, source, capability):
        out = ROOT / "build" / "objects" / capability / f"{source.stem}.o"
        out.parent.mkdir(parents=True, exist_ok=True)
        headers = [*(ROOT / "csrc").glob("*.h"), *source.parent.glob("*.h"), Path(__file__)]
        if out.exists() and all(
            out.stat().st_mtime > f.stat().st_mtime for f in [source, *headers]
        ):
            return out
        flags = CAPABILITIES[capability]
        self.call(
            [
                *COMMON,
                *flags,
                "-isystem",
                str(torch_folder() / "include"),
                "-c",
                str(source),
                "-o",
                str(out),
            ]
        )
        return out

    def call(self, arguments):
        command = [os.environ.get("CXX", "g++"), *arguments]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            print(error.stderr)
            raise

    def describe(self, reason):
        """What the install was built with; `varemb info` prints it."""
        compiler = os.environ.get("CXX", "g++")
        version = None
        if shutil.which(compiler):
            line = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
            version = line.splitlines()[0] if line else None
        return {"cpu_missing": reason, "compiler": version, "stable_abi": STABLE_ABI}

    def get_outputs(self):
        return [
            str(f) for f in [*self.target().glob("_C_cpu_*.so"), self.target() / "build_info.json"]
        ]

    def target(self):
        return Path(self.build_lib) / "varemb"

    def copy_extensions_to_source(self):
        """Editable installs run the package from its sources: the libraries go beside them."""
        for built in self.get_outputs():
            shutil.copy2(built, ROOT / "varemb")


class StableWheel(bdist_wheel):
    """The libraries call no Python, so a wheel serves every Python 3."""

    def get_tag(self):
        _, _, platform_tag = super().get_tag()
        return "py3", "none", platform_tag


setup(
    ext_modules=[Extension("varemb._C_cpu", sources=[])],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": StableWheel},
)
