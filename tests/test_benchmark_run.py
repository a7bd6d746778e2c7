"""The run of all benchmarks: it measures, goes on where it stopped, and sums up."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import bench_overhead, peers, run
from benchmarks.cases import Batch, Case, Spec
from benchmarks.contenders import CaseResult, Settings
from benchmarks.peers import Lookup
from benchmarks.progress import Records, seconds_left
from benchmarks.summary import format_summary, show_time, summarize_case
from benchmarks.timing import run_once

SIZES = ["--rows", "500", "--bags", "16", "--dims", "power"]
ENVIRONMENT = {"cpu": "a", "commit": "b", "rounds": 2, "load": 0.5, "copy_gb_per_s": 9.0}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Green tests, few calls, and the keys of what is measured."""
    keys: list[str] = []

    def measure_case(bench: ModuleType, spec: Spec, settings: Settings) -> CaseResult:
        keys.append(f"{bench.OP}, Zipf {spec.zipf:g}")
        return original(bench, spec, settings)

    original = run.measure_case
    monkeypatch.setattr(run, "measure_case", measure_case)
    monkeypatch.setattr(run, "tests_pass", lambda op: True)
    monkeypatch.setattr(bench_overhead, "CALLS", 3)
    return keys


def test_run_measures_prints_and_writes(
    measured: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = tmp_path / "bench.json"
    assert run.main(["all", *SIZES, "--rounds", "2", "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "nn.EmbeddingBag + SparseAdam" in printed and "Zipf 1.05" in printed
    assert "met" not in printed.lower().split("lookup: power")[1]  # targets are for one case only
    assert "case 4 of 4 took " in printed and "about 0.0 minutes left" in printed
    results = json.loads(target.read_text())
    wanted = {"cpu", "cores", "caches", "versions", "commit", "memory_gb"}
    assert wanted <= results["environment"].keys()
    ops = ["lookup", "lookup_bag", "update", "overhead"]
    assert [case["op"] for case in results["cases"]] == ops
    assert results["cases"][-1]["spec"]["bags"] == results["cases"][-1]["spec"]["pooling"] == 1
    for case in results["cases"]:
        assert case["seconds"] > 0
        for block in case["blocks"]:
            assert block[0]["speedup"] is None and block[0]["time"]["median"] > 0
            assert all(line["reason"] or line["speedup"]["median"] > 0 for line in block[1:])
    summary = printed[printed.index("best of the others") :].splitlines()
    assert [line.split("  ")[0] for line in summary[1:7]] == [
        "VarEmbedding", "VarEmbeddingBag", "VarEmbeddingBag fused rowwise_adagrad",
        "VarEmbeddingBag fused adam", "VarEmbeddingBag fused adagrad", "VarEmbeddingBag fused sgd",
    ]  # fmt: skip
    assert "VarEmbedding, 1 index, no_grad" in summary[7] and len(summary) == 1 + 6 + 7 + 3


def test_bytes_are_over_a_padded_table_with_the_same_state(
    measured: list[str], tmp_path: Path
) -> None:
    target = tmp_path / "bench.json"
    arguments = ["update", *SIZES, "--width", "8", "--rounds", "1", "--json", str(target)]
    assert run.main(arguments) == 0
    (case,) = json.loads(target.read_text())["cases"]
    rowwise, adam, *_ = case["blocks"]
    assert rowwise[0]["padded_share"] == rowwise[0]["tensor_bytes"] / (500 * (8 + 1) * 4)
    assert adam[0]["padded_share"] == adam[0]["tensor_bytes"] / (500 * 3 * 8 * 4)
    names = {line["name"]: line for line in adam}
    assert names["nn.EmbeddingBag + SparseAdam"]["padded_share"] == 1
    assert names["dense nn.EmbeddingBag + Adam"]["padded_share"] == 1


def test_a_stopped_run_goes_on_with_what_is_missing(
    measured: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    target = tmp_path / "bench.json"
    both = ["--zipf", "0", "1.05", "--rounds", "1", "--json", str(target)]
    arguments = ["lookup_bag", *SIZES, *both]
    measure_case = run.measure_case

    def stop(bench: ModuleType, spec: Spec, settings: Settings) -> CaseResult:
        if spec.zipf > 0:
            raise KeyboardInterrupt
        return measure_case(bench, spec, settings)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "measure_case", stop)
        run.main(arguments)
    first = json.loads(target.read_text())
    assert len(first["cases"]) == 1 and measured == ["lookup_bag, Zipf 0"]
    capsys.readouterr()
    assert run.main([*arguments, "--resume"]) == 0
    assert measured == ["lookup_bag, Zipf 0", "lookup_bag, Zipf 1.05"]
    assert "1 of 2 cases are there already" in capsys.readouterr().out
    second = json.loads(target.read_text())
    assert second["cases"][0] == first["cases"][0] and len(second["cases"]) == 2
    assert second["environment"] == first["environment"]
    assert run.main([*arguments, "--resume", "--rounds", "2"]) == 1
    assert "--resume: bench.json has another rounds" in capsys.readouterr().err
    assert json.loads(target.read_text()) == second and len(measured) == 2


def test_records_are_on_the_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    records = Records(path, ENVIRONMENT)
    records.append({"key": "a", "op": "lookup"})
    assert json.loads(path.read_text())["cases"] == records.cases
    busier = ENVIRONMENT | {"load": 2.0, "copy_gb_per_s": 5.0}
    again = Records(path, busier, resume=True)
    assert again.has("a") and not again.has("b") and again.environment == ENVIRONMENT
    assert not Records(path, ENVIRONMENT).has("a")
    with pytest.raises(ValueError, match=r"--resume: records.json has another cpu, commit"):
        Records(path, ENVIRONMENT | {"cpu": "x", "commit": "y"}, resume=True)


def test_seconds_left_are_those_of_the_same_operations() -> None:
    assert seconds_left([], ["lookup"]) is None
    finished = [{"op": "lookup", "seconds": s} for s in (1.0, 3.0)]
    finished.append({"op": "update", "seconds": 20.0})
    assert seconds_left(finished, ["lookup", "update", "update"]) == 2 + 20 + 20
    assert seconds_left(finished, ["overhead"]) == 8
    assert seconds_left(finished, []) == 0


def line(name: str, ms: float | None, ratio: float | None = None) -> dict[str, Any]:
    time = None if ms is None else {"median": ms}
    return {
        "name": name,
        "time": time,
        "speedup": None if ratio is None else {"median": ratio},
        "padded_share": 0.35,
    }


def test_a_summary_shows_the_best_of_the_others_and_losses() -> None:
    won = [line("ours", 2.0), line("slow", 9.0, 4.5), line("good", 3.0, 1.5), line("none", None)]
    lost = [line("ours, fused", 0.0052), line("better", 0.004, 0.75)]
    alone = [line("ours alone", 1.0), line("none", None)]
    record = {"short": "case A", "blocks": [won, lost, alone]}
    best = summarize_case(record)[0]
    assert (best["best"], best["best_ms"], best["ratio"]) == ("good", 3.0, 1.5)
    _, *lines, count, _, _ = format_summary([record]).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "ours case A 2.00 ms good 3.00 ms 1.50 35%",
        "ours, fused case A 5.2 us better 4.0 us 0.75 35% LOSS",
        "ours alone case A 1.00 ms none could run 35%",
    ]
    assert count == "faster in 1, slower in 1"


def test_times_below_a_millisecond_are_microseconds() -> None:
    assert show_time(1.0) == "1.00 ms" and show_time(0.9994) == "999.4 us"


def test_a_call_of_one_index_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_overhead, "CALLS", 4)
    spec = Spec(dims="power", rows=300, bags=1, pooling=1)
    case = Case(spec)
    (batch,) = case.batches(1)
    adam = next(b for b in bench_overhead.blocks() if b.ours.optimizer == "adam")
    runner = adam.peers[0].build(case)
    run_once(runner, batch)
    weight, *state = runner.tensors()
    assert runner.calls == 4 and len(state) == 2
    moved = (weight - weight[batch.indices[0] - 1]).abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == batch.indices.tolist()
    forward = bench_overhead.blocks()[0].ours.build(case)
    assert forward.calls == 4
    run_once(forward, batch)


@pytest.mark.parametrize(("has_grad", "place"), [(False, 0), (True, 1)])
def test_overhead_forwards_want_gradients_or_not(has_grad: bool, place: int) -> None:
    seen = []
    case = Case(Spec(dims="power", rows=300, bags=1, pooling=1))

    def build(case: Case) -> Lookup:
        lookup = peers.padded_embedding(case)

        def call(batch: Batch) -> torch.Tensor:
            seen.append(lookup.call(batch))
            return seen[-1]

        return dataclasses.replace(lookup, call=call)

    run_once(bench_overhead._forward(build, has_grad)(case), case.batches(1)[0])
    assert len(seen) == bench_overhead.CALLS and seen[0].requires_grad == has_grad
    names = ("no_grad", "with grad")
    assert bench_overhead.blocks()[place].ours.name.endswith(names[place])


def test_pooling_makes_bags_so_that_a_call_stays_as_large() -> None:
    options = run._parser().parse_args(["lookup", "--pooling", "1", "100"])
    assert [(spec.pooling, spec.bags) for spec in run._chosen_specs(options)] == [
        (1, 81_920), (100, 819),
    ]  # fmt: skip
    options = run._parser().parse_args(["lookup", "--pooling", "5", "--bags", "7"])
    assert [spec.lookups for spec in run._chosen_specs(options)] == [35]


def test_all_operations_of_a_case_follow_each_other() -> None:
    options = run._parser().parse_args(["all"])
    cases = [(bench.OP, spec) for bench, spec in run._cases(options, list(run.BENCHES.values()))]
    assert [op for op, _ in cases[:5]] == ["lookup", "lookup_bag", "update", "overhead", "lookup"]
    assert cases[0][1] == cases[1][1] == cases[2][1] != cases[4][1]
    assert len(cases) == len(set(cases)) == 3 * 20 + 2


def test_options_that_cannot_be_met_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, reason in (
        (["--resume"], "--resume goes on with a file: --json FILE"),
        (["--plot", "x.png"], "--plot draws the targets' case, which is not among these"),
    ):
        with pytest.raises(SystemExit):
            run.main(["all", *SIZES, *arguments])
        assert reason in capsys.readouterr().err


def test_red_tests_give_no_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def tests_pass(op: str) -> bool:
        asked.append(op)
        return op != "update"

    monkeypatch.setattr(run, "tests_pass", tests_pass)
    for op, wanted in (("all", ["lookup", "lookup_bag", "update"]), ("update", ["update"])):
        asked.clear()
        assert run.main([op, "--quick"]) == 1
        printed = capsys.readouterr()
        assert "no numbers: the tests of update fail" in printed.err and printed.out == ""
        assert asked == wanted
    assert run.main(["overhead", "--quick"]) == 1
