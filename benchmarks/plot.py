"""``python -m benchmarks.plot OUT.png --peers FILE --scale FILE``: pictures of written results.

``--peers`` takes a file of ``benchmarks.run all --json``: bytes against time of ours and of every
peer on the targets' case. ``--scale`` takes one of ``benchmarks.bench_scale --out``: the time of a
step over the rows of the table.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from varemb.files import atomic_write, load_json
from varemb.report.figure import COLORS, INK, MARKERS, MUTED, draw_png

Json = dict[str, Any]
# Ours of each panel, as the results name it, and the panel's title.
PANELS = {
    "VarEmbeddingBag": "Forward of bags",
    "VarEmbeddingBag fused rowwise_adagrad": "Step, row-wise Adagrad",
    "VarEmbeddingBag fused adam": "Step, Adam",
}
# Colour and marker by how a table is stored.
LOOKS = {
    layout: (COLORS[i], MARKERS[i])
    for i, layout in enumerate(("jagged", "padded", "classes", "masked", "six"))
}
_LABEL_GAP = 0.052  # least distance of two labels, of the panel's height
_PANEL = (7.4, 4.8)  # inches
_INNER_WIDTH = 6.5  # of these, between the axes
_INNER_HEIGHT = 3.7
_LETTER = 0.066  # inches of a label's letter, on average
_MARKER_GAP = 0.3  # inches from a point to the far side of its label's line


def draw_results(records: Sequence[Json], tables: Sequence[Json]) -> bytes:
    """A PNG with a panel per operation of the targets' case and one for the sizes of the table.

    Args:
        records: cases of ``benchmarks.run``; may be empty.
        tables: records of ``benchmarks.bench_scale``; may be empty.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is nothing to draw.
    """
    draws: list[Callable[[Any], None]] = []
    for name, lines in _target_blocks(records).items():
        draws.append(lambda axes, name=name, lines=lines: _draw_block(axes, PANELS[name], lines))
    if tables:
        draws.append(lambda axes: _draw_scale(axes, tables))
    if not draws:
        raise ValueError("plot: the results have neither the targets' case nor tables by rows")
    columns = min(2, len(draws))
    height = math.ceil(len(draws) / columns)

    def draw(figure: Any) -> None:
        panels = list(figure.subplots(height, columns, squeeze=False).flat)
        for put, axes in zip(draws, panels, strict=False):
            put(axes)
        for axes in panels[len(draws) :]:
            axes.set_axis_off()

    title = "Time and memory: lower and further left is better" if records else "Size and time"
    return draw_png("plot", title, (_PANEL[0] * columns, _PANEL[1] * height + 0.4), draw)


def _target_blocks(records: Sequence[Json]) -> dict[str, list[Json]]:
    """The lines of each panel: ours first, then the peers that ran."""
    found = {
        block[0]["name"]: [line for line in block if line["time"] is not None]
        for record in records
        if record["is_target_case"]
        for block in record["blocks"]
    }
    return {name: found[name] for name in PANELS if name in found}


def _draw_block(axes: Any, title: str, lines: Sequence[Json]) -> None:
    """Bytes against milliseconds, both logarithmic, every point labelled beside it."""
    x = [math.log10(line["tensor_bytes"] / 1e6) for line in lines]
    y = [math.log10(line["time"]["median"]) for line in lines]
    middle = (min(x) + max(x)) / 2
    sides = [[i for i in range(len(lines)) if (x[i] <= middle) == left] for left in (True, False)]
    # Labels of the left half stand left of their points, the others right of theirs.
    rooms = [
        max((_LETTER * len(_label(lines[i])) + _MARKER_GAP for i in side), default=0.2)
        for side in sides
    ]
    unit = max(max(x) - min(x), 0.3) / max(_INNER_WIDTH - sum(rooms), 1.0)  # of an inch
    axes.set(xscale="log", yscale="log", title=title)
    axes.set_xlim(10 ** (min(x) - rooms[0] * unit), 10 ** (max(x) + rooms[1] * unit))
    room = 0.08 * max(max(y) - min(y), 0.3)
    bottom, height = min(y) - room, max(y) - min(y) + 2 * room
    axes.set_ylim(10**bottom, 10 ** (bottom + height))
    heights = [(value - bottom) / height for value in y]
    for side, is_left in zip(sides, (True, False), strict=True):
        for i, place in zip(side, spread([heights[i] for i in side], _LABEL_GAP), strict=True):
            _draw_point(axes, lines[i], place - heights[i], is_left)
    axes.set_xlabel("weights, index and optimizer state (MB)")
    axes.set_ylabel("ms per call")
    axes.minorticks_off()
    axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ticks = [mb * 10**k for k in range(6) for mb in (1, 3)]
    axes.set_xticks([mb for mb in ticks if min(x) - 0.2 < math.log10(mb) < max(x) + 0.2])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _label(line: Json) -> str:
    """A name without our word for the optimizer, which the panel's title says, and its time."""
    own = (f" fused {line['optimizer']}", f" {line['optimizer']}")
    name = line["name"]
    for words in own:
        name = name.removesuffix(words)
    return f"{name}  {line['time']['median']:.3g}"


