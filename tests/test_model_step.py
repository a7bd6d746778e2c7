"""The benchmark of DeepFM's step compares models that agree, and measures whole steps."""

import json

import pytest
import torch

from benchmarks import bench_model_step, timing
from benchmarks.bench_model_step import KINDS, Contender, make_clicks, make_plan


def test_models_with_the_same_mathematics_agree() -> None:
    assert sum(kind.twin is not None for kind in KINDS.values()) == 4
    bench_model_step.check_same(16)


@pytest.mark.parametrize("name", ["masked, SparseAdam", "padded, Adagrad"])
def test_a_model_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    twin = KINDS[name].twin
    forward = bench_model_step.PaddedFields.forward
    monkeypatch.setattr(
        bench_model_step.PaddedFields, "forward", lambda self, ids: forward(self, ids) * 1.2
    )
    monkeypatch.setattr(bench_model_step, "KINDS", {name: KINDS[name], twin: KINDS[twin]})
    with pytest.raises(RuntimeError, match=f"{name} and {twin} differ by"):
        bench_model_step.check_same(16)


@pytest.mark.parametrize("name", KINDS)
def test_a_step_in_parts_is_a_step(name: str) -> None:
    plan = make_plan([30, 1, 7], 4, 1 / 2)
    assert plan.num_params == 2 * 38
    first, second = make_clicks([30, 1, 7], 20, 2)
    assert first.ids.shape == (20, 3) and not torch.equal(first.ids, second.ids)
    parted, whole = (Contender(KINDS[name], plan, 4, {}, 0.0) for _ in range(2))
    before = [table.weight.detach().clone() for table in parted.tables]
    timing.run_once(parted.runner(), first)
    model = whole.model
    model.embedding, model.wide = whole.tables
    model.zero_grad()
    logits = model(first.ids)
    torch.nn.functional.binary_cross_entropy_with_logits(logits, first.labels).backward()
    whole.rest_optimizer.step()
    whole.table_optimizer.step()
    for mine, theirs, old in zip(parted.tables, whole.tables, before, strict=True):
        assert torch.equal(mine.weight, theirs.weight) and not torch.equal(mine.weight, old)
    pairs = zip(parted.model.deep.parameters(), model.deep.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_all_contenders_are_measured_and_written(capsys, tmp_path) -> None:
    out = tmp_path / "steps.json"
    sizes = ["--batch", "16", "8", "--width", "4", "--most-rows", "40", "--rounds", "2"]
    assert bench_model_step.main([*sizes, "--warmup", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert all(printed.count(f"\n{name} ") == 2 for name in KINDS)
    written = json.loads(out.read_text())
    assert "commit" in written["environment"]
    assert [step["name"] for step in written["steps"]] == [*KINDS, *KINDS]
    for step in written["steps"]:
        assert step["examples_per_second"] == pytest.approx(
            1e3 * step["batch"] / step["step_ms"]["median"]
        )
        assert all(ms > 0 for ms in step["parts_ms"].values()) and step["time_over"]["median"] > 0
    sizes_of = {step["name"]: step["tables_bytes"] for step in written["steps"]}
    jagged, padded = (sizes_of[name] for name in ("varemb jagged, Adam", "padded, SparseAdam"))
    assert jagged < padded / 1.5 and sizes_of["masked, SparseAdam"] > padded
