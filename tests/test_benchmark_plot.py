"""The pictures of benchmarks: which points they show, labels that do not lie on each other."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plot

pytest.importorskip("matplotlib", reason="plots are drawn with matplotlib")

Json = dict[str, Any]
PNG = b"\x89PNG\r\n\x1a\n"


def line(name: str, layout: str, ms: float | None, megabytes: float = 1.0) -> Json:
    time = None if ms is None else {"median": ms, "low": ms, "high": ms}
    size = {"tensor_bytes": 1e6 * megabytes, "optimizer": None}
    return {"name": name, "layout": layout, "time": time} | size


def record(*blocks: list[Json], is_target: bool = True) -> Json:
    return {"is_target_case": is_target, "blocks": list(blocks)}


BAGS = record(
    [
        line("VarEmbeddingBag", "jagged", 1.0, 90.0),
        line("padded", "padded", 0.7, 256.0),
        line("also padded", "padded", 0.71, 256.0),
        line("six", "six", 100.0, 444.0),
        line("refused", "classes", None),
    ]
)
TABLES = [
    {
        "rows": rows,
        "method": method,
        "step_ms, Zipf 1.05": {"median": 2.0, "low": 1.0, "high": 3.0},
        "step_ms, Zipf 0": {"median": 4.0, "low": 3.0, "high": 9.0},
    }
    for rows in (10**6, 10**8)
    for method in ("Adam", "Adagrad")
]


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures that were drawn, in place of PNGs."""
    from matplotlib.figure import Figure

    figures: list[Any] = []

    def draw_png(what: str, title: str, size: tuple[float, float], draw: Any) -> bytes:
        figures.append(Figure(figsize=size))
        draw(figures[-1])
        return PNG

    monkeypatch.setattr(plot, "draw_png", draw_png)
    return figures


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_panel_shows_ours_and_every_peer_that_ran(figure: list[Any]) -> None:
    plot.draw_results([record(*BAGS["blocks"], is_target=False), BAGS], [])
    (axes,) = figure[0].axes
    assert axes.get_title("left") + axes.get_title() == "Forward of bags"
    wanted = ["VarEmbeddingBag  1", "padded  0.7", "also padded  0.71", "six  100"]
    assert sorted(labels(axes)) == sorted(wanted)
    points = {tuple(float(v[0]) for v in line.get_data()) for line in axes.lines}
    assert points == {(90.0, 1.0), (256.0, 0.7), (256.0, 0.71), (444.0, 100.0)}
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_labels_keep_their_distance(figure: list[Any]) -> None:
    plot.draw_results([BAGS], [])
    (axes,) = figure[0].axes
    lifts = {text.get_text(): text.xyann[1] for text in axes.texts}
    assert lifts["also padded  0.71"] > 0 > lifts["padded  0.7"]
    assert lifts["six  100"] == pytest.approx(0)


def test_spread() -> None:
    assert plot.spread([0.5, 0.1], 0.1) == pytest.approx([0.5, 0.1])
    assert plot.spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    # The pair's own pile reaches the third, and all three are spread about their middle.
    assert plot.spread([0.6, 0.5, 0.45], 0.1) == pytest.approx(
        [0.61667, 0.51667, 0.41667], abs=1e-4
    )
    assert plot.spread([], 0.1) == []


def test_a_label_leaves_out_our_word_for_the_optimizer() -> None:
    ours = line("VarEmbeddingBag fused adam", "jagged", 1.234) | {"optimizer": "adam"}
    tbe = line("FBGEMM TBE padded adam", "padded", 0.5) | {"optimizer": "adam"}
    assert plot._label(ours) == "VarEmbeddingBag  1.23"
    assert plot._label(tbe) == "FBGEMM TBE padded  0.5"


def test_the_scale_has_a_line_per_method_and_law(figure: list[Any]) -> None:
    plot.draw_results([], TABLES)
    (axes,) = figure[0].axes
    assert labels(axes) == [
        "Adam, Zipf 1.05: 2", "Adam, Zipf 0: 4", "Adagrad, Zipf 1.05: 2", "Adagrad, Zipf 0: 4",
    ]  # fmt: skip
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1 M", "100 M"]
    assert axes.get_ylim() == pytest.approx((0, 9.9))


def test_written_results_are_drawn(tmp_path: Path) -> None:
    peers, scale, out = (tmp_path / name for name in ("peers.json", "scale.json", "out.png"))
    peers.write_text(json.dumps({"cases": [BAGS]}))
    scale.write_text(json.dumps({"tables": TABLES}))
    assert plot.main([str(out), "--peers", str(peers), "--scale", str(scale)]) == 0
    assert out.read_bytes()[:8] == PNG


def test_nothing_to_draw_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="neither the targets' case nor tables by rows"):
        plot.draw_results([record(*BAGS["blocks"], is_target=False)], [])
    with pytest.raises(SystemExit):
        plot.main(["out.png"])
    assert "--peers or --scale says what to draw" in capsys.readouterr().err


def test_a_missing_matplotlib_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ImportError, match=r"the plot needs matplotlib: pip install 'varemb\[plots\]'"
    ):
        plot.draw_results([BAGS], [])
