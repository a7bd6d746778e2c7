"""build_info: says what runs and why something does not."""

import subprocess
import sys

import varemb


def test_build_info_names_every_backend():
    info = varemb.build_info()
    assert info["backends"]["reference"] == "available"
    assert set(info["backends"]) == {"cpu", "cuda", "triton", "reference"}
    assert info["torch"] and info["cpu_capability"] in ("avx512", "avx2", "default")


def test_without_the_compiled_part_everything_runs_on_the_reference(tmp_path):
    """A pure-Python install: the same package without its libraries."""
    run = subprocess.run(
        [sys.executable, "-c", PURE_PYTHON, str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


# The package's first import loads the libraries, so the loader's folder is changed before it.
PURE_PYTHON = """
import importlib.util, pathlib, sys, types
package = types.ModuleType("varemb")
package.__path__ = list(importlib.util.find_spec("varemb").submodule_search_locations)
sys.modules["varemb"] = package
import varemb._native as native
native._FOLDER = pathlib.Path(sys.argv[1])
del sys.modules["varemb"]

import torch, varemb
info = varemb.build_info()
assert "was not built" in info["backends"]["cpu"], info
table = varemb.VarEmbedding(10, 4, dims=2)
optimizer = varemb.optim.Adam(table.parameters())
before = table.to_dense()
table(torch.tensor([1, 1, 2])).sum().backward()
optimizer.step()
assert (table.to_dense() != before).any(1).tolist() == [False, True, True] + [False] * 7
try:
    varemb.VarEmbedding(10, 4, backend="cpu")(torch.tensor([1]))
except RuntimeError as error:
    assert "was not built" in str(error)
else:
    raise SystemExit("an explicit backend fell back")
"""
