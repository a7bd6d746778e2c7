"""setup.py: what it finds, for which GPUs it compiles, when it compiles again."""

import os
import runpy
import sys
from pathlib import Path

import pytest
import setuptools

SETUP = Path(__file__).parents[1] / "setup.py"
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
    found.clear()
    assert functions["cpu_missing"]() == "no C++ compiler (set CXX, or install g++)"


@pytest.mark.parametrize(("build", "cpu"), [("python", "pure-Python"), ("cpu", None)])
def test_what_was_not_asked_for_is_not_built(setup, build, cpu):
    functions = setup(VAREMB_BUILD=build)
    assert f"VAREMB_BUILD={build}" in functions["cuda_missing"]() or build == "python"
    assert functions["cuda_missing"]() is not None
    assert (functions["cpu_missing"]() is None) == (cpu is None)


def test_a_file_is_compiled_again_only_when_it_must(setup, tmp_path, monkeypatch):
    compile_object = setup()["compile_object"]
    monkeypatch.setitem(compile_object.__globals__, "ROOT", tmp_path)
    monkeypatch.setitem(compile_object.__globals__, "OBJECTS", tmp_path / "objects")
    compiler, source = tmp_path / "compiler.py", tmp_path / "csrc" / "cuda" / "op.cu"
    source.parent.mkdir(parents=True)
    header = source.with_suffix(".cuh")
    for path, text in ((compiler, COMPILER), (source, "kernel"), (header, "device")):
        path.write_text(text)
        os.utime(path, (1, 1))

    def compiled(*flags):
        out = Path(compile_object(source, "cuda", [sys.executable, str(compiler), *flags]))
        assert out.with_suffix(".log").read_text() == "ptxas says\n"
        return out.read_text().count("compiled")

    assert [compiled("-a"), compiled("-a")] == [1, 1]
    assert [compiled("-b"), compiled("-b")] == [2, 2]  # other flags
    os.utime(header, (1e10, 1e10))
    assert compiled("-b") == 3
