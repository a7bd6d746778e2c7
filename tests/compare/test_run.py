"""The command: folders, tables, cells that are finished, stopped or broken."""

import pytest

from varemb import experiment
from varemb.compare import cells, run
from varemb.files import load_json
from varemb.plan import SizePlan
from varemb.runs import open_run
from varemb.search import Mde, training

METHODS = ("--methods", "fde,uniform,mde,ras,autodim-s,autodim", "--seeds", "2")


def measures(out):
    """What the finished cells in a folder decided, times aside."""
    found = [load_json(path) for path in sorted(out.glob("*/metrics.json"))]
    return {
        (cell["method"], cell["seed"]): (cell["metrics"], cell["params"], cell["dims"])
        for cell in found
    }


def count_evaluations(compare, out, methods, monkeypatch) -> int:
    evaluate, made = training.evaluate, []
    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", lambda *args: made.append(None) or evaluate(*args))
        assert compare(out, *methods) == 0
    return len(made)


def forbid(monkeypatch):
    def fail(*args, **options):
        raise AssertionError("a finished cell is run again")

    monkeypatch.setattr(cells, "_run", fail)


@pytest.fixture(scope="module")
def compared(tmp_path_factory, compare):
    out = tmp_path_factory.mktemp("compare") / "a"
    assert compare(out, *METHODS, "--stability") == 0
    return out


def test_the_tables_and_a_folder_per_cell_are_written(compared):
    record = load_json(compared / "comparison.json")
    assert [s["method"] for s in record["summary"]] == METHODS[1].split(",")
    assert all(s["seeds"] == [0, 1] for s in record["summary"])
    assert record["failed"] == []
    for cell in record["cells"]:
        folder = compared / f"wide-deep-{cell['method']}-seed{cell['seed']}"
        assert load_json(folder / "metrics.json") == cell
        plan = SizePlan.load(folder / "plan.safetensors")
        assert cell["params"] == plan.num_params
        assert cell["bytes"]["weights"] == 4 * cell["params"]
        assert cell["seconds"] == cell["search_seconds"] + cell["train_seconds"]
        assert cell["dims"] == {name: plan[name].mean() for name in plan}
    assert (compared / "comparison.png").read_bytes().startswith(b"\x89PNG")
    text = (compared / "comparison.md").read_text()
    assert "| method | seeds | AUC | logloss | numbers |" in text
    assert "## Stability of the fields' dims over seeds" in text


def test_methods_are_what_they_are_called(compared):
    found = measures(compared)
    for seed in (0, 1):
        _, full, _ = found["fde", seed]
        assert full == 56 * 4
        _, numbers, _ = found["autodim", seed]
        assert found["uniform", seed][1] == numbers
        options = {
            name: load_json(compared / f"wide-deep-{name}-seed{seed}" / "options.json")
            for name in ("autodim", "autodim-s")
        }
        assert options["autodim"]["--autodim-joint"] is False
        assert options["autodim-s"]["--autodim-joint"] is True
        assert options["autodim"]["--candidates"] == [2, 4]


def test_finished_cells_are_not_run_again(compared, compare, monkeypatch, capsys):
    before = measures(compared)
    forbid(monkeypatch)
    assert compare(compared, *METHODS) == 0
    assert measures(compared) == before
    assert capsys.readouterr().out.count("finished before") == 12


def test_another_method_runs_only_its_own_cells(compared, compare, capsys):
    assert compare(compared, "--methods", "fde,autodim-ad-1:1", "--seeds", "2") == 0
    out = capsys.readouterr().out
    assert out.count("finished before") == 2
    assert "cell 2 of 3: wide-deep, AutoDim AD-1, seed 0" in out


def test_a_grid_of_one_point_is_another_cell(compare, tmp_path, capsys):
    words = ["--methods", "fde", "--seeds", "1", "--tune", "--tune-weight-decay", "0"]
    assert compare(tmp_path / "one", *words, "--tune-lr", "0.05") == 0
    assert compare(tmp_path / "one", *words, "--tune-lr", "0.001") == 1
    assert "was started with --tune-lr [0.05], got" in capsys.readouterr().out


def test_what_comes_from_the_training_has_no_option_of_its_own(compare, tmp_path, capsys):
    for words in (["darts", "--darts-lr", "0.5"], ["autoemb", "--autoemb-max-epochs", "3"]):
        with pytest.raises(SystemExit):
            compare(tmp_path / "own", "--methods", *words)
        assert f"unknown option {words[1]}" in capsys.readouterr().err


def test_other_options_are_refused_by_name(compared, compare, capsys):
    before = (compared / "comparison.md").read_text()
    assert "| method |" in before
    assert compare(compared, "--methods", "fde", "--seeds", "1", "--lr", "0.01") == 1
    assert "was started with --lr 0.005, got 0.01" in capsys.readouterr().out
    assert load_json(compared / "wide-deep-fde-seed0" / "metrics.json")["lr"] == 0.005
    assert (compared / "comparison.md").read_text() == before


def test_a_broken_cell_is_reported_and_repaired(compared, compare, tmp_path, monkeypatch, capsys):
    methods = ("--methods", "fde,mde,ras", "--seeds", "2")

    def broken(self, *args, **options):
        raise RuntimeError("out of paper")

    with monkeypatch.context() as patch:
        patch.setattr(Mde, "fit", broken)
        assert compare(tmp_path / "b", *methods) == 1
    out = capsys.readouterr().out
    assert out.count("failed: RuntimeError: out of paper") == 2
    record = load_json(tmp_path / "b" / "comparison.json")
    assert [s["method"] for s in record["summary"]] == ["fde", "ras"]
    assert record["failed"] == [
        f"wide-deep-mde-seed{seed}: RuntimeError: out of paper" for seed in (0, 1)
    ]
    assert compare(tmp_path / "b", *methods) == 0
    assert capsys.readouterr().out.count("finished before") == 4
    whole = measures(compared)
    assert measures(tmp_path / "b") == {
        key: whole[key] for key in whole if key[0] in ("fde", "mde", "ras")
    }


