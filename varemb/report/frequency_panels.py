"""Panels of a stream's picture about how often a row was seen: quality, width; and all widths."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt

from varemb.report.figure import INK, plain
from varemb.report.stream_table import REFERENCE
from varemb.report.table import method_name
from varemb.runs import Run

# Frequencies that are pooled: few events have any one frequency. The last ends are left out.
_EDGES = np.array([1, 2, 3, 4, 6, 9, 13, 19, 27, 38, 53, 74, 101])
_CLASSES = 12  # widths that have a bar of their own; more are pooled by powers of two
_LINES = {"user": "-", "item": "--"}

Curve = dict[int, tuple[float, float]]  # first frequency of a pool -> its middle, and the value


def draw_quality(axes: Any, styles: dict[str, str], runs: Sequence[Run], side: str) -> None:
    """Accuracy by frequency, or what is gained over the reference where there is one."""
    curves = {method: [_accuracy(run, side) for run in _of(runs, method)] for method in styles}
    curves = {method: [each for each in mine if each] for method, mine in curves.items()}
    reference = next((method for method in curves if method.startswith(REFERENCE)), None)
    base = _mean_curve(curves[reference]) if reference else {}
    is_gain = bool(base) and any(mine for method, mine in curves.items() if method != reference)
    for method, mine in curves.items():
        if not mine or (is_gain and method == reference):
            continue
        drawn = [*(mine if len(mine) > 1 else []), _mean_curve(mine)]
        for number, curve in enumerate(drawn):
            pools = [pool for pool in curve if not is_gain or pool in base]
            x = [curve[pool][0] for pool in pools]
            y = [100 * (curve[pool][1] - (base[pool][1] if is_gain else 0)) for pool in pools]
            is_mean = number == len(drawn) - 1
            axes.plot(x, y, color=styles[method], marker="o" if is_mean else None, ms=4,
                      lw=1.8 if is_mean else 0.7, alpha=1 if is_mean else 0.45)  # fmt: skip
    if is_gain:
        axes.axhline(0, color=INK, lw=0.8)
    _frequency_axis(axes)
    axes.set_xlabel(f"times the {side} was seen")
    against = plain(method_name(reference)) if reference else ""
    axes.set_ylabel("points of accuracy" if is_gain else "accuracy (%)")
    axes.set_title(
        f"Gain over {against}, {side}s" if is_gain else f"Accuracy by frequency, {side}s"
    )


def draw_widths(axes: Any, styles: dict[str, str], runs: Sequence[Run]) -> None:
    """Mean width by frequency, of users and items."""
    most, least = 1, 1
    for method in _of_several_widths(runs, styles):
        color = styles[method]
        for side, line in _LINES.items():
            curve = _widths(_of(runs, method), side)
            if curve:
                axes.plot(list(curve), list(curve.values()), color=color, ls=line, lw=1.8)
                most, least = max(most, *curve), min(least, *curve)
    for side, line in _LINES.items():
        axes.plot([], [], color=INK, ls=line, label=f"{side}s")
    axes.legend(frameon=False, loc="upper left", ncols=2)
    _frequency_axis(axes, most, least)
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    is_segment = any("segment" in record for run in runs for record in run.history)
    axes.set_xlabel(f"times the row was seen{' in its segment' if is_segment else ''}")
    axes.set_ylabel("mean width")
    axes.set_title("Width by frequency")


def draw_histogram(axes: Any, styles: dict[str, str], runs: Sequence[Run], side: str) -> None:
    """Share of the rows of each width at the end."""
    shown = {
        method: [_histogram(run, side) for run in _of(runs, method)]
        for method in _of_several_widths(runs, styles)
    }
    shown = {method: [each for each in mine if each] for method, mine in shown.items()}
    shown = {method: mine for method, mine in shown.items() if mine}
    every = (_histogram(run, each) for m in shown for run in _of(runs, m) for each in _LINES)
    dims = sorted({dim for found in every for dim in found})  # both sides have the same bars
    bins = _width_bins(dims)
    space = 0.8 / max(len(shown), 1)
    for number, (method, mine) in enumerate(shown.items()):
        shares = [_shares(each, bins) for each in mine]
        places = np.arange(len(bins)) + (number - (len(shown) - 1) / 2) * space
        axes.bar(places, 100 * np.mean(shares, 0), space * 0.94, color=styles[method])
    axes.set_xticks(range(len(bins)), [str(low) for low, _ in bins])
    axes.grid(axis="x", visible=False)
    is_pooled = any(low != high for low, high in bins)
    axes.set_xlabel("width at the end, up to the next" if is_pooled else "width at the end")
    axes.set_ylabel(f"{side}s (%)")
    axes.set_title(f"Widths of {side}s")


def _of_several_widths(runs: Sequence[Run], styles: dict[str, str]) -> list[str]:
    """Methods whose rows differ in width; all of them if none has such rows."""
    varied = []
    for method in styles:
        dims = {
            dim for run in _of(runs, method) for side in _LINES for dim in _histogram(run, side)
        }
        varied += [method] if len(dims) > 1 else []
    return varied or list(styles)


def _of(runs: Sequence[Run], method: str) -> list[Run]:
    return [run for run in runs if run.metrics["method"] == method]


def _records(run: Run, table: str, side: str) -> list[dict[str, Any]]:
    return [each for each in run.metrics["tables"].get(table, []) if each["side"] == side]


def _accuracy(run: Run, side: str) -> Curve:
    # Of the whole stream where that is told: in its last part few rows are seen for the first time.
    records = _records(run, "quality_by_frequency_all", side)
    records = records or _records(run, "quality_by_frequency", side)
    places = np.array([each["frequency"] for each in records])
    events = np.array([each["events"] for each in records], float)
    right = events * [each["accuracy"] for each in records]
    curve: Curve = {}
    for low, high in zip(_EDGES[:-1].tolist(), _EDGES[1:].tolist(), strict=True):
        inside = (places >= low) & (places < high)
        if inside.any():
            middle = float(np.sqrt(low * (high - 1)))
            curve[low] = (middle, float(right[inside].sum() / events[inside].sum()))
    return curve


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    pools = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    return {pool: (curves[0][pool][0], mean(curve[pool][1] for curve in curves)) for pool in pools}


def _widths(runs: Sequence[Run], side: str) -> dict[int, float]:
    """Frequency -> mean width over the runs that have it."""
    found: dict[int, list[float]] = {}
    for run in runs:
        for record in _records(run, "width_by_frequency", side):
            found.setdefault(record["frequency"], []).append(record["mean_dim"])
    return {frequency: mean(dims) for frequency, dims in sorted(found.items())}


def _histogram(run: Run, side: str) -> dict[int, int]:
    return {each["dim"]: each["rows"] for each in _records(run, "widths", side)}


def _width_bins(dims: Sequence[int]) -> list[tuple[int, int]]:
    """First and last dim of each bar.

    Example:
        >>> _width_bins([2, 4, 64]), _width_bins(range(0, 14))
        ([(2, 2), (4, 4), (64, 64)], [(0, 0), (1, 1), (2, 3), (4, 7), (8, 15)])
    """
    if len(dims) <= _CLASSES:
        return [(dim, dim) for dim in dims]
    powers = sorted({dim.bit_length() for dim in dims})
    return [(2 ** (power - 1), 2**power - 1) if power else (0, 0) for power in powers]


def _shares(rows: dict[int, int], bins: Sequence[tuple[int, int]]) -> npt.NDArray[np.float64]:
    counts = [sum(n for dim, n in rows.items() if low <= dim <= high) for low, high in bins]
    return np.array(counts, float) / max(sum(rows.values()), 1)


def _frequency_axis(axes: Any, most: int = 100, least: int = 1) -> None:
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)  # 0 has a place
    ticks = [tick * 10**power for power in range(7) for tick in (1, 2, 5)]
    shown = [tick for tick in ticks if tick <= most * 1.05]
    if len(shown) > 7:
        shown = [tick for tick in shown if str(tick)[0] == "1"]
    shown = [0, *shown] if least == 0 else shown
    axes.set_xlim(-0.2 if least == 0 else 0.9, most * 1.15)
    axes.set_xticks(shown, [f"{tick:,}" for tick in shown])
    axes.minorticks_off()
