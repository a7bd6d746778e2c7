"""What the commands do, called from Python."""

from dataclasses import fields

import pytest

from varemb import experiment
from varemb.data import PLANTED_DIMS
from varemb.experiment import Place, run_demo, search_option, train_option
from varemb.files import load_json
from varemb.plan import SizePlan
from varemb.search import AutoDimConfig, TrainConfig

for package in ("sklearn", "tqdm"):
    pytest.importorskip(package, reason="training measures with scikit-learn and shows progress")


def test_every_option_has_a_name_of_its_own():
    names = [train_option(field.name) for field in fields(TrainConfig) if field.name != "seed"]
    names += [search_option(field.name) for field in fields(AutoDimConfig)]
    assert len(set(names)) == len(names)
    assert {"--lr", "--search-lr", "--theta-lr", "--lambda", "--candidates", "--seed"} <= set(names)


def test_a_comparison_says_what_the_first_has_more():
    first, second = (
        {
            "method": method, "metrics": {"auc": auc, "logloss": logloss}, "params": params,
            "bytes": {"weights": 4 * params, "index": 24, "unify": 0, "optimizer": 8 * params},
        }
        for method, auc, logloss, params in (("autodim", 0.81, 0.45, 18), ("fde", 0.8, 0.5, 78))
    )  # fmt: skip
    assert experiment._compare(first, second) == (
        "AutoDim against FDE: AUC +0.0100, logloss -0.0500, 76.9% of the numbers saved, "
        "25.0% of the bytes"
    )


def test_demo_compares_on_generated_clicks(tmp_path, capsys):
    results = run_demo(0, Place(tmp_path / "d"), rows=3000)
    assert [result["method"] for result in results] == ["autodim", "fde"]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    start = lines.index(["field", "dim", "found", "planted"])
    found = {line[0]: line[1:] for line in lines[start + 1 : start + 6]}
    plan = SizePlan.load(tmp_path / "d" / "plan.safetensors")
    assert {name: int(row[0]) for name, row in found.items()} == {n: plan[n][0] for n in plan}
    assert {name: int(row[1]) for name, row in found.items() if row[1:]} == PLANTED_DIMS
    assert load_json(tmp_path / "d" / "metrics.json")["planted"] == PLANTED_DIMS
    run_demo(0, Place(tmp_path / "d", resume=True), rows=3000)
    assert "holds this run, finished" in capsys.readouterr().out
    assert [result["metrics"] for result in results] == [
        result["metrics"] for result in run_demo(0, Place(None), rows=3000)
    ]
