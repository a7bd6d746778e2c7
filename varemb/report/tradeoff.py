"""The picture of a comparison: quality against bytes, a panel per model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from varemb.report.figure import COLORS, INK, MARKERS, byte_unit, draw_png, plain
from varemb.report.table import method_name

_LOG_FROM = 8.0  # largest size over smallest above which the axis is logarithmic


def draw_tradeoff(summaries: Sequence[dict[str, Any]], title: str) -> bytes:
    """Test AUC against the bytes of the table as a PNG; bars are standard deviations over seeds.

    Args:
        summaries: of `summarize`, at least one.
        title: above the panels.

    Raises:
        ImportError: matplotlib is not installed.
    """
    models = list(dict.fromkeys(summary["model"] for summary in summaries))
    methods = list(dict.fromkeys(summary["method"] for summary in summaries))
    columns = min(len(models), 3)
    lines = -(-len(models) // columns)
    width = max(4.6 * columns, 6.4)
    names = int(width // 1.6)  # inches of a name and its marker: as many stand in a line
    legend = 0.25 * -(-(len(methods) + 1) // names)

    def draw(figure: Any) -> None:
        from matplotlib.lines import Line2D

        panels = list(figure.subplots(lines, columns, squeeze=False).flat)
        for model, axes in zip(models, panels, strict=False):
            _draw_panel(axes, [s for s in summaries if s["model"] == model], methods)
            axes.set_title(plain(model))
        for axes in panels[len(models) :]:
            axes.set_axis_off()
        looks = {method: look(methods, method) for method in methods}
        handles = [
            Line2D([], [], color=color, marker=marker, ls="", ms=8,
                   label=plain(method_name(method)))
            for method, (color, marker) in looks.items()
        ]  # fmt: skip
        if "fde" in methods:
            line = Line2D([], [], color=INK, lw=0.8, ls=":", label="full width's AUC")
            handles.append(line)
        figure.legend(handles=handles, loc="outside lower center", ncols=names, frameon=False)

    return draw_png("picture", title, (width, 3.6 * lines + 0.7 + legend), draw)


def look(methods: Sequence[str], method: str) -> tuple[str, str]:
    """Colour and marker: both differ among the first six, one of them among the first 36."""
    place = methods.index(method)
    return COLORS[place % len(COLORS)], MARKERS[(place + place // len(COLORS)) % len(MARKERS)]


def _draw_panel(axes: Any, summaries: Sequence[dict[str, Any]], methods: Sequence[str]) -> None:
    unit, factor = byte_unit(max(summary["bytes"] for summary in summaries))
    for summary in summaries:
        color, marker = look(methods, summary["method"])
        axes.errorbar(
            summary["bytes"] / factor,
            summary["auc"],
            xerr=(summary["bytes_sd"] or 0) / factor,
            yerr=summary["auc_sd"] or 0,
            color=color,
            marker=marker,
            ms=9,
            mec="white",
            elinewidth=1.2,
            capsize=3,
        )
    full = [summary["auc"] for summary in summaries if summary["method"] == "fde"]
    if full:
        axes.axhline(full[0], color=INK, lw=0.8, ls=":", zorder=0)
    sizes = [summary["bytes"] / factor for summary in summaries]
    if max(sizes) > _LOG_FROM * min(sizes) > 0:
        axes.set_xscale("log")
        axes.xaxis.get_major_locator().set_params(subs=(1, 2, 5))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_xlim(0, 1.08 * max(s["bytes"] + (s["bytes_sd"] or 0) for s in summaries) / factor)
    axes.margins(y=0.15)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4f}")
    axes.set_xlabel(f"table in memory: weights, index, unify ({unit})")
    axes.set_ylabel("AUC on the test part")
