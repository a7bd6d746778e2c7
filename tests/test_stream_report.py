"""Runs on streams are shown together: tables by hand, every panel that has something to show."""

from pathlib import Path

import pytest
from pages import Page

from varemb.files import save_json, save_jsonl
from varemb.plan import SizePlan
from varemb.report import format_stream_results, write_report
from varemb.runs import HISTORY, METRICS, OPTIONS, PLAN, load_run

pytest.importorskip("matplotlib", reason="the report draws with matplotlib")

from varemb.report import frequency_panels, stream_figure
from varemb.report.stream_table import stream_means

DIMS = {"user": [2, 2, 4, 16], "item": [2, 8]}
SIDES = ("user", "item")
RIGHT = {"esapn": 0.75, "fixed-16": 0.7}


def esapn_result(method: str, seed: int, numbers: int) -> dict:
    right = RIGHT.get(method, 0.6) + seed / 100
    curve = [
        {"side": side, "frequency": f, "events": 10, "accuracy": right, "mse": 0.2}
        for side in SIDES
        for f in (1, 2, 50)
    ]
    widths = [{"side": side, "dim": dim, "rows": DIMS[side].count(dim)}
              for side in SIDES for dim in sorted(set(DIMS[side]))]  # fmt: skip
    if method.startswith("fixed"):
        widths = [{"side": side, "dim": 16, "rows": len(DIMS[side])} for side in SIDES]
    return {
        "method": method, "data": "clicks", "model": "mlp", "seed": seed, "order": "shuffle",
        "task": "binary", "metrics": {"accuracy": right, "mse": 0.2, "accuracy_all": 0.5},
        "params": numbers, "params_full": 96, "users": 4, "items": 2, "events": 3000,
        "bytes": {"weights": 4 * numbers, "index": 24, "unify": 0, "optimizer": 8 * numbers,
                  "ids": 90, "search": 0},
        "seconds": 12.4, "rows_per_second": 242.0,
        "tables": {
            "quality_by_frequency": curve, "widths": widths,
            "width_by_frequency": [
                {"side": side, "frequency": f, "events": 9, "mean_dim": 2.0 * f}
                for side in SIDES for f in (1, 2, 50)
            ],
        },
    }  # fmt: skip


def scall_result(method: str, seed: int) -> dict:
    metrics = {"recall@20": 0.2, "ndcg@20": 0.1}
    cases = [
        {"side": side, "id": 10**12 + row, "segment": t, "interactions": t + row, "dim": 1 + row}
        for side in SIDES for row in range(3) for t in range(3)
    ]  # fmt: skip
    changed = {"method": method, "order": "time", "task": "ranking", "model": "lightgcn"}
    result = {**esapn_result(method, seed, 34), **changed, "metrics": metrics}
    tables = {"widths": result["tables"]["widths"], "case_study": cases}
    tables["width_by_frequency"] = [
        {"side": side, "frequency": f, "rows": 3, "mean_dim": 1.0 + f}
        for side in SIDES for f in range(60)
    ]  # fmt: skip
    return {**result, "tables": tables}


def write_run(folder: Path, result: dict, **changes: object) -> Path:
    folder.mkdir(parents=True)
    SizePlan(DIMS, 16).save(folder / PLAN)
    save_json(folder / OPTIONS, {})
    if result["task"] == "ranking":
        history = [
            {"segment": t, "events": 1000 * (t + 1), "bytes": 130 + t, "budget_bytes": 136,
             "mean_dim": 5.5, "recall@20": 0.1 * t, "ndcg@20": 0.05,
             "grown": 0.25 if t else None, "shrunk": 0.125 if t else None}
            for t in range(3)
        ]  # fmt: skip
    else:
        history = [
            {"events": 1000 * t, "bytes": 40 * t, "accuracy": 0.6, "accuracy_window": 0.1 * t}
            for t in (1, 2, 3)
        ]
    save_jsonl(folder / HISTORY, history)
    save_json(folder / METRICS, {**result, **changes})
    return folder


def report(folder: Path, *results: dict) -> tuple[Path, Page]:
    runs = [load_run(write_run(folder / str(i), each)) for i, each in enumerate(results)]
    png, html = write_report(runs, folder)
    return png, Page(html.read_text())


@pytest.fixture
def panels(monkeypatch):
    """The panels of the next picture."""
    from matplotlib.figure import Figure

    found = []
    save = Figure.savefig

    def savefig(figure, *arguments, **options):
        found[:] = figure.axes + [each for part in figure.subfigs for each in part.axes]
        return save(figure, *arguments, **{**options, "dpi": 40})  # small is soon drawn

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


