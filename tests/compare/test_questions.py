"""Tuning, and the paper's questions: transfer, f, stability, importance."""

import pytest

from varemb.files import load_json
from varemb.plan import SizePlan


def cells_of(out):
    return load_json(out / "comparison.json")["cells"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, compare):
    out = tmp_path_factory.mktemp("compare") / "tuned"
    words = ["--methods", "fde,dpq,darts,autodim", "--seeds", "2", "--dpq-centroids", "4", "--tune"]
    words += ["--dpq-groups", "2"]
    assert compare(out, *words, "--tune-lr", "0.0001,0.02", "--tune-weight-decay", "0,0.001") == 0
    return out


def test_every_method_is_tuned_on_the_same_grid_by_validation(tuned):
    first = [cell for cell in cells_of(tuned) if cell["seed"] == 0]
    assert len(first) == 4
    for cell in first:
        tried = {(each["lr"], each["weight_decay"]): each["auc"] for each in cell["tuned"]}
        assert list(tried) == [(0.0001, 0), (0.0001, 0.001), (0.02, 0), (0.02, 0.001)]
        assert tried[cell["lr"], cell["weight_decay"]] == max(tried.values())
        assert cell["valid"]["auc"] == max(tried.values())
        assert len(set(tried.values())) > 1


def test_other_seeds_take_the_choice_of_the_first(tuned):
    choice = {c["method"]: (c["lr"], c["weight_decay"]) for c in cells_of(tuned) if c["seed"] == 0}
    for cell in cells_of(tuned):
        assert (cell["lr"], cell["weight_decay"]) == choice[cell["method"]]
        if cell["seed"] == 1:
            assert "tuned" not in cell
            options = load_json(tuned / f"wide-deep-{cell['method']}-seed1" / "options.json")
            assert (options["--lr"], options["--weight-decay"]) == choice[cell["method"]]


def test_a_table_that_is_no_plan_is_measured_as_stored(tuned):
    (dpq, _) = [cell for cell in cells_of(tuned) if cell["method"] == "dpq"]
    assert dpq["dims"] is None
    assert dpq["params"] < dpq["params_full"] == 56 * 4
    assert not (tuned / "wide-deep-dpq-seed0" / "plan.safetensors").exists()


def test_a_method_that_chooses_while_it_trains_searches_once_per_setting(tuned):
    (darts, _) = [cell for cell in cells_of(tuned) if cell["method"] == "darts"]
    assert darts["train_seconds"] == 0.0
    assert darts["params"] > darts["params_full"]  # served with all candidates' numbers
    folder = tuned / "wide-deep-darts-seed0" / "checkpoint"
    assert len(list(folder.glob("setting*/darts.safetensors"))) == 4
    folder = tuned / "wide-deep-autodim-seed0" / "checkpoint"
    assert len(list(folder.glob("setting*/autodim.safetensors"))) == 1


def test_plans_of_one_model_are_trained_in_another(compare, tmp_path):
    words = ["--model", "nfm", "--methods", "fde,uniform,mde,dpq,autodim", "--dpq-groups", "2"]
    assert compare(tmp_path / "t", *words, "--seeds", "1", "--transfer-from", "fm") == 0
    found = {(cell["model"], cell["method"]): cell for cell in cells_of(tmp_path / "t")}
    assert set(found) == {
        ("fm", "fde"), ("fm", "uniform"), ("fm", "mde"), ("fm", "dpq"), ("fm", "autodim"),
        ("nfm", "fde"), ("nfm", "uniform"), ("nfm", "mde-from-fm"), ("nfm", "dpq"),
        ("nfm", "autodim-from-fm"),
    }  # fmt: skip
    for method in ("mde", "autodim"):
        source, other = found["fm", method], found["nfm", f"{method}-from-fm"]
        plans = [
            SizePlan.load(tmp_path / "t" / f"{name}-seed0" / "plan.safetensors")
            for name in (f"fm-{method}", f"nfm-{method}-from-fm")
        ]
        assert plans[0] == plans[1]
        assert other["params"] == source["params"]
        assert other["metrics"] != source["metrics"]
        assert (other["source"], other["search_seconds"]) == ("fm", 0.0)
    assert found["nfm", "uniform"]["params"] == found["fm", "autodim"]["params"]


def test_f_sweep_stability_and_importance_print_their_tables(compare, tmp_path, capsys, clicks):
    words = ["--methods", "fde,ras,autodim", "--seeds", "2", "--ras-trials", "1"]
    more = ["--f-sweep", "1,5", "--stability", "--importance"]
    assert compare(tmp_path / "q", *words, *more) == 0
    out = capsys.readouterr().out
    cells = cells_of(tmp_path / "q")
    sweep = [cell for cell in cells if cell["group"] == "f-sweep"]
    assert [(cell["method"], cell["seed"]) for cell in sweep] == [
        ("autodim-f1", 0), ("autodim-f5", 0), ("autodim-f1", 1), ("autodim-f5", 1),
    ]  # fmt: skip
    options = load_json(tmp_path / "q" / "wide-deep-autodim-f5-seed0" / "options.json")
    assert options["--autodim-f"] == 5
    singles = [cell for cell in cells if cell["group"] == "importance"]
    assert [list(cell["dims"]) for cell in singles] == [["user"], ["city"], ["hour"]]
    assert [cell["params"] for cell in singles] == [4 * rows for rows in clicks.cardinalities]
    titles = ["AutoDim by f; mean", "Stability of the fields' dims", "What a field tells alone"]
    places = [out.index(title) for title in titles]
    assert places == sorted(places)
    # none of them is a row of the main table
    summary = load_json(tmp_path / "q" / "comparison.json")["summary"]
    assert [each["method"] for each in summary] == ["fde", "ras", "autodim"]
