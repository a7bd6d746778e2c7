"""Run folders are read back, compared fairly, and shown on a page that stands alone."""

import re
from pathlib import Path

import pytest
from pages import Page

from varemb.files import save_json, save_jsonl
from varemb.plan import SizePlan
from varemb.report import format_bytes, format_results, write_report
from varemb.report.table import mean_rows, result_row, total_bytes
from varemb.runs import HISTORY, METRICS, OPTIONS, PLAN, load_run, open_run

pytest.importorskip("matplotlib", reason="the report draws with matplotlib")

SIZES = {"userId": 600, "movie <b>": 300, "gender": 2}
DIMS = {"userId": 8, "movie <b>": 4, "gender": 2}


def build_result(method: str, seed: int, auc: float, numbers: int) -> dict:
    return {
        "method": method,
        "data": "clicks",
        "model": "wide-deep",
        "seed": seed,
        "metrics": {"auc": auc, "logloss": 0.5},
        "params": numbers,
        "params_full": 14_432,
        "bytes": {"weights": 4 * numbers, "index": 1216, "unify": 0, "optimizer": 8 * numbers},
        "seconds": 12.4,
        "rows_per_second": 50_000.0,
    }


def write_run(folder: Path, seed: int = 0, dims: dict | None = None, **changes: object) -> Path:
    plan = SizePlan.for_fields(SIZES, 16, dims or DIMS)
    folder.mkdir(parents=True)
    plan.save(folder / PLAN)
    save_json(folder / OPTIONS, {"seed": seed})
    metrics = build_result("autodim", seed, 0.80 + seed / 1000, plan.num_params)
    metrics["compared"] = [build_result("fde", seed, 0.79, 14_432)]
    history = [
        {"phase": "train", "method": method, "epoch": epoch, "valid": {"auc": 0.7 + epoch / 100}}
        for method in ("autodim", "fde")
        for epoch in range(1, 4)
    ]
    save_jsonl(folder / HISTORY, history)
    save_json(folder / METRICS, {**metrics, **changes})
    return folder


def test_report_writes_a_picture_and_a_page_that_stands_alone(tmp_path):
    run = load_run(write_run(tmp_path / "run"))
    png, html = write_report([run], tmp_path)
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    width = int.from_bytes(png.read_bytes()[16:20], "big")
    assert width == 2000
    text = html.read_text()
    page = Page(text)
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "srcset")]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert not re.search(r"<script|<link|@import|url\(|https?:", text)
    for cell in ("0.8000", "+0.0100", "14,432", "6,004", "58.4%", "movie <b>", "userId"):
        assert cell in page.cells, cell
    assert "movie <b>" not in text


def test_a_run_that_stores_no_plan_says_where_it_is_shown(tmp_path):
    folder = write_run(tmp_path / "run", method="pep")
    (folder / PLAN).unlink()
    with pytest.raises(FileNotFoundError, match=r"what pep stores is no plan of dims; comparison"):
        load_run(folder)


def test_report_of_several_runs_has_their_means(tmp_path):
    runs = [load_run(write_run(tmp_path / f"run{seed}", seed)) for seed in range(3)]
    _, html = write_report(runs, tmp_path)
    cells = Page(html.read_text()).cells
    for cell in (
        "AutoDim, mean of 3",
        "0.8010 ±0.0010",
        "FDE, mean of 3",
        "AutoDim, seed 2",
        "AutoDim, seed 1",
    ):
        assert cell in cells, cell


def test_report_shows_planted_dims_and_rows_of_several_dims(tmp_path):
    folder = write_run(tmp_path / "run", planted={"userId": 13, "gender": 1})
    plan = SizePlan({"userId": [1, 3], "movie <b>": [2], "gender": []}, 16)
    plan.save(folder / PLAN)
    _, html = write_report([load_run(folder)], tmp_path)
    cells = Page(html.read_text()).cells
    assert "planted" in cells
    assert "13" in cells
    assert "1 to 3, mean 2.00" in cells


def test_report_shows_names_as_they_are(tmp_path):
    run = load_run(write_run(tmp_path / "run", method="<i>", data="<script>x</script>"))
    _, html = write_report([run], tmp_path)
    assert "<i>" in Page(html.read_text()).cells
    assert not re.search(r"<i>|<script", html.read_text())


@pytest.mark.filterwarnings("error")
def test_report_draws_without_history(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / HISTORY).unlink()
    png, _ = write_report([load_run(folder)], tmp_path)
    assert png.stat().st_size > 10_000


def test_report_refuses_to_mix_data_sets(tmp_path):
    runs = [
        load_run(write_run(tmp_path / "a")),
        load_run(write_run(tmp_path / "b", data="ml-1m")),
    ]
    with pytest.raises(ValueError, match="runs must share data and model"):
        write_report(runs, tmp_path)
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path)