def titles(panels) -> list[str]:
    return [axes.get_title(loc="left") for axes in panels if axes.axison]


@pytest.mark.filterwarnings("error")
def test_a_page_against_fixed(tmp_path, panels):
    results = [esapn_result("esapn", seed, 34) for seed in (0, 1)]
    _, page = report(tmp_path, *results, esapn_result("fixed-16", 0, 96))
    for cell in (
        "75.50 %", "+5.50", "points of accuracy against FIXED-16",  # the cards
        "ESAPN, seed 1", "76.00 %", "35.4%", "5.7",  # 34 of 96 numbers, 34 over 6 rows
        "ESAPN, mean of 2", "75.50 % ±0.71",
        "2 to 16, mean 6.00", "24", "62.5%",  # the users' 24 of 64 numbers
        "ids", "90",
    ):  # fmt: skip
        assert cell in page.cells, cell
    assert "39.2%" in page.cells  # of weights, index and unify: 136 + 24 bytes of 384 + 24
    assert titles(panels) == [
        "Accuracy over the stream", "Bytes over the stream", "Gain over FIXED-16, users",
        "Gain over FIXED-16, items", "Width by frequency", "Widths of users", "Widths of items",
    ]  # fmt: skip


@pytest.mark.filterwarnings("error")
def test_curves_show_what_was_measured(tmp_path, panels):
    report(tmp_path, *(esapn_result(name, 0, 34) for name in ("esapn", "fixed-16")))
    quality, size, users, _, width, bars = panels[:6]
    lines = {tuple(line.get_xdata()): line.get_ydata() for line in quality.lines}
    assert list(lines) == [(1000, 2000, 3000)]
    assert quality.lines[0].get_ydata() == pytest.approx([10, 20, 30])  # a window's, in percent
    assert size.lines[0].get_ydata() == pytest.approx([40, 80, 120])
    gain = users.lines[0]
    assert gain.get_ydata() == pytest.approx([5, 5, 5])
    assert gain.get_xdata()[:2] == pytest.approx([1, 2])
    curve = next(line for line in width.lines if len(line.get_xdata()) == 3)
    assert curve.get_ydata() == pytest.approx([2, 4, 100])
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([50, 25, 0, 25])
    assert [text.get_text() for text in bars.get_xticklabels()] == ["2", "4", "8", "16"]


@pytest.mark.filterwarnings("error")
def test_a_short_last_window_is_no_point(tmp_path, panels):
    run = load_run(write_run(tmp_path / "run", esapn_result("esapn", 0, 34)))
    for last, shown in ((3499, 3), (3500, 4)):
        run.history[3:] = [{"events": last, "bytes": 1, "accuracy": 0.6, "accuracy_window": 0.9}]
        write_report([run], tmp_path)
        assert len(panels[0].lines[0].get_xdata()) == shown
        assert len(panels[1].lines[0].get_xdata()) == 4  # bytes are those of the moment


@pytest.mark.filterwarnings("error")
def test_rows_of_one_width_stay_out_of_the_panels_of_widths(tmp_path, panels):
    darts = esapn_result("darts", 0, 34)
    darts["tables"]["widths"] = [{"side": side, "dim": 222, "rows": 5} for side in SIDES]
    report(tmp_path, esapn_result("esapn", 0, 34), darts)
    *_, width, users, _ = (axes for axes in panels if axes.axison)
    assert max(max(line.get_ydata()) for line in width.lines if len(line.get_ydata())) == 100
    assert [text.get_text() for text in users.get_xticklabels()] == ["2", "4", "8", "16"]
    report(tmp_path / "alone", darts)
    assert [text.get_text() for text in panels[-2].get_xticklabels()] == ["222"]


@pytest.mark.filterwarnings("error")
def test_a_single_run_is_shown_beside_full_width(tmp_path, panels):
    _, page = report(tmp_path, esapn_result("esapn", 0, 34))
    assert not any("against" in cell for cell in page.cells)
    assert "Accuracy by frequency, users" in titles(panels)
    (limit,) = [text.get_text() for text in panels[1].texts]
    assert limit == "all rows at full width, at the end: 384 B"


