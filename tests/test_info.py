"""build_info: says what runs and why something does not."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import varemb
from varemb import _native
from varemb.bpr_sampler import BprSampler
from varemb.id_map import IdMap
from varemb.ops import schemas
from varemb.ops.backend import BACKENDS, PREFERENCE, choose, why_not


def test_build_info_names_every_backend():
    info = varemb.build_info()
    assert info["backends"]["reference"] == "available"
    assert set(info["backends"]) == {"cpu", "cuda", "triton", "reference"}
    assert info["torch"] and info["cpu_capability"] in ("avx512", "avx2", "default")


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        ("8.0;9.0;10.0+PTX", (9, 0), True),
        ("8.0;9.0;10.0+PTX", (8, 9), True),
        ("8.0;9.0;10.0+PTX", (7, 5), False),
        ("8.0;9.0;10.0+PTX", (12, 0), True),
        ("8.0;9.0", (12, 0), False),
        ("8.6", (8, 0), False),
        ("9.0a", (9, 0), True),
        ("9.0a", (10, 0), False),
    ],
)
def test_kernels_for_other_gpus_are_refused_with_a_reason(built, capability, runs, monkeypatch):
    monkeypatch.setattr(_native, "build_facts", lambda: {"cuda_architectures": built})
    reason = _native.why_not_on_gpu(capability)
    assert reason is None if runs else f"built for GPUs of {built}, this one is" in reason


@pytest.mark.parametrize(
    ("built", "driver", "reason"),
    [
        ("Cuda compilation tools, release 13.0, V13.0.88", 13000, None),
        ("Cuda compilation tools, release 12.8, V12.8.93", 12040, None),  # of one major version
        ("Cuda compilation tools, release 12.8, V12.8.93", 13010, None),
        ("Cuda compilation tools, release 13.0, V13.0.88", 12080, "built by nvcc 13, .* CUDA 12.8"),
        (None, 12080, None),
    ],
)  # fmt: skip
def test_an_older_driver_is_refused_with_a_reason(built, driver, reason, monkeypatch):
    monkeypatch.setattr(_native, "build_facts", lambda: {"nvcc": built})
    found = _native.why_not_on_driver(driver)
    assert found is None if reason is None else re.search(reason, found)


def test_every_backend_that_cannot_run_has_a_reason():
    for backend in BACKENDS:
        for device in PREFERENCE:
            reason = why_not(backend, device)
            if reason is None:
                assert choose(backend, device) == backend
            else:
                with pytest.raises(RuntimeError, match=re.escape(reason)):
                    choose(backend, device)
    assert why_not("cuda", "cpu") == "backend 'cuda' runs on cuda tensors, got cpu"
    assert why_not("cpu", "cuda") == "backend 'cpu' runs on cpu tensors, got cuda"
    if not torch.cuda.is_available():
        assert choose(None, "cuda") == "reference" and why_not("triton", "cuda") is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled kernels run here")
def test_triton_needs_its_interpreter_on_the_cpu():
    """An explicit backend raises with the reason; the automatic choice never takes it."""
    code = (
        "import torch, varemb\n"
        "table = varemb.VarEmbedding(4, 2, backend='triton')\n"
        "try: table(torch.tensor([1]))\n"
        "except RuntimeError as error: print(error)"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert b"TRITON_INTERPRET=1 before varemb is imported" in run.stdout, run.stderr
    assert choose(None, "cpu") in ("cpu", "reference")


def test_every_operation_is_registered_with_every_backend():
    """In the namespace of a backend that runs, no operation is missing."""
    keys = {"cpu": "CPU", "cuda": "CUDA"}
    for backend in BACKENDS:
        device = backend if backend in keys else "cpu"
        if why_not(backend, device) is None:
            name = {"triton": "varemb_triton", "reference": "varemb_reference"}.get(
                backend, "varemb"
            )
            key = keys.get(backend, "CompositeExplicitAutograd")
            for operation in schemas.SCHEMAS:
                if not operation.endswith("_trained"):
                    has = torch._C._dispatch_has_kernel_for_dispatch_key
                    assert has(f"{name}::{operation}", key), f"{backend} lacks {operation}"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ("{}", "it was not built for this Python"),
        ('{"host_missing": "pybind11 was not installed"}', "pybind11 was not installed"),
    ],
)
def test_without_the_host_module_its_users_say_why(facts, reason, tmp_path, monkeypatch):
    (tmp_path / "build_info.json").write_text(facts)
    (tmp_path / "_host.cpython-20-other.so").touch()  # of another Python
    monkeypatch.setattr(_native, "_FOLDER", tmp_path)
    assert varemb.build_info()["host_module"].startswith(reason)
    one = np.array([0])
    for use in (IdMap, lambda: BprSampler(one, one, 1, 2, seed=0)):
        with pytest.raises(ImportError, match=f"^varemb._host: {reason}, then pip install"):
            use()


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
