"""Reports of names, methods and files that are not as a report would like them."""

from pathlib import Path

import pytest
from pages import Page

from varemb.cli import main
from varemb.files import save_json, save_jsonl
from varemb.plan import SizePlan
from varemb.report import draw_tradeoff, load_runs, write_report
from varemb.runs import HISTORY, METRICS, OPTIONS, PLAN

pytest.importorskip("matplotlib", reason="the report draws with matplotlib")

ROWS = {"user": 6, "city": 2}
DOLLAR = "cost$x_{$y"
GONE = object()


def click_result(method: str, seed: int) -> dict:
    return {
        "method": method, "data": "clicks", "model": "fm", "seed": seed,
        "metrics": {"auc": 0.8, "logloss": 0.5}, "params": 16, "params_full": 64,
        "bytes": {"weights": 64, "index": 8, "unify": 0, "optimizer": 128},
        "seconds": 2.5, "rows_per_second": 100.0,
    }  # fmt: skip


def stream_result(method: str, seed: int) -> dict:
    return click_result(method, seed) | {
        "order": "time", "task": "ranking", "users": 6, "items": 2,
        "metrics": {"recall@20": 0.2},
        "tables": {"widths": [{"side": "user", "dim": 2, "rows": 6}]},
    }  # fmt: skip


def write(folder: Path, result: dict, history: list[dict], dim: int = 2) -> Path:
    folder.mkdir(parents=True)
    SizePlan.for_fields(ROWS, 8, dict.fromkeys(ROWS, dim)).save(folder / PLAN)
    save_json(folder / OPTIONS, {})
    save_jsonl(folder / HISTORY, history)
    save_json(folder / METRICS, {name: each for name, each in result.items() if each is not GONE})
    return folder


def click_run(
    folder: Path, method: str = "autodim", seed: int = 0, dim: int = 2, **changes: object
) -> Path:
    result = {**click_result(method, seed), "compared": [click_result("fde", seed)], **changes}
    methods = (result["method"], "fde")
    epochs = [{"phase": "train", "method": each, "epoch": 1, "valid": {"auc": 0.7}}
              for each in methods]  # fmt: skip
    return write(folder, result, epochs, dim)


def stream_run(folder: Path, method: str = "scall 1MB", **changes: object) -> Path:
    segments = [{"segment": t, "events": 10 * (t + 1), "bytes": 64, "grown": 0.9, "shrunk": 0.1}
                for t in range(3)]  # fmt: skip
    return write(folder, {**stream_result(method, 0), **changes}, segments)


@pytest.fixture
def drawn(monkeypatch):
    """The figures of the next pictures, smaller than they are drawn for people."""
    from matplotlib.figure import Figure

    found = []
    save = Figure.savefig

    def savefig(figure, *arguments, **options):
        save(figure, *arguments, **{**options, "dpi": 40})
        found.append(figure)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