def test_a_cell_that_another_process_works_on_fails_and_the_others_go_on(compare, tmp_path, capsys):
    folder = tmp_path / "l" / "wide-deep-fde-seed0"
    with open_run(folder, {}, resume=False):
        assert compare(tmp_path / "l", "--methods", "fde,mde", "--seeds", "1") == 1
    assert f"failed: ValueError: another process works in {folder}" in capsys.readouterr().out
    assert load_json(folder / "options.json") == {}
    assert (tmp_path / "l" / "wide-deep-mde-seed0" / "metrics.json").exists()


def test_a_cell_whose_need_failed_says_so(compare, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "make_config", lambda method, *rest: 1 / 0)
    assert compare(tmp_path / "c", "--methods", "uniform,autodim", "--seeds", "1") == 1
    assert "needs the budget of wide-deep-autodim-seed0, which failed" in capsys.readouterr().out


@pytest.mark.parametrize("calls", [2, 4, 7])
def test_a_stopped_comparison_goes_on_to_the_same_result(
    compared, compare, tmp_path, monkeypatch, capsys, calls
):
    methods = ("--methods", "ras,autodim", "--seeds", "1")
    evaluate, made = training.evaluate, []

    def stop(*args):
        made.append(None)
        if len(made) == calls:
            raise KeyboardInterrupt
        return evaluate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", stop)
        assert compare(tmp_path / "d", *methods) == 130
    error = capsys.readouterr().err
    assert "stopped; continue with: varemb compare --data ml-1m" in error
    assert "--resume" not in error
    assert count_evaluations(compare, tmp_path / "d", methods, monkeypatch) == (
        count_evaluations(compare, tmp_path / "whole", methods, monkeypatch) - (calls - 1)
    )
    whole = measures(compared)
    assert measures(tmp_path / "d") == {(name, 0): whole[name, 0] for name in ("ras", "autodim")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "fde,autodin"], "no method 'autodin', there are"),
        (["--methods", "autodin"], "did you mean autodim?"),
        (["--methods", "fde", "--model", "fm,dfm"], "no model 'dfm'"),
        (["--methods", "fde,fde:2"], "the method fde is given twice"),
        (["--methods", "fde:x"], "the seeds of fde must be whole numbers"),
        (["--methods", "uniform"], "uniform takes the numbers of autodim, which has no seed 0"),
        (["--methods", "uniform:2,autodim:1"], "which has no seed 1 here"),
        (["--methods", "fde", "--seeds", "3,3"], "distinct seeds"),
        (["--methods", "fde", "--candidates", "4,2"], "--candidates must be positive and"),
        (["--methods", "fde", "--candidates", "4,4096"], "--candidates must be at most 2048"),
        (["--methods", "fde", "--f-sweep", "0,1"], "--f-sweep needs distinct values"),
        (["--methods", "fde", "--lr", "-1"], "training: --lr must be finite and at least 0"),
        (["--methods", "fde", "--lr", "0"], "training: --lr must be above 0"),
        (["--methods", "fde", "--weight-decay", "inf"], "--weight-decay must be finite"),
        (["--methods", "fde", "--init-std=-1"], "training: --init-std must be finite"),
        (["--methods", "fde", "--tune", "--tune-lr=1,-1"], "training: --tune-lr must be finite"),
        (["--methods", "fde,ras", "--ras-trials", "0"], "RaS: --ras-trials must be at least 1"),
        (["--methods", "fde,autodim", "--autodim-variant", "ad-9"], "--autodim-variant must be"),
        (["--methods", "autodim", "--autodim-theta-lr", "inf"], "--autodim-theta-lr must be"),
        (["--methods", "nis", "--nis-budget", "2"], "NIS: --nis-budget must be in (0, 1], got 2"),
        (["--methods", "dpq", "--dpq-groups", "3"], "DPQ: --dpq-groups must divide the width 4"),
        (["--methods", "mgqe", "--mgqe-head", "0"], "MGQE: --mgqe-head must be in (0, 1]"),
        (["--methods", "pep", "--pep-target", "0"], "PEP: --pep-target must be in (0, 1]"),
        (["--methods", "optembed", "--optembed-mutation", "2"], "--optembed-mutation must be in"),
        (["--methods", "darts", "--darts-f", "0"], "DARTS: --darts-f must be at least 1"),
        (["--methods", "autoemb", "--autoemb-hidden", "0"], "AutoEmb: --autoemb-hidden must be"),
        (["--methods", "uniform", "--uniform-share", "2"], "uniform: --uniform-share must be in"),
        (["--methods", "mde", "--mde-bins", "0"], "MDE: --mde-bins must be at least 1"),
        (["--methods", "fde,ras", "--nis-budget", "1"], "--nis-budget is not for fde, ras; leave"),
        (["--methods", "fde", "--uniform-share", "0.5"], "--uniform-share is not for fde; leave"),
        (["--methods", "autodim-ad-1", "--autodim-variant", "ad-2"], "--autodim-variant is not"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(compare, tmp_path, capsys, words, message):
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(experiment.DATA, "ml-1m")  # would fail, were it read
        patch.setitem(experiment.DATA, "ml-1m", None)
        assert compare(tmp_path / "e", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "e").exists()