def _draw_point(axes: Any, line: Json, lift: float, is_left: bool) -> None:
    """A marker and its name, lifted by a part of the panel's height to be free of others."""
    is_ours, point = (
        line["layout"] == "jagged",
        (line["tensor_bytes"] / 1e6, line["time"]["median"]),
    )
    color, marker = LOOKS[line["layout"]]
    axes.plot(*point, marker=marker, color=color, ms=11 if is_ours else 7, mec="white", ls="")
    axes.annotate(
        _label(line),
        point,
        xytext=(-14 if is_left else 14, 72 * lift * _INNER_HEIGHT),
        textcoords="offset points",
        ha="right" if is_left else "left",
        va="center",
        fontsize=8,
        fontweight="bold" if is_ours else "normal",
        color=color if is_ours else INK,
        arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.6, "shrinkA": 0, "shrinkB": 4},
    ).set_in_layout(False)  # the room is inside of the panel


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights moved until they are a gap apart, in the same order.

    Those that are too close form a pile, whose middle stays where theirs was.
    """
    piles: list[list[int]] = []
    for i in sorted(range(len(heights)), key=lambda i: heights[i]):
        piles.append([i])
        while len(piles) > 1 and _top(piles[-2], heights, gap) + gap > _bottom(
            piles[-1], heights, gap
        ):
            piles[-2:] = [piles[-2] + piles[-1]]
    out = [0.0] * len(heights)
    for pile in piles:
        for k, i in enumerate(pile):
            out[i] = _bottom(pile, heights, gap) + k * gap
    return out


def _bottom(pile: Sequence[int], heights: Sequence[float], gap: float) -> float:
    return sum(heights[i] for i in pile) / len(pile) - gap * (len(pile) - 1) / 2


def _top(pile: Sequence[int], heights: Sequence[float], gap: float) -> float:
    return _bottom(pile, heights, gap) + gap * (len(pile) - 1)


def _draw_scale(axes: Any, tables: Sequence[Json]) -> None:
    """Milliseconds of a step over the rows, one line per method and law of access."""
    methods = list(dict.fromkeys(table["method"] for table in tables))
    laws = [key for key in tables[0] if key.startswith("step_ms, ")]
    top = 1.1 * max(table[key]["high"] for table in tables for key in laws)
    ends: list[tuple[str, str, int, float]] = []  # label, colour, rows and height of a line's end
    for i, method in enumerate(methods):
        own = sorted((t for t in tables if t["method"] == method), key=lambda t: t["rows"])
        rows = [table["rows"] for table in own]
        for key, style in zip(laws, ("-", "--"), strict=True):
            steps = [table[key] for table in own]
            middle = [step["median"] for step in steps]
            errors = [
                [step["median"] - step["low"] for step in steps],
                [step["high"] - step["median"] for step in steps],
            ]
            axes.errorbar(rows, middle, errors, fmt=MARKERS[i] + style, color=COLORS[i], capsize=2)
            label = f"{method}, {key.removeprefix('step_ms, ')}: {middle[-1]:.3g}"
            ends.append((label, COLORS[i], rows[-1], middle[-1] / top))
    places = spread([height for *_, height in ends], _LABEL_GAP)
    for (label, color, last, height), place in zip(ends, places, strict=True):
        axes.annotate(
            label,
            (last, top * height),
            xytext=(10, 72 * (place - height) * _INNER_HEIGHT),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=color,
        ).set_in_layout(False)
    axes.set(xscale="log", xlabel="rows", ylabel="ms per step", title="Step by size of the table")
    most, fewest = (pick(table["rows"] for table in tables) for pick in (max, min))
    axes.set_xlim(fewest / 1.5, most * max(most / fewest, 2) ** 0.75)
    axes.set_ylim(0, top)
    axes.minorticks_off()
    axes.set_xticks(sorted({table["rows"] for table in tables}))
    axes.xaxis.set_major_formatter(lambda value, _: _show_rows(value))


def _show_rows(rows: float) -> str:
    return f"{rows / 1e6:g} M" if rows >= 1e6 else f"{rows:,.0f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("out", metavar="OUT.png")
    parser.add_argument("--peers", metavar="FILE.json", help="results of benchmarks.run")
    parser.add_argument("--scale", metavar="FILE.json", help="results of benchmarks.bench_scale")
    options = parser.parse_args(argv)
    if not options.peers and not options.scale:
        parser.error("plot: --peers or --scale says what to draw")
    records = load_json(options.peers)["cases"] if options.peers else []
    tables = load_json(options.scale)["tables"] if options.scale else []
    atomic_write(options.out, draw_results(records, tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