def panel(figure, title: str):
    every = figure.axes + [axes for part in figure.subfigs for axes in part.axes]
    return next(axes for axes in every if axes.get_title(loc="left").startswith(title))


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def error_of(folders: list[Path], capsys) -> str:
    assert main(["report", *map(str, folders)]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("make", [click_run, stream_run])
def test_a_dollar_in_a_name_is_no_mathematics(tmp_path, drawn, make):
    runs = load_runs([make(tmp_path / DOLLAR, method=f"fixed {DOLLAR}", data=f"{DOLLAR} 'd'$")])
    write_report(runs, tmp_path)
    assert r"on cost\$x_{\$y 'd'\$" in drawn[0].get_suptitle().replace("\n", " ")


def test_a_dollar_in_the_picture_of_a_comparison(drawn):
    summary = {"model": DOLLAR, "method": DOLLAR, "auc": 0.8, "auc_sd": None, "bytes_sd": None}
    draw_tradeoff([{**summary, "bytes": 10.0**n} for n in (1, 4)], DOLLAR)
    axes = panel(drawn[0], r"cost\$")
    assert axes.get_xscale() == "log"
    assert "5" in [text.get_text() for text in axes.get_xticklabels()]


def test_a_long_title_stays_on_the_picture(tmp_path, drawn):
    name = "".join(f"{place:05d}" for place in range(40))  # as a file may be called
    write_report(load_runs([click_run(tmp_path / "a", data=name)]), tmp_path)
    figure = drawn[0]
    (title,) = [text for text in figure.texts if "AutoDim" in text.get_text()]
    assert name in title.get_text().replace("\n", "")
    assert title.get_window_extent().x1 <= figure.bbox.x1


def test_one_epoch_is_one_tick(tmp_path, drawn):
    write_report(load_runs([click_run(tmp_path / "a")]), tmp_path)
    axes = panel(drawn[0], "Training")
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_rows_that_grew_are_at_most_all(tmp_path, drawn):
    write_report(load_runs([stream_run(tmp_path / "a")]), tmp_path)
    assert panel(drawn[0], "Rows that grew").get_ylim() == (0, 100)


def test_runs_of_several_methods_are_shown_apart(tmp_path, drawn):
    folders = [
        click_run(tmp_path / "a", dim=2),
        click_run(tmp_path / "b", seed=1, dim=4),
        click_run(tmp_path / "c", "nis", dim=8),
    ]
    _, html = write_report(load_runs(folders), tmp_path)
    assert drawn[0].get_suptitle() == "3 methods on clicks, fm, seed 0, 1"
    assert sorted(legend(panel(drawn[0], "Training"))) == ["AutoDim", "FDE", "NIS"]
    dims = panel(drawn[0], "Dims per field (rows), means of runs")
    assert legend(dims) == ["AutoDim", "NIS"]
    bars = [[bar.get_width() for bar in each] for each in dims.containers]
    assert bars == [[8, 8], [3, 3], [8, 8]]  # the full width, the mean of 2 and 4, and 8
    assert [text.get_text() for text in dims.texts] == ["3", "3", "8", "8"]
    cells = Page(html.read_text()).cells
    assert {"AutoDim, seed 0", "AutoDim, seed 1", "NIS, seed 0"} <= set(cells)
    assert "seed 0" not in cells
    assert {"62.5%", "0.0%"} <= set(cells)  # saved by dims 2 and 4 of 8, and by 8
    assert "Means of 2 runs." in html.read_text()  # the cards are of AutoDim


def test_a_run_that_is_given_twice_is_refused(tmp_path, capsys):
    folder = click_run(tmp_path / "two")
    (tmp_path / "other").symlink_to(folder)
    for again in (folder, folder / ".." / "two", tmp_path / "other"):
        said = error_of([folder, again], capsys)
        assert f"a run must be given once, got {folder} and {again}, which are one folder" in said


def test_folders_of_comparisons_say_where_their_tables_are(tmp_path, capsys):
    save_json(tmp_path / "comparison.json", {})
    cell = tmp_path / "ngcf-mr-seed0"
    cell.mkdir()
    save_json(cell / METRICS, {"method": "mr", "levels": []})
    for folder in (tmp_path, cell):
        said = error_of([folder], capsys)
        assert f"{folder} is of `varemb compare`, whose tables are comparison.md" in said
        assert said.endswith(f".json and .png in {tmp_path}\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compared": None}, "compared must be a list, got None"),
        ({"compared": 5}, "compared must be a list, got 5"),
        ({"compared": [3]}, "compared[0] must be an object, got 3"),
        ({"compared": [{"seconds": "x"}]}, "compared[0].seconds must be a number, got 'x'"),
        ({"method": 7}, "method must be text, got 7"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"params": "16"}, "params must be a whole number, got '16'"),
        ({"seconds": True}, "seconds must be a number, got True"),
        ({"bytes": [1]}, "bytes must be an object, got [1]"),
        ({"bytes": {"index": None}}, "bytes.index must be a whole number, got None"),
        ({"metrics": {"auc": 0.5}}, "metrics lacks logloss"),
        ({"metrics": {"auc": "0.5"}}, "metrics.auc must be a number, got '0.5'"),
        ({"planted": {"user": "x"}}, "planted.user must be a number, got 'x'"),
        ({"planted": [1]}, "planted must be an object, got [1]"),
        ({"tables": 5}, "tables must be an object, got 5"),
        ({"tables": {}}, "it lacks order, task, users, items"),
    ],
)
def test_damaged_metrics_of_clicks_are_named(tmp_path, capsys, changes, message):
    folder = click_run(tmp_path / "a", **changes)
    assert f"{folder / METRICS}: {message}" in error_of([folder], capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": None}, "order must be text, got None"),
        ({"order": GONE}, "it lacks order"),
        ({"metrics": {"a": 1}}, "metrics must have one of accuracy, mse, cross_entropy, recall@20"),
        ({"tables": {"widths": 3}}, "tables.widths must be a list, got 3"),
        ({"tables": {"widths": [{"side": "user"}]}}, "tables.widths[0] lacks dim, rows"),
        (
            {"tables": {"widths": [{"side": "user", "dim": 2.5, "rows": 1}]}},
            "tables.widths[0].dim must be a whole number, got 2.5",
        ),
    ],
)
def test_damaged_metrics_of_streams_are_named(tmp_path, capsys, changes, message):
    folder = stream_run(tmp_path / "a", **changes)
    assert f"{folder / METRICS}: {message}" in error_of([folder], capsys)


@pytest.mark.parametrize(
    ("make", "record", "message"),
    [
        (click_run, {"epoch": "1", "valid": {"auc": 1}}, "epoch must be a whole number, got '1'"),
        (click_run, {"epoch": 1, "valid": 0.7}, "valid must be an object, got 0.7"),
        (stream_run, {"segment": 0, "bytes": 1}, "it lacks events"),
        (stream_run, {"events": "x"}, "events must be a whole number, got 'x'"),
        (stream_run, {"events": 1, "recall@20": []}, "recall@20 must be a number or null, got []"),
    ],
)
def test_damaged_lines_of_a_history_are_named(tmp_path, capsys, make, record, message):
    folder = make(tmp_path / "a")
    method = {"phase": "train", "method": "autodim"} if make is click_run else {}
    save_jsonl(folder / HISTORY, [{**method, **record}])
    assert f"{folder / HISTORY}, line 1: {message}" in error_of([folder], capsys)
