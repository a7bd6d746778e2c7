"""`python -m benchmarks.gpu`, all of it that needs no GPU: its sections run on CPU tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import registers
from benchmarks.cases import Case, Facts, Spec, coalesce_bytes, key_of
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import billion, checks, timing
from benchmarks.gpu.operations import OPERATIONS, Sizes, contenders, measure_cases
from benchmarks.gpu.report import Results, to_markdown
from benchmarks.gpu.tables import OurTable, class_linears, padded_linear
from benchmarks.large import make_batches, make_dims, multiplier_of
from benchmarks.timing import Runner

CPU = torch.device("cpu")
TINY = Sizes(
    rows=400, width=32, bags=8, pooling=5, rounds=2, warmup=1, dims=("power", "equal"),
    zipfs=(1.05,), dtypes=(torch.float32,), copy_megabytes=1, billion_rows=3000,
)  # fmt: skip
ENVIRONMENT = {
    "gpu": "a CPU, for tests", "driver": "none", "versions": {"torch": "x"}, "commit": "c",
}  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "run.json", ENVIRONMENT, resume=False)


def run(results: Results, wanted: list[str], minutes: float = 10.0) -> int:
    backends = ["cpu", "reference"]
    return gpu.run_sections(wanted, results, TINY, CPU, backends, gpu.Deadline(minutes))


def test_without_a_gpu_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    target = tmp_path / "out.json"
    assert gpu.main(["--out", str(target)]) == 1
    assert "sees no GPU here; nothing was measured" in capsys.readouterr().out
    assert not target.exists()


def test_every_section_writes_what_it_found(results: Results) -> None:
    assert run(results, ["operations", "billion"]) == 0
    written = json.loads(results.path.read_text())
    assert written["environment"] == ENVIRONMENT
    records = written["sections"]["operations"]
    assert [record["op"] for record in records] == [*OPERATIONS, *OPERATIONS]
    for record in records:
        assert [line["name"] for line in record["lines"][:2]] == ["varemb cpu", "varemb reference"]
        assert len(record["lines"]) > 2
        for line in record["lines"]:
            assert "reason" not in line, line
            assert line["cold"]["ms"]["median"] > 0 and line["warm"]["ms"]["median"] > 0
            assert line["cold"]["copy_share"] > 0 and line["lookup_bytes"] > 0
        assert record["lines"][0]["cold"]["time_over_first"]["median"] == 1
    (table,) = written["sections"]["billion"]
    assert table["exact_bytes"] < table["uniform_bytes"] / 10
    text = results.path.with_suffix(".md").read_text()
    assert "### step adam: equal dims, Zipf 1.05, float32" in text
    assert "| varemb reference |" in text and "| 3,000 rows, float32 |" in text


def test_a_stopped_run_is_resumed(results: Results) -> None:
    assert run(results, ["operations"], minutes=0.0) == 0
    reason = "operations: 12 of 12 cases, out of time (--resume goes on)"
    assert results.sections["not_run"][-1] == reason
    first = next(measure_cases(TINY, CPU, ["cpu"], 1e9, lambda: True))
    results.append("operations", first)
    again = Results(results.path, ENVIRONMENT, resume=True)
    assert run(again, ["operations"]) == 0
    keys = [record["key"] for record in again.sections["operations"]]
    assert keys == [key_of(op, spec) for spec in TINY.specs() for op in OPERATIONS]
    assert again.sections["operations"][0] == json.loads(json.dumps(first))  # not measured again
    assert again.sections["not_run"] == []
    with pytest.raises(ValueError, match=r"--resume: run.json has another commit"):
        Results(results.path, ENVIRONMENT | {"commit": "d"}, resume=True)


@pytest.mark.parametrize("outcome", ["red", "stopped", "green"])
def test_red_tests_give_no_numbers(
    results: Results, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    record = {"outcome": outcome, "summary": "3 failed", "said": "FAILED tests/x.py"}
    monkeypatch.setattr(checks, "run_tests", lambda seconds: record)
    monkeypatch.setattr(checks, "run_sanitizer", lambda seconds: {**record, "outcome": "missing"})
    assert run(results, ["tests", "sanitizer", "copy"]) == int(outcome == "red")
    assert ("copy" in results.sections) == (outcome != "red")
    assert "- tests: 3 failed" in results.path.with_suffix(".md").read_text()


def test_a_backend_that_cannot_run_is_said(results: Results) -> None:
    status = gpu.run_sections(["copy"], results, TINY, CPU, [], gpu.Deadline(1))
    assert status == 1 and results.sections["not_run"][0].startswith("backend cpu: ")
    assert "- not run: backend cpu: " in results.path.with_suffix(".md").read_text()


def test_a_contender_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(case: Case) -> Any:
        raise RuntimeError("out of memory\nsecond line")

    monkeypatch.setattr("benchmarks.peers.padded_embedding", refuse)
    record = next(measure_cases(TINY, CPU, ["cpu"], 1e9, lambda: True))
    reasons = [line.get("reason") for line in record["lines"]]
    assert reasons == [None, "fails: out of memory", None, None]
    table = to_markdown(ENVIRONMENT, {"operations": [record]})
    assert "| nn.Embedding padded | fails: out of memory |" in table


@pytest.mark.parametrize("op", ["lookup", "lookup_bag"])
def test_ours_and_the_peers_look_up_the_same_rows(op: str) -> None:
    """With all numbers alike, an output tells which columns of which rows were added up."""
    case = Case(TINY.specs()[0])
    table = OurTable(case)
    with torch.no_grad():
        table.storage.weight.fill_(0.01)
    ours, others = contenders(op, case, table, ["cpu"])
    batch = case.batches(1)[0]
    kept = (torch.arange(32) < case.dims[batch.indices, None]) * 0.01
    bags = kept.view(8, 5, 32).sum(1)
    build = table.sequence if op == "lookup" else table.bag
    expected = kept if op == "lookup" else bags
    torch.testing.assert_close(build("cpu").call(batch), expected)
    assert [contender.layout for contender in (*ours, *others)][1:] == [
        "padded", "masked", "classes",
    ]  # fmt: skip


def test_peers_of_lookup_linear_give_one_vector_per_lookup() -> None:
    case = Case(TINY.specs()[0])
    (batch,) = case.batches(1)
    for lookup in (padded_linear(case), class_linears(case, 8), OurTable(case).linear("cpu")):
        out = lookup.call(batch)
        assert out.shape == (40, 32) and out.isfinite().all()


def test_coalesce_bytes() -> None:
    facts = Facts(zipf=1.0, mean_dim=2.0, access_dim=3.0, distinct_rows=10, distinct_dim=2.5)
    spec = Spec(width=8, bags=4, pooling=5)
    lookups = 20 * 3 * 4 + 25 * 4
    assert coalesce_bytes(spec, facts, layout="jagged") == (lookups, lookups + 160 + 200)
    padded = 20 * 8 * 4 + 80 * 4
    assert coalesce_bytes(spec, facts, layout="padded") == (padded, padded + 160 + 80)


def test_narrow_rows_are_where_their_popularity_says() -> None:
    rows = 2400
    dims = make_dims(rows, billion.DIMS, CPU).long()
    assert dims.double().mean() == pytest.approx(5.98, abs=0.05)
    popular = torch.arange(12) * multiplier_of(rows) % rows  # ranks 0 to 11: 0.5 %
    assert dims[popular].tolist() == [128] * 12 and (dims == 128).sum() == 12
    batches = make_batches(rows, billion.ZIPF, 500, billion.POOLING, 2, CPU)
    assert not torch.equal(batches[0].indices, batches[1].indices)
    counts = torch.bincount(batches[0].indices, minlength=rows)
    assert counts.argmax() == popular[0] and counts[popular].sum() > counts.sum() / 3


def test_marks_of_the_clock_enclose_every_stage() -> None:
    calls: list[str] = []
    stages = (("one", lambda _: calls.append("1")), ("two", lambda _: calls.append("2")))
    runner = Runner(stages, lambda: [], lambda: calls.append("."))
    batches = Case(TINY.specs()[0]).batches(3)
    (times,) = timing.measure([runner], batches, 1, CPU, is_cold=True)
    assert times.shape == (2, 2) and (times > 0).all() and "".join(calls) == "12." * 3
    timing.measure([runner], batches, 1, CPU, is_cold=False)
    assert "".join(calls) == "12." * 9


def test_a_command_is_stopped_at_its_limit() -> None:
    code = "import time; print('began', flush=True); time.sleep(60)"
    record = checks.run_limited([sys.executable, "-c", code], 3.0)
    assert record["status"] is None and record["seconds"] < 20 and record["said"] == "began"
    assert checks.run_limited([sys.executable, "-c", "raise SystemExit(4)"], 60)["status"] == 4


def test_outcomes_of_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    for status, outcome in ((0, "green"), (1, "red"), (5, "red"), (None, "stopped")):
        record = {"status": status, "said": "...\n= 3 passed =", "command": "x", "seconds": 1.0}
        monkeypatch.setattr(checks, "run_limited", lambda *a, record=record: dict(record))
        assert checks.run_tests(1.0)["outcome"] == outcome
        assert checks.run_tests(1.0)["summary"] == "3 passed"
        monkeypatch.setattr(checks, "find_sanitizer", lambda: "compute-sanitizer")
        assert checks.run_sanitizer(1.0)["summary"] == f"memcheck {outcome}, racecheck {outcome}"
    monkeypatch.setattr(checks, "find_sanitizer", lambda: None)
    assert checks.run_sanitizer(1.0)["outcome"] == "missing"


def test_the_sanitized_tests_exist() -> None:
    assert (checks.ROOT / checks.SANITIZED).exists()


LOG = """\
ptxas info    : Compiling entry function '_ZN3cub6detail11EmptyKernelIvEEvv' for 'sm_80'
    0 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 4 registers, used 0 barriers, 352 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN6varemb{sum}' for 'sm_80'
