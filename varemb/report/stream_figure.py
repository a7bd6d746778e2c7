"""The picture of runs on streams: quality, bytes and widths over time, by frequency, at the end.

A panel is drawn when a run has what it shows. Runs of one method are drawn as their mean, with the
runs themselves as thin lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import mean
from typing import Any

import numpy as np

from varemb.report.figure import (
    COLORS,
    INK,
    MUTED,
    byte_unit,
    draw_png,
    plain,
    show_title,
    whole_ticks,
)
from varemb.report.frequency_panels import draw_histogram, draw_quality, draw_widths
from varemb.report.stream_table import QUALITY, REFERENCE
from varemb.report.table import format_bytes, method_name
from varemb.runs import Run

Styles = dict[str, str]  # method -> colour
Draw = Callable[[Any, Styles], None]

_CASES = 8  # rows whose history is shown at most
_NUMBER_BYTES = 4  # of a stored number, float32


def draw_streams(runs: Sequence[Run], title: str) -> bytes:
    """The report's picture as a PNG, 2000 pixels wide.

    Args:
        runs: at least one, on one stream.
        title: above the panels.

    Raises:
        ImportError: matplotlib is not installed.
    """
    styles = method_colors(runs)
    panels = _panels(runs)
    cases = next((run for run in runs if run.metrics["tables"].get("case_study")), None)
    lines = -(-len(panels) // 2)
    height = 3.3 * lines
    legend = 0.3 * -(-len(styles) // 4)
    extra = 0.0 if cases is None else 3.9

    def draw_all(figure: Any) -> None:
        from matplotlib.lines import Line2D

        handles = [
            Line2D([], [], color=color, lw=3, label=plain(method_name(method)))
            for method, color in styles.items()
        ]
        parts: list[Any] = [figure]
        if cases is not None:
            shares = [height + legend, extra]
            parts = figure.subfigures(2, 1, squeeze=False, height_ratios=shares).ravel().tolist()
        parts[0].legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
        axes = list(parts[0].subplots(lines, 2, squeeze=False).flat)
        for draw, each in zip(panels, axes, strict=False):
            draw(each, styles)
        for each in axes[len(panels) :]:
            each.set_axis_off()
        if cases is not None:
            _draw_cases(parts[1], cases)

    return draw_png("report", title, (10, height + 0.6 + legend + extra), draw_all)


def method_colors(runs: Sequence[Run]) -> Styles:
    """A colour per method; what others are compared with is grey."""
    methods = list(dict.fromkeys(run.metrics["method"] for run in runs))
    coloured = [method for method in methods if not _is_reference(method)] or methods
    colors = {method: COLORS[i % len(COLORS)] for i, method in enumerate(coloured)}
    return {method: colors.get(method, MUTED) for method in methods}


def _is_reference(method: str) -> bool:
    return method.startswith(REFERENCE)


def _panels(runs: Sequence[Run]) -> list[Draw]:
    panels: list[Draw] = []
    for name in ("accuracy", "recall@20", "ndcg@20"):
        if _any(runs, name):
            panels.append(partial(_draw_quality, runs=runs, name=name))
    if _any(runs, "bytes"):
        panels.append(partial(_draw_bytes, runs=runs))
    for side in ("user", "item"):
        if _has(runs, "quality_by_frequency", side):
            panels.append(partial(draw_quality, runs=runs, side=side))
    if _has(runs, "width_by_frequency"):
        panels.append(partial(draw_widths, runs=runs))
    for side in ("user", "item"):
        if _has(runs, "widths", side):
            panels.append(partial(draw_histogram, runs=runs, side=side))
    if _any(runs, "grown"):
        panels.append(partial(_draw_changes, runs=runs))
    return panels


def _any(runs: Sequence[Run], name: str) -> bool:
    return any(_series(run, name)[0] for run in runs)


def _has(runs: Sequence[Run], table: str, side: str | None = None) -> bool:
    return any(
        side is None or record["side"] == side
        for run in runs
        for record in run.metrics["tables"].get(table, [])
    )


def _series(run: Run, name: str) -> tuple[list[float], list[float]]:
    """Where in the stream, and the value there."""
    place = "segment" if run.history and "segment" in run.history[0] else "events"
    records = run.history
    # A window's own quality moves more than the quality so far.
    if any(f"{name}_window" in each for each in records):
        name = f"{name}_window"
        records = [*records[:-1], *([] if _ends_short(records) else records[-1:])]
    points = [(each[place], each[name]) for each in records if each.get(name) is not None]
    x, y = zip(*points, strict=True) if points else ((), ())
    return list(x), list(y)


def _ends_short(records: Sequence[dict[str, Any]]) -> bool:
    """Whether the last window has less than half the events of the first: too few for a point."""
    events = [0, *(each["events"] for each in records)]
    return events[-1] - events[-2] < events[1] / 2


def _draw_lines(axes: Any, styles: Styles, runs: Sequence[Run], name: str, scale: float) -> None:
    for method, color in styles.items():
        mine = [_series(run, name) for run in runs if run.metrics["method"] == method]
        mine = [(x, y) for x, y in mine if x]
        if not mine:
            continue
        marker = "o" if len(mine[0][0]) < 25 else None
        if len(mine) > 1:
            for x, y in mine:
                axes.plot(x, np.multiply(y, scale), color=color, lw=0.7, alpha=0.45)
        places = sorted(set.intersection(*(set(x) for x, _ in mine)))
        values = [mean(dict(zip(x, y, strict=True))[place] for x, y in mine) for place in places]
        axes.plot(places, np.multiply(values, scale), color=color, lw=1.8, marker=marker, ms=4)
    _label_time(axes, runs)


def _label_time(axes: Any, runs: Sequence[Run]) -> None:
    is_segments = any("segment" in record for run in runs for record in run.history)
    axes.set_xlabel("segment" if is_segments else "events")
    if is_segments:
        whole_ticks(axes.xaxis)
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: short_count(value))


def short_count(value: float) -> str:
    """A count of an axis.

    Example:
        >>> short_count(250_000), short_count(1_500_000), short_count(40)
        ('250k', '1.5M', '40')
    """
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _draw_quality(axes: Any, styles: Styles, runs: Sequence[Run], name: str) -> None:
    scale = 100 if name == "accuracy" else 1
    _draw_lines(axes, styles, runs, name, scale)
    label = QUALITY[name][0]
    axes.set_ylabel(f"{label} (%)" if name == "accuracy" else label)
    is_window = any(f"{name}_window" in record for run in runs for record in run.history)
    axes.set_title(f"{label[0].upper()}{label[1:]} over the stream" if is_window
                   or name == "accuracy" else f"{label} of each segment")  # fmt: skip


def _draw_bytes(axes: Any, styles: Styles, runs: Sequence[Run]) -> None:
    budgets = [max(y) for y in (_series(run, "budget_bytes")[1] for run in runs) if y]
    most = max(max(_series(run, "bytes")[1], default=0) for run in runs)
    limits = {budget: f"budget: {budget:,.0f} bytes" for budget in budgets}
    if not limits and not any(_is_reference(method) for method in styles):
        full = max(run.metrics["params_full"] for run in runs)
        size = full * _NUMBER_BYTES
        limits = {size: f"all rows at full width, at the end: {format_bytes(size)}"}
    unit, factor = byte_unit(max([most, *limits]))
    _draw_lines(axes, styles, runs, "bytes", 1 / factor)
    for limit, text in limits.items():
        axes.axhline(limit / factor, color=INK, lw=1.2, ls="--")
        axes.annotate(
            text, (0.02, limit / factor), (0, 4),
            xycoords=("axes fraction", "data"), textcoords="offset points", color=INK,
            va="bottom",
        )  # fmt: skip
    axes.set_ylim(0, 1.18 * max([most, *limits]) / factor)
    axes.set_ylabel(f"table in memory ({unit})")
    axes.set_title("Bytes over the stream")


def _draw_changes(axes: Any, styles: Styles, runs: Sequence[Run]) -> None:
    for name, line in (("grown", "-"), ("shrunk", ":")):
        for method, color in styles.items():
            mine = [_series(run, name) for run in runs if run.metrics["method"] == method]
            for x, y in mine[:1]:
                axes.plot(x, np.multiply(y, 100), color=color, ls=line, lw=1.8, marker="o", ms=4)
        axes.plot([], [], color=INK, ls=line, label=name)
    axes.set_ylim(0, min(1.3 * axes.get_ylim()[1], 100))  # room for the legend, up to all rows
    axes.legend(loc="best", ncols=2, framealpha=0.9, edgecolor="none")
    axes.set_ylabel("rows (%)")
    axes.set_title("Rows that grew and shrank")
    _label_time(axes, runs)


def _draw_cases(figure: Any, run: Run) -> None:
    """A panel per chosen row: its interactions as bars, its width as a line."""
    records = run.metrics["tables"]["case_study"]
    chosen = list(dict.fromkeys((each["side"], each["id"]) for each in records))[:_CASES]
    name = method_name(run.metrics["method"])
    text = f"Chosen rows over the segments, {name}: interactions (bars) and width (line)"
    show_title(figure, text, 12)
    columns = 4
    panels = list(figure.subplots(-(-len(chosen) // columns), columns, squeeze=False).flat)
    widest, last = (max(each[name] for each in records) for name in ("dim", "segment"))
    for (side, row), axes in zip(chosen, panels, strict=False):
        mine = [each for each in records if (each["side"], each["id"]) == (side, row)]
        segments = [each["segment"] for each in mine]
        axes.bar(segments, [each["interactions"] for each in mine], color="#cccccc", width=0.8)
        axes.set_xlim(-0.6, last + 0.6)
        axes.set_title(plain(f"{side} {row}"), fontsize=10)
        axes.grid(visible=False)
        axes.tick_params(labelsize=8, colors=MUTED)
        whole_ticks(axes.xaxis)
        other = axes.twinx()
        other.plot(segments, [each["dim"] for each in mine], color=COLORS[0], marker="o", ms=3)
        other.set_ylim(0, 1.1 * widest)
        other.tick_params(labelsize=8, colors=COLORS[0])
        other.grid(visible=False)
    for axes in panels[len(chosen) :]:
        axes.set_axis_off()