@pytest.mark.filterwarnings("error")
def test_segments_budget_and_chosen_rows(tmp_path, panels):
    _, page = report(
        tmp_path, *(scall_result(name, 0) for name in ("scall 1MB", "uniform 1MB", "random 1MB"))
    )
    for cell in ("R@20 against uniform, 1MB", "25.0%", "12.5%", "136 B", "0.2000", "132 B"):
        assert cell in page.cells, cell
    shown = titles(panels)
    assert shown[:4] == [
        "R@20 of each segment", "N@20 of each segment", "Bytes over the stream",
        "Width by frequency",
    ]  # fmt: skip
    assert "Rows that grew and shrank" in shown
    assert f"item {10**12 + 2}" in shown and f"user {10**12}" in shown
    assert [text.get_text() for text in panels[2].texts] == ["budget: 136 bytes"]
    case = next(axes for axes in panels if axes.get_title(loc="left") == f"item {10**12 + 2}")
    assert [bar.get_height() for bar in case.patches] == [2, 3, 4]


@pytest.mark.filterwarnings("error")
def test_what_a_run_does_not_have_is_not_drawn(tmp_path, panels):
    result = esapn_result("esapn", 0, 34)
    png, _ = report(tmp_path, {**result, "tables": {"widths": []}})
    assert titles(panels) == ["Accuracy over the stream", "Bytes over the stream"]
    folder = tmp_path / "bare"
    write_run(folder, result)
    (folder / HISTORY).unlink()
    png, _ = write_report([load_run(folder)], folder)
    assert png.stat().st_size > 2_000


def test_runs_with_one_name_and_seed_are_told_apart_by_folder(tmp_path, panels):
    result = esapn_result("esapn", 0, 34)
    _, page = report(tmp_path, result, result, esapn_result("fixed-16", 0, 96))
    assert {"ESAPN, 0, seed 0", "ESAPN, 1, seed 0", "FIXED-16, seed 0"} <= set(page.cells)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": "time"}, "runs must share data, order and task"),
        ({"task": "multiclass"}, "runs must share data, order and task"),
        ({"data": "ml-1m"}, "runs must share data, order and task"),
        ({"tables": None}, "runs on streams cannot be shown together with others"),
    ],
)
def test_streams_that_cannot_be_compared_are_refused(tmp_path, change, message):
    result = esapn_result("esapn", 0, 34)
    changed = {name: value for name, value in (result | change).items() if value is not None}
    runs = [
        load_run(write_run(tmp_path / str(i), each)) for i, each in enumerate((result, changed))
    ]
    with pytest.raises(ValueError, match=message):
        write_report(runs, tmp_path)


def test_names_from_files_are_text_on_the_page(tmp_path):
    result = scall_result("<b>", 0)
    png, page = report(tmp_path, result)
    assert int.from_bytes(png.read_bytes()[16:20], "big") == 2000
    assert "<b>, seed 0" in page.cells or "<b>" in page.cells
    assert ("b", "", "") not in page.attributes


def test_results_as_text():
    results = [esapn_result("esapn", 0, 34), esapn_result("fixed-16", 0, 96)]
    head, first, second = format_stream_results(results).splitlines()
    assert head.split()[:3] == ["method", "accuracy", "MSE"]
    assert first.split()[:6] == ["ESAPN", "75.00", "%", "0.2000", "34", "35.4%"]
    assert second.split()[0] == "FIXED-16"
    ranked = format_stream_results([scall_result("scall 1MB", 0)]).splitlines()
    assert ranked[0].split()[1:3] == ["R@20", "N@20"]
    (mean,) = stream_means([scall_result("scall 1MB", seed) for seed in (0, 1)])
    assert mean[:3] == ["SCALL, 1MB, mean of 2", "0.2000 ±0.0000", "0.1000 ±0.0000"]


def test_frequencies_are_pooled_by_their_events():
    records = [
        {"side": "user", "frequency": f, "events": events, "accuracy": right}
        for f, events, right in ((4, 30, 0.5), (5, 10, 0.9), (200, 10, 1.0))
    ]

    class Run:
        metrics = {"tables": {"quality_by_frequency": records}}  # noqa: RUF012

    curve = frequency_panels._accuracy(Run(), "user")
    assert curve == {4: (pytest.approx(20**0.5), pytest.approx(0.6))}
    assert frequency_panels._accuracy(Run(), "item") == {}


def test_axis_counts_are_short():
    assert [stream_figure.short_count(n) for n in (0, 999, 12_500, 2e6)] == [
        "0", "999", "12.5k", "2M",
    ]  # fmt: skip
