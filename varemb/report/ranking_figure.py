"""The picture of methods that rank: quality by sparsity, and how a search came to its dims.

Rows of panels, a column per model: Recall@20 against the bytes of the tables; mean reward and mean
dims by episode, as Figure 3 of CIESS's paper; Recall@20 by lambda, as its Figure 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from varemb.report.comparison import Result
from varemb.report.figure import COLORS, MARKERS, byte_unit, draw_png, plain, whole_ticks
from varemb.report.ranking import levels_of
from varemb.report.table import method_name
from varemb.report.tradeoff import look

Draw = Callable[[Any, str], None]  # axes, model


def draw_ranking(
    summaries: Sequence[dict[str, Any]],
    results: Sequence[Result],
    costs: Sequence[Result],
    title: str,
) -> bytes:
    """The picture as a PNG; bars are standard deviations over seeds.

    Args:
        summaries: of `summarize_levels`.
        results: the cells that they are of, with their episodes.
        costs: cells of a sweep over lambda; may be none.
        title: above the panels.

    Raises:
        ImportError: matplotlib is not installed.
    """
    models = list(dict.fromkeys(result["model"] for result in (*results, *costs)))
    methods = list(dict.fromkeys(summary["method"] for summary in summaries))
    searched = [result for result in results if result["episodes"]]
    rows: list[Draw] = []
    if summaries:
        rows.append(lambda axes, model: _draw_levels(axes, summaries, methods, model))
    if searched:
        rows.append(lambda axes, model: _draw_reward(axes, searched, methods, model))
        rows.append(lambda axes, model: _draw_dims(axes, searched, methods, model))
    if costs:
        rows.append(lambda axes, model: _draw_costs(axes, costs, model))

    def draw_all(figure: Any) -> None:
        panels = figure.subplots(len(rows), len(models), squeeze=False)
        for draw, line in zip(rows, panels, strict=True):
            for model, axes in zip(models, line, strict=True):
                draw(axes, model)
        for model, axes in zip(models, panels[0], strict=True):
            axes.set_title(plain(model))

    size = (max(4.8 * len(models), 6.4), 3.4 * len(rows) + 0.5)
    return draw_png("picture", title, size, draw_all)


def _draw_levels(
    axes: Any, summaries: Sequence[dict[str, Any]], methods: Sequence[str], model: str
) -> None:
    mine = [summary for summary in summaries if summary["model"] == model]
    if not mine:
        axes.set_axis_off()
        return
    unit, factor = byte_unit(max(summary["bytes"] for summary in mine))
    for method in methods:
        levels = [summary for summary in mine if summary["method"] == method]
        color, marker = look(methods, method)
        axes.errorbar(
            [level["bytes"] / factor for level in levels],
            [level["recall@20"] for level in levels],
            yerr=[level["recall@20_sd"] or 0 for level in levels],
            color=color, marker=marker, ms=7, mec="white", lw=1.2, elinewidth=1.0, capsize=3,
            label=plain(method_name(method)),
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.get_major_locator().set_params(subs=(1, 2, 5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel(f"tables in memory: weights and index ({unit})")
    axes.set_ylabel("Recall@20 of the test pairs")
    axes.legend(frameon=False, fontsize=8)


def _by_episode(results: Sequence[Result], name: str) -> list[float]:
    """Means over the seeds, as many as the shortest search has episodes."""
    lines = [[episode[name] for episode in result["episodes"]] for result in results]
    return [mean(values) for values in zip(*lines, strict=False)]


def _draw_reward(axes: Any, searched: Sequence[Result], methods: Sequence[str], model: str) -> None:
    for method in methods:
        mine = [r for r in searched if (r["model"], r["method"]) == (model, method)]
        rewards = _by_episode(mine, "reward")
        color, marker = look(methods, method)
        if rewards:
            axes.plot(range(1, len(rewards) + 1), rewards, color=color, marker=marker, ms=5,
                      mec="white", label=plain(method_name(method)))  # fmt: skip
    whole_ticks(axes.xaxis)
    axes.set_xlabel("episode")
    axes.set_ylabel("mean reward")


def _draw_dims(axes: Any, searched: Sequence[Result], methods: Sequence[str], model: str) -> None:
    for method in methods:
        mine = [r for r in searched if (r["model"], r["method"]) == (model, method)]
        for side, style in (("user", "-"), ("item", ":")):
            dims = _by_episode(mine, f"mean_dim_{side}")
            if dims:
                axes.plot(range(1, len(dims) + 1), dims, style, color=look(methods, method)[0],
                          label=plain(f"{method_name(method)}, {side}s"))  # fmt: skip
    axes.set_ylim(bottom=0)
    whole_ticks(axes.xaxis)
    axes.set_xlabel("episode")
    axes.set_ylabel("mean dim")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def _draw_costs(axes: Any, costs: Sequence[Result], model: str) -> None:
    levels = levels_of([result for result in costs if result["model"] == model])
    for place, (sparsity, records) in enumerate(levels.items()):
        points = sorted({record["cost"] for record in records})
        recalls = [mean(r["metrics"]["recall@20"] for r in records if r["cost"] == cost)
                   for cost in points]  # fmt: skip
        axes.plot(points, recalls, color=COLORS[place % len(COLORS)],
                  marker=MARKERS[place % len(MARKERS)], mec="white",
                  label=f"sparsity {sparsity:g}")  # fmt: skip
    axes.set_xlabel("lambda")
    axes.set_ylabel("Recall@20 of the test pairs")
    if levels:
        axes.legend(frameon=False, fontsize=8)
