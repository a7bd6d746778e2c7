"""build_info: says what runs and why something does not."""

import subprocess
import sys

import varemb


def test_build_info_names_every_backend():
    info = varemb.build_info()
    assert info["backends"]["reference"] == "available"
    assert set(info["backends"]) == {"cpu", "reference"}
    assert info["torch"] and info["cpu_capability"] in ("avx512", "avx2", "default")


def test_without_the_compiled_part_everything_runs_on_the_reference(tmp_path):
    """A pure-Python install: the same package without its libraries."""
    program = (
        "import sys, pathlib, varemb._native as native\n"
        "native._FOLDER = pathlib.Path(sys.argv[1])\n"
        "import torch, varemb\n"
        "info = varemb.build_info()\n"
        "assert 'was not built' in info['backends']['cpu'], info\n"
        "table = varemb.VarEmbedding(10, 4, dims=2)\n"
        "optimizer = varemb.optim.Adam(table.parameters())\n"
        "table(torch.tensor([1, 1, 2])).sum().backward(); optimizer.step()\n"
        "try:\n"
        "    varemb.VarEmbedding(10, 4, backend='cpu')(torch.tensor([1]))\n"
        "except RuntimeError as error:\n"
        "    assert 'was not built' in str(error)\n"
        "else:\n"
        "    raise SystemExit('an explicit backend fell back')\n"
    )
    code = f"import importlib.util, sys\n{program}"
    patched = code.replace("import sys, pathlib, varemb._native as native\n", PATCH)
    run = subprocess.run(
        [sys.executable, "-c", patched, str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


# _native is loaded by the package's first import, so its folder is changed before it runs.
PATCH = (
    "import sys, pathlib, importlib.util, types\n"
    "package = importlib.util.find_spec('varemb')\n"
    "sys.modules['varemb'] = module = types.ModuleType('varemb')\n"
    "module.__path__ = list(package.submodule_search_locations)\n"
    "import varemb._native as native\n"
    "del sys.modules['varemb']\n"
)
