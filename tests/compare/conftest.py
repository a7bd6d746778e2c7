"""A comparison of seconds: generated clicks in the place of MovieLens."""

import pytest
import torch

from varemb import experiment
from varemb.cli import main
from varemb.data import planted_clicks

for package in ("scipy", "sklearn", "tqdm"):
    pytest.importorskip(package, reason="comparing measures, tests and shows progress with it")

QUICK = [
    "--candidates", "2,4", "--batch-size", "200", "--lr", "0.005", "--max-epochs", "2",
]  # fmt: skip
OWN = {  # options that are refused without their method
    "ras": ["--ras-trials", "2"],
    "mde": ["--mde-alphas", "0.3", "--mde-bins", "1", "--mde-power-of-two", "no"],
    "autodim": ["--autodim-batch-size", "200", "--autodim-search-epochs", "1"],
}


@pytest.fixture(scope="module", autouse=True)
def clicks():
    """--data ml-1m reads generated clicks of three fields."""
    made = planted_clicks(1500, dims={"user": 4, "city": 2}, ids_per_field=20, scale=3.0)
    patch = pytest.MonkeyPatch()
    patch.setitem(experiment.DATA, "ml-1m", lambda folder: made)
    before = torch.get_num_threads()
    yield made
    torch.set_num_threads(before)
    patch.undo()


@pytest.fixture(scope="session")
def compare():
    """Runs `varemb compare` on them; returns the exit code."""

    def run(out, *words) -> int:
        methods = words[words.index("--methods") + 1]
        own = [word for name, more in OWN.items() if name in methods for word in more]
        task = ["--data", "ml-1m", "--data-dir", ".", "--out", str(out)]
        return main(["compare", *task, *QUICK, *own, *words])

    return run
