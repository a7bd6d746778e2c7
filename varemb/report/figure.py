"""The picture of a report: dims per field, quality against bytes, training curves, memory.

Colours are those of Okabe and Ito, told apart by all common kinds of colour blindness; methods also
differ by marker.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import numpy as np

from varemb.plan import SizePlan
from varemb.report.table import PARTS, format_bytes, method_name, total_bytes
from varemb.runs import Run

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
_PART_COLORS = {
    "weights": "#44546A",
    "index": "#E69F00",
    "unify": "#009E73",
    "optimizer": "#A9B4C2",
}
INK, MUTED, _GRID = "#222222", "#666666", "#dddddd"

STYLE: Any = {
    "figure.constrained_layout.h_pad": 0.18,
    "figure.constrained_layout.w_pad": 0.14,
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "figure.facecolor": "white",
}


def plain(text: str) -> str:
    r"""Text of names for a picture: as it is written, where matplotlib would read $ as mathematics.

    Example:
        >>> print(plain("cost$x_{$y"))
        cost\$x_{\$y
    """
    return text.replace("$", r"\$")


def show_title(figure: Any, title: str, size: float) -> None:
    """A title above the panels, in several lines where one would leave the figure.

    Args:
        figure: a figure or a part of one.
        title: from outside, not yet `plain`.
        size: of its letters, in points.
    """
    text = figure.suptitle(plain(title), x=0.01, ha="left", fontsize=size, fontweight="bold")
    share = text.get_window_extent().width / (0.98 * figure.bbox.width)
    if share > 1:  # letters differ in width: a tenth is left free
        text.set_text(plain(textwrap.fill(title, int(0.9 * len(title) / share))))


def whole_ticks(axis: Any) -> None:
    """Ticks at whole numbers alone, one of them if there is only one."""
    axis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def draw_png(
    what: str, title: str, size: tuple[float, float], draw: Callable[[Any], None]
) -> bytes:
    """A figure in the report's style, with a title above it, as a PNG.

    Args:
        what: is drawn, for the error.
        title: as text; a $ in it is a $.
        size: width and height in inches of 200 pixels.
        draw: takes the empty figure and puts panels into it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(f"the {what} needs matplotlib: pip install 'varemb[plots]'") from None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        show_title(figure, title, 14)
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


def draw_report(runs: Sequence[Run], title: str) -> bytes:
    """The report's picture as a PNG, 2000 pixels wide.

    Args:
        runs: at least one; the fields are those of the first.
        title: above the panels.

    Raises:
        ImportError: matplotlib is not installed.
    """
    bars = len({run.metrics["method"] for run in runs})  # of a field
    height = max(4.0, max(0.30, 0.18 * bars) * len(runs[0].plan) + 1.4)

    def draw(figure: Any) -> None:
        panels = figure.subplots(2, 2, gridspec_kw={"height_ratios": [height, 3.6]})
        styles = _method_styles(runs)
        _draw_dims(panels[0][0], runs, styles)
        _draw_quality(panels[0][1], runs, styles)
        _draw_curves(panels[1][0], runs, styles)
        _draw_memory(panels[1][1], runs)

    return draw_png("report", title, (10, height + 4.6), draw)


def _method_styles(runs: Sequence[Run]) -> dict[str, tuple[str, str]]:
    methods = dict.fromkeys(result["method"] for run in runs for result in run.results)
    return {
        method: (COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)])
        for i, method in enumerate(methods)
    }


