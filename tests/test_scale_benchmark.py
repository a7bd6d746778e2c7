"""The benchmark of large tables measures what it says, on tables that are small."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import bench_scale, timing
from benchmarks.bench_scale import DIMS, METHODS, Phases, Settings, measure_table
from benchmarks.large import make_batches, make_dims

CPU = torch.device("cpu")


def test_rows_have_12_numbers_on_average() -> None:
    dims = make_dims(100_000, DIMS, CPU)
    assert dims.dtype == torch.uint8 and dims.double().mean() == pytest.approx(12, abs=0.01)
    assert sorted(dims.unique().tolist()) == [4, 8, 16, 32, 64, 128]


@pytest.mark.parametrize(("zipf", "mean"), [(0.0, 12.0), (1.05, 95.9)])
def test_popular_rows_are_wide(zipf: float, mean: float) -> None:
    dims = make_dims(100_000, DIMS, CPU)
    (batch,) = make_batches(100_000, zipf, 4096, 20, 1, CPU)
    assert len(batch.indices) == 81_920 and batch.offsets[-1] == 81_920
    assert dims[batch.indices].double().mean() == pytest.approx(mean, rel=0.02)
    assert (batch.indices.unique().numel() > 50_000) == (zipf == 0)


def test_a_phase_sees_memory_that_is_given_back() -> None:
    phases = Phases()
    with phases("taken and given back"):
        torch.ones(30_000_000)
    with phases("kept"):
        kept = torch.ones(30_000_000)
    with phases("neither"):
        pass
    first, second, third = phases.found.values()
    assert first["extra_bytes"] > 110e6 and first["peak_bytes"] > 110e6
    assert second["extra_bytes"] < 10e6 and second["peak_bytes"] > 110e6
    assert third["extra_bytes"] < 10e6 and third["peak_bytes"] > 110e6 and kept[0] == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_table_is_measured(method: str, tmp_path: Path) -> None:
    settings = Settings(steps=3, bags=8, folder=str(tmp_path))
    record = measure_table(2400, method, settings)
    numbers, per_number = record["numbers"], {"bf16 Adam": 2, "fp32 row-wise Adagrad": 4}[method]
    assert record["mean_dim"] == pytest.approx(12, abs=0.1) and numbers == record["mean_dim"] * 2400
    state = 8 * numbers if "Adam" in method else 4 * 2400
    expected = {"weights": per_number * numbers, "index": 3200, "optimizer": state}
    assert {part: record["bytes"][part] for part in expected} == expected
    tensors = expected["weights"] + state + 2 * 2400  # and the dims
    assert tensors < record["disk_bytes"] < tensors + 3000
    assert list(record["phases"]) == [
        "build", "optimizer", "step, Zipf 1.05", "step, Zipf 0", "lookup, Zipf 1.05",
        "lookup, Zipf 0", "save", "plain write", "plain read", "load",
    ]  # fmt: skip
    assert record["step_ms, Zipf 0"]["stages"].keys() == {"forward", "backward", "optimizer"}
    assert record["step_ms, Zipf 0"]["seconds"] > 2e-3 * record["step_ms, Zipf 0"]["median"]
    assert record["lookup_ms, Zipf 0"]["median"] > 0 and not list(tmp_path.iterdir())


def test_a_table_that_is_not_loaded_is_noticed(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_scale, "load_state_into", lambda path, state: state)
    with pytest.raises(RuntimeError, match="the loaded table is not the saved one"):
        measure_table(100, "bf16 Adam", Settings(steps=1, bags=2, folder=str(tmp_path)))


def test_each_table_has_its_own_process(capsys, tmp_path: Path) -> None:
    out, plot = tmp_path / "scale.json", tmp_path / "scale.png"
    options = ["--rows", "500,3000", "--methods", "bf16 Adam", "--steps", "2", "--bags", "4"]
    folder = ["--folder", str(tmp_path), "--out", str(out), "--plot", str(plot)]
    assert bench_scale.main([*options, *folder]) == 0
    printed = capsys.readouterr().out
    assert "3,000" in printed and "weights MB" in printed
    written = json.loads(out.read_text())
    few, many = (table["step_ms, Zipf 1.05"]["median"] for table in written["tables"])
    assert f"a step at 3,000 over 500 rows: {many / few:.2f} x (Zipf 1.05), " in printed
    assert [table["rows"] for table in written["tables"]] == [500, 3000]
    assert written["settings"]["steps"] == 2 and "commit" in written["environment"]
    for table in written["tables"]:
        assert 0 <= table["peak_bytes"] < timing.resident_bytes("VmHWM")
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
