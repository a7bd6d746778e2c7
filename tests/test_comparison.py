"""The tables of a comparison, by hand."""

import math

import pytest

from varemb.report import (
    draw_tradeoff,
    importance_tables,
    main_tables,
    stability_table,
    summarize,
    sweep_table,
    tradeoff,
)
from varemb.report.comparison import correlation, paired_t

pytest.importorskip("scipy", reason="the t-test is SciPy's")


def make_result(method, seed, auc, params=50, dims=None, model="fm", **more):
    return {
        "data": "ml-1m", "model": model, "method": method, "seed": seed,
        "metrics": {"auc": auc, "logloss": 1 - auc}, "params": params, "params_full": 100,
        "bytes": {"weights": 4 * params, "index": 24, "unify": 0, "optimizer": 999},
        "seconds": 10.0 * (seed + 1), "search_seconds": 1.0, "dims": dims, **more,
    }  # fmt: skip


def make_results():
    return [
        *(make_result("fde", seed, 0.800 + 0.01 * seed, 100) for seed in range(3)),
        *(make_result("mde", seed, 0.790 + 0.01 * seed) for seed in range(3)),
        # 1, 2 and 3 thousandths above FDE
        *(make_result("autodim", seed, 0.801 + 0.011 * seed, 40) for seed in range(3)),
    ]


def test_paired_t_by_hand():
    # differences 1, 2, 3: mean 2, deviation 1, t = 2 / (1 / sqrt 3); with 2 degrees of freedom
    # p = 1 - t / sqrt(t^2 + 2)
    t, p = paired_t([4, 4, 6], [3, 2, 3])
    assert t == pytest.approx(2 * math.sqrt(3))
    assert p == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert paired_t([3, 2, 3], [4, 4, 6])[0] == pytest.approx(-t)
    assert paired_t([1.0], [2.0]) is None
    assert paired_t([1, 2], [2, 3]) is None


def test_summaries_by_hand():
    fde, mde, autodim = summarize(make_results())
    assert (fde["baseline"], fde["gain"], fde["p"]) == ("fde", None, None)
    assert fde["auc"] == pytest.approx(0.81)
    assert fde["auc_sd"] == pytest.approx(0.01)
    assert (mde["gain"], mde["p"]) == (pytest.approx(-0.01), None)
    assert autodim["gain"] == pytest.approx(0.002)
    assert autodim["t"] == pytest.approx(2 * math.sqrt(3))
    assert autodim["p"] == pytest.approx(0.0742, abs=1e-4)
    assert (autodim["bytes"], autodim["share"], autodim["seconds"]) == (184, 0.4, 20)


def test_pairs_are_the_seeds_that_both_have():
    results = make_results()
    results += [make_result("autodim", seed, 0.1) for seed in (7, 8)]
    *_, autodim = summarize(results)
    assert autodim["seeds"] == [0, 1, 2, 7, 8]
    assert autodim["gain"] == pytest.approx(0.002)


def test_the_best_baseline_is_chosen_by_the_seeds_that_all_baselines_have():
    results = make_results()  # FDE is ahead of MDE on seeds 0, 1 and 2
    results += [make_result("mde", seed, 0.95) for seed in (7, 8)]
    assert {each["baseline"] for each in summarize(results)} == {"fde"}
    results = [make_result("fde", 0, 0.8), make_result("mde", 1, 0.9)]  # none is shared
    assert {each["baseline"] for each in summarize(results)} == {"mde"}


def test_the_autodim_family_is_never_the_baseline():
    results = [make_result("autodim-s", 0, 0.9), make_result("autodim", 0, 0.8)]
    assert [each["baseline"] for each in summarize(results)] == [None, None]
    (table,) = main_tables(results)
    assert table.title == "ml-1m, fm"


def test_main_tables_have_one_per_model():
    results = [*make_results(), make_result("ras", 0, 0.7, model="nfm")]
    first, second = main_tables(results)
    assert first.title == "ml-1m, fm; gain and p against the best baseline, FDE"
    assert first.rows[0] == [
        "FDE", "3", "0.8100 ±0.0100", "0.1900 ±0.0100", "100", "100.0%", "424 B", "20",
        "best baseline", "",
    ]  # fmt: skip
    assert first.rows[2][-2:] == ["+0.0020", "0.074"]
    assert second.rows == [
        ["RaS", "1", "0.7000", "0.3000", "50", "50.0%", "224 B", "10", "best baseline", ""]
    ]
    assert first.markdown().splitlines()[2].startswith("| method | seeds | AUC |")


