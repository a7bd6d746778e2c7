"""One line per operation and case: ours beside the best of the others, losses included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]
COLUMNS = ("ours", "case", "time", "best of the others", "time", "ratio", "bytes", "")

LEGEND = """\
ratio: the other's time over ours, median over interleaved rounds; below 1 we lose. bytes: our
weights, index and optimizer state over a padded table with the same optimizer's state."""


def format_summary(records: Sequence[Json]) -> str:
    """The table of a run. records: of ``table.case_record``, as measured or read from a file."""
    lines = [line for record in records for line in summarize_case(record)]
    cells = [COLUMNS, *(_cells(line) for line in lines)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
    is_left = (True, True, False, True, False, False, False, True)
    text = [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, is_left, strict=True)
        ).rstrip()
        for row in cells
    ]
    compared = [line for line in lines if line["ratio"] is not None]
    lost = sum(line["ratio"] < 1 for line in compared)
    return "\n".join([*text, f"faster in {len(compared) - lost}, slower in {lost}", LEGEND])


def summarize_case(record: Json) -> list[Json]:
    """For each of ours: its time, the other that is fastest beside it, and the bytes."""
    out = []
    for own, *others in record["blocks"]:
        ran = [line for line in others if line["time"] is not None]
        best = min(ran, key=lambda line: line["speedup"]["median"], default=None)
        out.append(
            {
                "ours": own["name"],
                "case": record["short"],
                "ms": own["time"]["median"],
                "best": best["name"] if best else "none could run",
                "best_ms": best["time"]["median"] if best else None,
                "ratio": best["speedup"]["median"] if best else None,
                "padded_share": own["padded_share"],
            }
        )
    return out


def _cells(line: Json) -> tuple[str, ...]:
    ratio = line["ratio"]
    return (
        line["ours"],
        line["case"],
        show_time(line["ms"]),
        line["best"],
        "" if ratio is None else show_time(line["best_ms"]),
        "" if ratio is None else f"{ratio:.2f}",
        f"{line['padded_share']:.0%}",
        "LOSS" if ratio is not None and ratio < 1 else "",
    )


def show_time(ms: float) -> str:
    """Milliseconds, or microseconds where a call takes less than one."""
    return f"{1000 * ms:.1f} us" if ms < 1 else f"{ms:.2f} ms"
