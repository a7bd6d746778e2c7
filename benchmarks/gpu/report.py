"""The results of a run as one JSON file, written again after every step, and a Markdown table."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.progress import refuse_other

Json = dict[str, Any]


class Results:
    """What has been found so far. Every change is on the disk before the next step begins.

    Attributes:
        environment: device, versions, commit and sizes; a file of another one is not resumed.
        sections: the finished ones, and the operations measured so far.
    """

    def __init__(self, path: Path, environment: Json, *, resume: bool) -> None:
        self.path, self.environment = path, environment
        self.sections: Json = {}
        if resume and path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            refuse_other(path, found["environment"], environment)
            self.sections = found["sections"]

    def put(self, section: str, record: Any) -> None:
        """Keeps a section's record."""
        self.sections[section] = record
        self._write()

    def append(self, section: str, record: Json) -> None:
        """Adds a record to a section that is a list."""
        self.sections.setdefault(section, []).append(record)
        self._write()

    def _write(self) -> None:
        whole = {"environment": self.environment, "sections": self.sections}
        _replace(self.path, json.dumps(whole, indent=1) + "\n")
        _replace(self.path.with_suffix(".md"), to_markdown(self.environment, self.sections))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def to_markdown(environment: Json, sections: Json) -> str:
    """The tables of a run, with what it ran on and what was not measured."""
    versions = environment["versions"]
    lines = [
        f"# {environment['gpu']}",
        "",
        f"Driver {environment['driver']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; commit {environment['commit']}. `python -m benchmarks.gpu`.",
        "",
    ]
    for name in ("tests", "sanitizer"):
        if name in sections:
            lines.append(f"- {name}: {sections[name]['summary']}")
    if "copy" in sections:
        lines.append(f"- copy, read and write: {_rate(sections['copy']['median_bytes_per_s'])}")
    for reason in sections.get("not_run", []):
        lines.append(f"- not run: {reason}")
    lines.append("")
    if "operations" in sections:
        lines += [LEGEND, ""]
    for record in sections.get("operations", []):
        lines += [*_operation(record), ""]
    if "billion" in sections:
        lines += ["## Many narrow rows", "", *_billion(sections["billion"]), ""]
    return "\n".join(lines).rstrip() + "\n"


LEGEND = """\
Milliseconds: median over interleaved rounds with fresh indices, [20 %, 80 %]; cold: the L2 cache
is flushed before each call, warm: each call follows one of its own. Time / first: this line's cold
time over the first line's, above 1 the first is faster. GB/s: bytes counted once per lookup, as
FBGEMM does, over the cold time. Share of copy: bytes that memory must move when every distinct row
moves once, over the cold time, as a share of the copy's bandwidth. Kept: table, index, optimizer
state; in a call: temporary memory. Wide rows are the popular rows."""


def _operation(record: Json) -> list[str]:
    spec, facts = record["spec"], record["facts"]
    head = (
        f"### {record['op']}: {spec['dims']} dims, Zipf {spec['zipf']:g}, {spec['dtype']}\n\n"
        f"N {spec['rows']:,}, D {spec['width']}, {spec['bags'] * spec['pooling']:,} lookups, "
        f"{facts['distinct_rows']:,} distinct rows; mean dim of the rows {facts['mean_dim']:.1f}, "
        f"of the lookups {facts['access_dim']:.1f}, of the distinct rows "
        f"{facts['distinct_dim']:.1f}.\n"
    )
    columns = [
        "",
        "cold ms",
        "warm ms",
        "time / first",
        "GB/s",
        "share of copy",
        "kept",
        "in a call",
    ]
    rows = [_row(columns), _row(["---", *["--:"] * (len(columns) - 1)])]
    for line in record["lines"]:
        if "cold" not in line:
            rows.append(_row([line["name"], line["reason"], *[""] * 6]))
            continue
        cold = line["cold"]
        cells = [
            _spread(cold["ms"]), _spread(line["warm"]["ms"]),
            f"{cold['time_over_first']['median']:.2f}",
            f"{cold['lookup_bytes_per_s'] / 1e9:.0f}", f"{cold['copy_share']:.0%}",
            _size(line["tensor_bytes"]), _size(line["temporary_bytes"]),
        ]  # fmt: skip
        rows.append(_row([line["name"], *cells]))
    return [head, *rows]


def _billion(records: list[Json]) -> list[str]:
    columns = [
        "table", "mean dim", "allocated", "sum of its parts", "full width would take", "ratio",
        "step ms (cold)", "distinct rows", "built in", "host peak",
    ]  # fmt: skip
    rows = [_row(columns), _row(["---", *["--:"] * (len(columns) - 1)])]
    for record in records:
        name = f"{record['rows']:,} rows, {record['dtype']}"
        if "reason" in record:
            rows.append(_row([name, record["reason"], *[""] * 8]))
            continue
        cells = [
            f"{record['mean_dim']:.2f}", _size(record["allocated_bytes"]),
            _size(record["exact_bytes"]), _size(record["uniform_bytes"]),
            f"{record['uniform_bytes'] / max(1, record['allocated_bytes']):.1f}",
            _spread(record["step_ms"]), f"{record['distinct_rows']:,}",
            f"{record['build_seconds']:.1f} s", _size(record["host_peak_bytes"]),
        ]  # fmt: skip
        rows.append(_row([name, *cells]))
    return rows


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(summary: Json) -> str:
    return f"{summary['median']:.3f} [{summary['low']:.3f}, {summary['high']:.3f}]"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.0f} GB/s"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