def test_report_says_which_extra_is_missing(tmp_path, monkeypatch):
    run = load_run(write_run(tmp_path / "run"))
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'varemb\[plots\]'"):
        write_report([run], tmp_path)


def test_result_row_counts_by_hand():
    result = build_result("autodim", 0, 0.81234, 5_412)
    assert result_row(result) == [
        "AutoDim",
        "0.8123",
        "0.5000",
        "5,412",
        "62.5%",
        "21.1 KiB",
        "1.19 KiB",
        "0 B",
        "42.3 KiB",
        "12",
    ]
    assert total_bytes(result) == 12 * 5_412 + 1216
    lines = format_results([result, build_result("fde", 0, 0.8, 14_432)]).splitlines()
    assert [line.split()[0] for line in lines] == ["method", "AutoDim", "FDE"]


def test_mean_rows_average_runs_of_one_method():
    results = [
        build_result("autodim", seed, 0.8 + seed / 100, 1000 + 100 * seed) | {"seconds": seconds}
        for seed, seconds in ((0, 10.0), (2, 30.0))
    ]
    (row,) = mean_rows([*results, build_result("fde", 0, 0.7, 14_432)])
    assert row[:5] == ["AutoDim, mean of 2", "0.8100 ±0.0141", "0.5000 ±0.0000", "1,100", "92.4%"]
    assert row[5:] == ["4.30 KiB", "1.19 KiB", "0 B", "8.59 KiB", "20"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (10_240, "10.0 KiB"),
        (102_298, "99.9 KiB"),
        (102_400, "100 KiB"),
        (1_023_000, "999 KiB"),
        (1_024_000, "0.98 MiB"),
        (5 * 2**40, "5120 GiB"),
    ],
)
def test_format_bytes(count, text):
    assert format_bytes(count) == text


def enter(folder: Path, options: dict, resume: bool = False) -> bool:
    with open_run(folder, options, resume=resume) as is_finished:
        return is_finished


def test_open_run_makes_a_folder_once(tmp_path):
    folder = tmp_path / "runs" / "a"
    assert enter(folder, {"--seed": 0}) is False
    with pytest.raises(ValueError, match=r"holds an unfinished run; add --resume"):
        enter(folder, {"--seed": 0})
    assert enter(folder, {"--seed": 0}, resume=True) is False
    save_json(folder / METRICS, {})
    with pytest.raises(ValueError, match=r"holds a finished run"):
        enter(folder, {"--seed": 0})
    assert enter(folder, {"--seed": 0}, resume=True) is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--seed": 1, "--lr": [0.1]}, "was started with --seed 0, got 1; give the same"),
        ({"--seed": 0}, r"started with --lr \[0\.1\], got None"),
        ({"--seed": 0, "--lr": (0.1,), "--f": 2}, "--f None, got 2"),
    ],
)
def test_open_run_refuses_other_options(tmp_path, options, message):
    enter(tmp_path / "a", {"--seed": 0, "--lr": (0.1,)})
    assert enter(tmp_path / "a", {"--seed": 0, "--lr": (0.1,)}, resume=True) is False
    with pytest.raises(ValueError, match=message):
        enter(tmp_path / "a", options, resume=True)


def test_open_run_leaves_other_folders_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(ValueError, match="holds no run"):
            enter(tmp_path, {"--seed": 0}, resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("keep", ["", "checkpoint/search.safetensors", "plan.safetensors"])
def test_open_run_leaves_nothing_behind_when_nothing_was_kept(tmp_path, keep):
    folder = tmp_path / "a"
    with (
        pytest.raises(KeyboardInterrupt),
        open_run(folder, {"--seed": 0}, resume=False),
    ):
        if keep:
            (folder / keep).write_text("work")
        raise KeyboardInterrupt
    assert folder.exists() == bool(keep)
    assert (folder / OPTIONS).exists() == bool(keep)


def test_load_run_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of a run"):
        load_run(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="it holds no run"):
        load_run(tmp_path)
    enter(tmp_path / "a", {"--seed": 0})
    with pytest.raises(FileNotFoundError, match="an unfinished run: continue it with --resume"):
        load_run(tmp_path / "a")
    folder = write_run(tmp_path / "b")
    (folder / METRICS).write_text('{"method": "autodim"}')
    with pytest.raises(ValueError, match=r"metrics\.json lacks data, model, seed"):
        load_run(folder)
    (folder / METRICS).write_text("[]")
    with pytest.raises(ValueError, match=r"metrics\.json lacks"):
        load_run(folder)