ptxas info    : Function properties for _ZN6varemb{sum}
    0 bytes stack frame, {spill} bytes spill stores, 12 bytes spill loads
ptxas info    : Used 72 registers, used 1 barriers, 512 bytes smem, 352 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN6varemb{sum}' for 'sm_90'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 352 bytes cmem[0]
"""


@pytest.mark.parametrize(
    ("kernel", "status"), [("18bag_forward_kernelEv", 1), ("19bag_backward_kernelEv", 0)]
)
def test_registers_flag_a_spill_in_a_forward_kernel(
    kernel: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bag.log").write_text(LOG.format(sum=kernel, spill=12))
    target = tmp_path / "table.md"
    assert registers.main(["--logs", str(tmp_path), "--out", str(target)]) == status
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| bag ")]
    assert "| 72 **>64** | 40 | 512 | " in line
    assert ("**ERROR** sm_80: 12 B out, 12 B in" in line) == bool(status)
    assert "1 spill" in target.read_text()


def test_registers_without_kernels_are_no_success(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.registers", "--logs", str(tmp_path)],
        cwd=checks.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 1 and "no CUDA kernel was compiled" in run.stderr


def test_registers_read_demangled_names() -> None:
    name = "void varemb::(anonymous namespace)::f_kernel<__nv_bfloat16, (int)8>(float const*, long)"
    assert registers.shorten(name) == "f_kernel<bfloat16, 8>"