def test_correlation_by_hand():
    assert correlation([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert correlation([1, 2, 3], [3, 2, 1]) == -1
    assert correlation([1, 2, 3], [2, 2, 2]) is None


def test_stability_is_the_mean_over_the_pairs():
    dims = [{"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "c": 2}, {"a": 3, "b": 2, "c": 1}]
    results = [make_result("autodim", seed, 0.8, dims=each) for seed, each in enumerate(dims)]
    results += [make_result("fde", seed, 0.8, dims=dims[0]) for seed in range(3)]
    results.append(make_result("ras", 0, 0.8, dims=dims[0]))
    # pairs: 0.5, -1, -0.5
    assert stability_table(results).rows == [
        ["AutoDim", "fm", "3", "3", "-0.333", "-1.000"],
        ["RaS", "fm", "1", "0", "", ""],
    ]


def test_sweep_by_hand():
    results = [
        make_result(f"autodim-f{f}", seed, 0.8, params=10 * f, dims={"a": f, "b": f + seed})
        for f in (1, 5)
        for seed in (0, 1)
    ]
    assert sweep_table(results).rows == [
        ["1", "fm", "2", "1.25", "10", "10.0%", "0.8000 ±0.0000", "1.0"],
        ["5", "fm", "2", "5.25", "50", "50.0%", "0.8000 ±0.0000", "1.0"],
    ]


def test_importance_puts_fields_alone_beside_the_mean_dims():
    singles = [
        make_result("fde", 0, auc, params=8 * rows, dims={name: 8.0})
        for name, rows, auc in (("sex", 2, 0.5), ("user", 60, 0.7))
    ]
    results = [
        make_result("autodim", seed, 0.8, dims={"sex": 2, "user": dim})
        for seed, dim in enumerate((8, 4))
    ]
    results.append(make_result("fde", 0, 0.8, dims={"sex": 8, "user": 8}))
    (table,) = importance_tables(results, singles)
    assert table.head == ("field", "rows", "AUC alone", "logloss alone", "AutoDim")
    assert table.rows == [
        ["user", "60", "0.7000", "0.3000", "6"],
        ["sex", "2", "0.5000", "0.5000", "2"],
        ["correlation with AUC", "", "", "", "1.00"],
    ]


def test_the_picture_is_a_png():
    pytest.importorskip("matplotlib", reason="pictures are drawn with matplotlib")
    results = [*make_results(), make_result("ras", 0, 0.7, model="nfm")]
    assert draw_tradeoff(summarize(results), "title").startswith(b"\x89PNG")


def test_the_picture_has_each_mean_with_its_own_deviations(monkeypatch):
    figures = pytest.importorskip("matplotlib.figure", reason="pictures are drawn with matplotlib")
    figure = figures.Figure()
    monkeypatch.setattr(tradeoff, "draw_png", lambda *arguments: arguments[-1](figure))
    results = [make_result("autodim", s, 0.81 + 0.02 * s, params=40 + 10 * s) for s in range(3)]
    results += [make_result("fde", s, 0.78 + 0.01 * s, params=100) for s in range(3)]
    draw_tradeoff(summarize(results), "title")
    (axes,) = figure.axes
    autodim, fde = axes.containers  # points with a bar across and a bar along the AUC
    for points, place, across, along in (
        (autodim, (224, 0.83), (184, 264), (0.81, 0.85)),
        (fde, (424, 0.79), (424, 424), (0.78, 0.80)),
    ):
        line, _, bars = points
        assert line.get_xydata()[0] == pytest.approx(place)
        (first, second) = (bar.get_segments()[0] for bar in bars)
        assert first[:, 0] == pytest.approx(across) and second[:, 1] == pytest.approx(along)
    (full,) = (line for line in axes.lines if line.get_linestyle() == ":")
    assert list(full.get_ydata()) == pytest.approx([0.79, 0.79])
