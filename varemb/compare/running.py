"""What comparisons share: cells one after the other, what of them failed, and the files written."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from varemb.experiment import Result
from varemb.files import atomic_write, save_json
from varemb.report import Table

Say = Callable[[str], None]


def run_cells(
    titles: Mapping[str, str],
    run: Callable[[str, dict[str, Result]], Result],
    is_finished: Callable[[str], bool],
    describe: Callable[[Result], str],
    say: Say,
    *,
    trace: bool,
) -> tuple[dict[str, Result], list[str]]:
    """Runs all cells; one that fails is reported, and the others go on.

    Args:
        titles: name of each cell's folder -> what is said of it, in the order of running.
        run: runs or reads one cell, given the results so far.
        is_finished: whether a cell needs to be read only.
        describe: what is said of a result.
        say: takes each line that is printed.
        trace: also print where a failing cell failed.

    Returns:
        Results by folder, and a line for each cell that failed.
    """
    results: dict[str, Result] = {}
    failures: list[str] = []
    times: list[float] = []  # seconds of each cell that was run
    for number, (folder, title) in enumerate(titles.items(), 1):
        is_old = is_finished(folder)
        text = f"cell {number} of {len(titles)}: {title}"
        if is_old:
            text += ", finished before"
        elif times:
            left = sum(times) / len(times) * (len(titles) - number + 1)
            text += f"; about {duration(left)} left"
        say(text)
        start = time.perf_counter()
        try:
            results[folder] = run(folder, results)
        except Exception as error:  # whatever it is, the other cells are still worth running
            if trace:
                say(traceback.format_exc())
            failures.append(f"{folder}: {type(error).__name__}: {error}")
            say(f"  failed: {type(error).__name__}: {error}")
        else:
            say(f"  {describe(results[folder])}")
        if not is_old:
            times.append(time.perf_counter() - start)
    return results, failures


def write_comparison(
    out: Path,
    record: dict[str, Any],
    tables: Sequence[Table],
    failures: Sequence[str],
    say: Say,
    draw: Callable[[], bytes] | None,
) -> None:
    """Writes the tables as comparison.md, with comparison.json and .png beside it; prints them.

    Without a table what an earlier comparison wrote stays.

    Args:
        out: the folder; made if it is not there.
        record: of comparison.json, which gets the tables and failures too.
        tables: in order.
        failures: of `run_cells`.
        say: takes what is printed.
        draw: makes the picture; None where there is nothing to draw.
    """
    lines = [f"\n{table.text()}" for table in tables]
    if failures:
        lines.append("\nfailed:\n" + "\n".join(failures))
    if not tables and (out / "comparison.json").exists():
        lines.append(f"\nno cell is finished: {out / 'comparison.json'} stays as it was")
    else:
        lines += _save_comparison(out, record, tables, failures, draw)
    for line in lines:  # after everything is saved: who reads them may be gone
        say(line)


def _save_comparison(
    out: Path,
    record: dict[str, Any],
    tables: Sequence[Table],
    failures: Sequence[str],
    draw: Callable[[], bytes] | None,
) -> list[str]:
    """Writes the files; returns what is said of them. Arguments as in `write_comparison`."""
    out.mkdir(parents=True, exist_ok=True)
    shown = {"tables": [dataclasses.asdict(table) for table in tables], "failed": list(failures)}
    save_json(out / "comparison.json", {**record, **shown})
    parts = [table.markdown() for table in tables]
    if failures:
        parts.append("## Failed\n\n" + "\n".join(f"- {line}" for line in failures))
    atomic_write(out / "comparison.md", ("\n\n".join(parts) + "\n").encode())
    written = [out / "comparison.json", out / "comparison.md"]
    lines: list[str] = []
    if draw is not None:
        try:
            picture = draw()
        except ImportError as error:
            lines.append(f"\nno picture: {error}")
        else:
            atomic_write(out / "comparison.png", picture)
            written.append(out / "comparison.png")
    return [*lines, "\nwritten: " + ", ".join(map(str, written))]


def duration(seconds: float) -> str:
    """Seconds for people.

    Example:
        >>> duration(12), duration(240), duration(9000)
        ('12 s', '4 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