def _draw_dims(axes: Any, runs: Sequence[Run], styles: dict[str, tuple[str, str]]) -> None:
    plan = runs[0].plan
    names = list(plan)
    places = np.arange(len(names))
    same = [run for run in runs if list(run.plan) == names]
    methods = list(dict.fromkeys(run.metrics["method"] for run in same))
    widths = [max(run.plan.widths[name] for run in same) for name in names]
    axes.barh(places, widths, 0.72, color="#eeeeee")
    space = 0.72 / len(methods)  # a bar for each method
    for number, method in enumerate(methods):
        mine = [run.plan for run in same if run.metrics["method"] == method]
        lines = places + (number - (len(methods) - 1) / 2) * space
        label = plain(method_name(method)) if len(methods) > 1 else ""
        axes.barh(lines, _mean_dims(mine), space, color=styles[method][0], label=label)
        if len(mine) > 1:
            for each in mine:
                points = _mean_dims([each])
                axes.plot(points, lines, "o", ms=4, mfc="white", mec=INK, mew=0.8, clip_on=False)
        for place, name in zip(lines, names, strict=True):
            axes.text(
                max(widths) * 1.02, place, _dims_text(mine, name),
                va="center", ha="left", color=INK, fontweight="bold",
            )  # fmt: skip
    planted = runs[0].metrics.get("planted")
    if isinstance(planted, dict):
        values = [planted.get(name, np.nan) for name in names]
        axes.plot(values, places, "D", ms=7, mfc="none", mec=COLORS[1], mew=1.6, label="planted")
    if len(methods) > 1 or isinstance(planted, dict):  # below the axis and its label
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4, ncols=3, frameon=False
        )
    axes.set_yticks(places, [plain(f"{name}  ({len(plan[name]):,})") for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, max(widths))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("dim (numbers per row)")
    suffix = f", mean of {len(same)} runs" if len(same) > 1 else ""
    if len(methods) > 1:
        suffix = ", means of runs" if len(same) > len(methods) else ""
    axes.set_title(f"Dims per field (rows){suffix}")


def _mean_dims(plans: Sequence[SizePlan]) -> Any:
    """Of each field, the mean over its rows and over the plans. [F]"""
    return np.mean([[_mean_dim(plan[name]) for name in plans[0]] for plan in plans], 0)


def _dims_text(plans: Sequence[SizePlan], name: str) -> str:
    mean_dim = f"{mean(_mean_dim(plan[name]) for plan in plans):.3g}"
    ends = [(int(plan[name].min()), int(plan[name].max())) for plan in plans if len(plan[name])]
    if all(low == high for low, high in ends):
        return mean_dim
    return f"{min(ends)[0]} to {max(high for _, high in ends)}, mean {mean_dim}"


def _mean_dim(dims: np.ndarray[Any, Any]) -> float:
    return float(dims.mean()) if len(dims) else 0.0


def _draw_quality(axes: Any, runs: Sequence[Run], styles: dict[str, tuple[str, str]]) -> None:
    results = [result for run in runs for result in run.results]
    unit, factor = byte_unit(max(map(_table_bytes, results)))
    for method, (color, marker) in styles.items():
        mine = [result for result in results if result["method"] == method]
        x = [_table_bytes(result) / factor for result in mine]
        y = [result["metrics"]["auc"] for result in mine]
        if len(mine) > 1:
            axes.scatter(x, y, s=28, marker=marker, facecolors="none", edgecolors=color)
        axes.scatter(mean(x), mean(y), s=90, marker=marker, color=color, zorder=3)
        label = plain(method_name(method))
        label += f",\nmean of {len(mine)}" if len(mine) > 1 else ""
        axes.annotate(
            f"{label}: {mean(y):.4f}",
            (mean(x), max(y)),
            xytext=(0, 12),
            textcoords="offset points",
            ha="center",
            color=color,
            fontweight="bold",
        )
    values = [result["metrics"]["auc"] for result in results]
    spread = max(max(values) - min(values), 0.002)
    axes.set_ylim(min(values) - 0.6 * spread, max(values) + 1.1 * spread)
    axes.set_xlim(0, 1.2 * max(map(_table_bytes, results)) / factor)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4f}")
    axes.set_xlabel(f"table in memory: weights, index and unify ({unit})")
    axes.set_ylabel("AUC on the test part")
    axes.set_title("Quality against bytes")


def _table_bytes(result: dict[str, Any]) -> int:
    return total_bytes(result) - int(result["bytes"].get("optimizer", 0))


def byte_unit(most: float) -> tuple[str, float]:
    """The unit of an axis that ends at so many bytes, and its size."""
    for unit, factor in (("GiB", 1024.0**3), ("MiB", 1024.0**2), ("KiB", 1024.0)):
        if most >= 2 * factor:
            return unit, factor
    return "bytes", 1.0


def _draw_curves(axes: Any, runs: Sequence[Run], styles: dict[str, tuple[str, str]]) -> None:
    is_empty = True
    for method, (color, marker) in styles.items():
        label: str | None = plain(method_name(method))
        for run in runs:
            points = [
                (record["epoch"], record["valid"]["auc"])
                for record in run.history
                if record.get("phase") == "train"
                and record.get("method") == method
                and "valid" in record
            ]
            if points:
                is_empty = False
                axes.plot(
                    *zip(*points, strict=True),
                    color=color,
                    marker=marker,
                    ms=4,
                    lw=1.6,
                    label=label,
                )
                label = None  # of the method's first run alone
    if is_empty:
        axes.text(0.5, 0.5, "no history", transform=axes.transAxes, ha="center", color=MUTED)
    else:
        axes.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")
        whole_ticks(axes.xaxis)
    axes.set_xlabel("epoch")
    axes.set_ylabel("AUC on the validation part")
    axes.set_title("Training")


def _draw_memory(axes: Any, runs: Sequence[Run]) -> None:
    methods = list(_method_styles(runs))
    results = [result for run in runs for result in run.results]
    parts = {
        method: {
            part: mean(r["bytes"].get(part, 0) for r in results if r["method"] == method)
            for part in PARTS
        }
        for method in methods
    }
    totals = [sum(parts[method].values()) for method in methods]
    unit, factor = byte_unit(max(totals))
    left = np.zeros(len(methods))
    for part in PARTS:
        sizes = np.array([parts[method][part] for method in methods]) / factor
        axes.barh(range(len(methods)), sizes, 0.55, left=left, color=_PART_COLORS[part], label=part)
        left += sizes
    for place, total in enumerate(totals):
        share = f", {total / max(totals):.0%}" if total < max(totals) else ""
        axes.text(
            total / factor + 0.015 * max(left), place, f"{format_bytes(total)}{share}",
            va="center", ha="left", fontweight="bold",
        )  # fmt: skip
    axes.set_yticks(range(len(methods)), [plain(method_name(method)) for method in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.set_xlim(0, 1.42 * max(left))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"measured memory ({unit})")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=4, frameon=False,
        columnspacing=1.2, handlelength=1.0,
    )  # fmt: skip
    axes.set_title("Memory while training")
