"""setup.py: what it finds, for which GPUs it compiles, when it compiles again, what it ships."""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
import setuptools

SETUP = Path(__file__).parents[1] / "setup.py"
EXTENSION = setuptools.Extension("varemb._C_cpu", sources=[])
COMPILER = """
import sys
arguments = sys.argv[1:]
open(arguments[arguments.index("-o") + 1], "a").write("compiled ")
print("ptxas says", file=sys.stderr)
"""


@pytest.fixture
def setup(monkeypatch):
    """setup.py's functions, without an install; environment variables are set by the tests."""
    names = ("VAREMB_BUILD", "VAREMB_CUDA_ARCH_LIST", "TORCH_CUDA_ARCH_LIST", "CUDACXX", "CXX")
    for name in (*names, "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)

    def load(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return runpy.run_path(str(SETUP))

    return load


def test_architectures_asked_for_become_flags(setup):
    functions = setup(VAREMB_CUDA_ARCH_LIST="8.0;9.0a 10.0+PTX", TORCH_CUDA_ARCH_LIST="7.5")
    assert functions["architectures"]() == ["8.0", "9.0a", "10.0+PTX"]
    assert [flag for flag in functions["code_flags"]() if flag != "-gencode"] == [
        "arch=compute_80,code=sm_80",
        "arch=compute_90a,code=sm_90a",
        "arch=compute_100,code=sm_100",
        "arch=compute_100,code=compute_100",
    ]
    assert setup(TORCH_CUDA_ARCH_LIST="7.5")["architectures"]() == ["8.0", "9.0a", "10.0+PTX"]


def test_an_architecture_that_is_none_is_refused(setup):
    functions = setup(VAREMB_CUDA_ARCH_LIST="Hopper")
    with pytest.raises(RuntimeError, match=r"look like 9\.0 or 9\.0\+PTX, got 'Hopper'"):
        functions["code_flags"]()


def test_without_nvcc_the_reason_is_said(setup, monkeypatch):
    functions = setup()
    found = {"g++": "g++"}
    monkeypatch.setattr("shutil.which", lambda name: found.get(name))
    assert functions["cuda_missing"]().startswith("nvcc was not found when varemb was installed")
    assert functions["cpu_missing"]() is None
    found["/usr/local/cuda/bin/nvcc"] = "there"
    assert functions["nvcc"]() == "there" and functions["cuda_missing"]() is None
    assert functions["host_missing"]() is None
    found.clear()
    reason = "no C++ compiler (set CXX, or install g++)"
    assert functions["cpu_missing"]() == functions["host_missing"]() == reason


def test_without_pybind11_or_python_headers_only_the_host_module_is_missing(setup, monkeypatch):
    functions = setup()
    find_spec = importlib.util.find_spec
    hidden = {"pybind11"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in hidden else find_spec(name)
    )
    assert functions["host_missing"]().startswith("pybind11 was not installed where varemb was")
    assert functions["cpu_missing"]() is None
    hidden.clear()
    assert functions["host_missing"]() is None
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    assert functions["host_missing"]() == (
        "Python.h was not found when varemb was built (install python3-dev)"
    )


def test_a_wheel_with_the_host_module_is_for_one_python(setup):
    def tag(**environment):
        functions = setup(**environment)
        command = functions["Wheel"](setuptools.Distribution({"ext_modules": [EXTENSION]}))
        command.finalize_options()
        return command.get_tag()

    own = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert tag()[:2] == (own, own)
    assert tag(VAREMB_BUILD="python")[:2] == ("py3", "none")


def test_only_libraries_of_this_python_are_counted(setup, tmp_path):
    functions = setup()
    own = functions["HOST_NAME"]
    for name in ("_C_cpu_avx2.so", own, "_host.cpython-20-other.so", "_host.py"):
        (tmp_path / name).touch()
    assert [path.name for path in functions["found"](tmp_path)] == ["_C_cpu_avx2.so", own]


@pytest.mark.parametrize("build", ["auto", "cpu"])
def test_a_host_module_that_fails_to_compile_is_said_or_raised(setup, build, tmp_path, monkeypatch):
    functions = setup(VAREMB_BUILD=build)
    scope = functions["BuildNative"].build_extension.__globals__

    def fails(target):
        raise subprocess.CalledProcessError(1, "g++", stderr="x.cpp: error: no such thing")

    for name in ("build_cpu", "build_cuda"):
        monkeypatch.setitem(scope, name, lambda target: None)
    monkeypatch.setitem(scope, "build_host", fails)
    command = functions["BuildNative"](setuptools.Distribution())
    command.build_lib = str(tmp_path)
    if build == "cpu":
        with pytest.raises(RuntimeError, match=r"cannot build varemb\._host: .*no such thing"):
            command.build_extension(EXTENSION)
    else:
        command.build_extension(EXTENSION)
        facts = json.loads((tmp_path / "varemb" / "build_info.json").read_text())
        assert facts["host_missing"] == "the compiler failed: x.cpp: error: no such thing"
        assert facts["cpu_missing"] is None


def test_the_source_archive_holds_all_native_sources(tmp_path):
    root = SETUP.parent
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    command += ["sdist", "--dist-dir", str(tmp_path), "--formats", "tar"]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    native = {
        path.relative_to(root).as_posix() for path in (root / "csrc").rglob("*") if path.is_file()
    }
    assert {"csrc/host/module.cpp", "csrc/checks.h"} <= native <= names


@pytest.mark.parametrize(("build", "cpu"), [("python", "pure-Python"), ("cpu", None)])
def test_what_was_not_asked_for_is_not_built(setup, build, cpu):
    functions = setup(VAREMB_BUILD=build)
    assert f"VAREMB_BUILD={build}" in functions["cuda_missing"]() or build == "python"
    assert functions["cuda_missing"]() is not None
    assert (functions["cpu_missing"]() is None) == (cpu is None)


@pytest.mark.parametrize(
    ("folder", "file", "beside"), [("cuda", "op.cu", "op.cuh"), ("host", "module.cpp", "map.h")]
)
@pytest.mark.parametrize("above", [False, True])
def test_a_file_is_compiled_again_only_when_it_must(
    setup, tmp_path, monkeypatch, folder, file, beside, above
):
    compile_object = setup()["compile_object"]
    monkeypatch.setitem(compile_object.__globals__, "ROOT", tmp_path)
    monkeypatch.setitem(compile_object.__globals__, "OBJECTS", tmp_path / "objects")
    compiler, source = tmp_path / "compiler.py", tmp_path / "csrc" / folder / file
    source.parent.mkdir(parents=True)
    header = tmp_path / "csrc" / "rows.h" if above else source.with_name(beside)
    for path, text in ((compiler, COMPILER), (source, "kernel"), (header, "device")):
        path.write_text(text)
        os.utime(path, (1, 1))

    def compiled(*flags):
        out = Path(compile_object(source, folder, [sys.executable, str(compiler), *flags]))
        assert out.with_suffix(".log").read_text() == "ptxas says\n"
        return out.read_text().count("compiled")

    assert [compiled("-a"), compiled("-a")] == [1, 1]
    assert [compiled("-b"), compiled("-b")] == [2, 2]  # other flags
    os.utime(header, (1e10, 1e10))
    assert compiled("-b") == 3
