"""The report as one HTML page: no scripts, no outside resources, the picture inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from varemb.files import atomic_write
from varemb.plan import Dims
from varemb.report.figure import draw_report
from varemb.report.table import (
    HEAD,
    PARTS,
    average,
    format_bytes,
    mean_rows,
    method_name,
    result_row,
    total_bytes,
)
from varemb.runs import Run

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
       max-width: 1040px; padding: 24px 20px 48px; }
h1 { font-size: 25px; margin: 0 0 2px; }
h2 { font-size: 18px; margin: 34px 0 8px; }
p.sub { color: #666; margin: 0 0 18px; }
img { width: 100%; height: auto; display: block; margin: 8px 0; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0 22px; }
.card { flex: 1 1 150px; border: 1px solid #ddd; border-radius: 8px; padding: 10px 14px; }
.card b { display: block; font-size: 23px; color: #0072B2; line-height: 1.3; }
.card span { color: #666; font-size: 13px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 5px 12px; text-align: right; border-bottom: 1px solid #e4e4e4;
         white-space: nowrap; }
th { color: #666; font-weight: 600; border-bottom: 2px solid #bbb; }
th:first-child, td:first-child { text-align: left; padding-left: 2px; }
tr.mean td { font-weight: 600; background: #f4f8fb; }
.bar { display: inline-block; height: 11px; background: #0072B2; vertical-align: middle; }
.full { display: inline-block; width: 160px; background: #eee; text-align: left; line-height: 11px;
        vertical-align: middle; }
@media print { body { max-width: none; padding: 0; } }
"""


def write_report(runs: Sequence[Run], folder: Path) -> tuple[Path, Path]:
    """Writes report.png and report.html.

    Args:
        runs: finished runs; several are shown together, with their means.
        folder: where the two files go.

    Returns:
        The paths of the picture and of the page.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if not runs:
        raise ValueError("report: at least one run is needed, got none")
    kinds = list(dict.fromkeys((run.metrics["data"], run.metrics["model"]) for run in runs))
    if len(kinds) > 1:
        raise ValueError(f"report: runs must share data and model, got {kinds}")
    title = _title(runs)
    picture = draw_report(runs, title)
    png, page = folder / "report.png", folder / "report.html"
    atomic_write(png, picture)
    atomic_write(page, _page(runs, title, picture).encode())
    return png, page


def _title(runs: Sequence[Run]) -> str:
    first = runs[0].metrics
    seeds = ", ".join(str(run.metrics["seed"]) for run in runs)
    methods = list(dict.fromkeys(result["method"] for run in runs for result in run.results))
    names = (
        " and ".join(map(method_name, methods)) if len(methods) < 3 else f"{len(methods)} methods"
    )
    return f"{names} on {first['data']}, {first['model']}, seed {seeds}"


def _page(runs: Sequence[Run], title: str, picture: bytes) -> str:
    image = base64.b64encode(picture).decode()
    results = [(run, result) for run in runs for result in run.results]
    sections = [
        f"<h1>{escape(title)}</h1>",
        '<p class="sub">Sizes of embedding rows, found and measured by varemb. '
        "Bytes are those of the allocated buffers.</p>",
        _cards(runs),
        f'<img alt="{escape(title)}: dims per field, quality against bytes, training curves and '
        f'memory; the same numbers are in the tables below" src="data:image/png;base64,{image}">',
        "<h2>Results</h2>",
        _results_table(runs, results),
        "<h2>Memory</h2>",
        _memory_table(runs, results),
        *_dims_sections(runs),
        "<h2>Runs</h2>",
        _table(
            ["folder", "data", "model", "seed", "rows per second"],
            [
                [
                    run.folder.name,
                    *(str(run.metrics[name]) for name in ("data", "model", "seed")),
                    f"{run.metrics['rows_per_second']:,.0f}"
                    if "rows_per_second" in run.metrics
                    else "",
                ]
                for run in runs
            ],
        ),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _cards(runs: Sequence[Run]) -> str:
    results = [result for run in runs for result in run.results]
    methods = list(dict.fromkeys(result["method"] for result in results))
    means = [average([r for r in results if r["method"] == method]) for method in methods]
    first, own = means[0], method_name(methods[0])
    saved = 1 - first["params"] / max(first["params_full"], 1)
    cards = [
        (f"{saved:.1%}", f"of the embedding numbers saved by {own}"),
        (f"{first['metrics']['auc']:.4f}", f"AUC of {own}"),
    ]
    for other in means[1:2]:
        name, auc = method_name(other["method"]), other["metrics"]["auc"]
        share = total_bytes(first) / max(total_bytes(other), 1)
        cards.append((f"{first['metrics']['auc'] - auc:+.4f}", f"AUC against {name} ({auc:.4f})"))
        cards.append((f"{share:.1%}", f"of the bytes of {name}, all parts"))
    body = "".join(f'<div class="card"><b>{b}</b><span>{escape(s)}</span></div>' for b, s in cards)
    note = f'<p class="sub">Means of {len(runs)} runs.</p>' if len(runs) > 1 else ""
    return f'{note}<div class="cards">{body}</div>'


def _results_table(runs: Sequence[Run], results: Sequence[tuple[Run, dict[str, Any]]]) -> str:
    columns = [0, 1, 2, 3, 4, HEAD.index("seconds")]
    rows = [_labelled(runs, run, result_row(result)) for run, result in results]
    means = mean_rows([result for _, result in results])
    return _table(
        [HEAD[i] for i in columns],
        [[row[i] for i in columns] for row in rows],
        [[row[i] for i in columns] for row in means],
    )


def _memory_table(runs: Sequence[Run], results: Sequence[tuple[Run, dict[str, Any]]]) -> str:
    widest = max(total_bytes(result) for _, result in results)
    rows = []
    for run, result in results:
        total = total_bytes(result)
        counts = [f"{result['bytes'].get(part, 0):,}" for part in PARTS]
        cells = [*counts, f"{total:,}", format_bytes(total), f"{total / max(widest, 1):.1%}"]
        rows.append(_labelled(runs, run, [method_name(result["method"]), *cells]))
    return _table(["bytes", *PARTS, "total", "", "of the most"], rows)


def _labelled(runs: Sequence[Run], run: Run, row: list[str]) -> list[str]:
    return [f"{row[0]}, seed {run.metrics['seed']}", *row[1:]] if len(runs) > 1 else row


def _dims_sections(runs: Sequence[Run]) -> list[str]:
    # Runs over the same tables stand in one list, a column each.
    groups: dict[tuple[tuple[str, int], ...], list[Run]] = {}
    for run in runs:
        key = tuple((name, len(run.plan[name])) for name in run.plan)
        groups.setdefault(key, []).append(run)
    return [
        part
        for group in groups.values()
        for part in ("<h2>Dims per field</h2>", _dims_table(group))
    ]


def _dims_table(runs: Sequence[Run]) -> str:
    planted = runs[0].metrics.get("planted") or {}
    rows = []
    for name in runs[0].plan:
        width = max(run.plan.widths[name] for run in runs)
        all_dims = [run.plan[name] for run in runs]
        numbers = sum(int(dims.sum(dtype="int64")) for dims in all_dims) / len(runs)
        count = len(all_dims[0])
        mean = numbers / max(count, 1)
        bar = f'<span class="bar" style="width:{160 * mean / width:.0f}px"></span>'
        rows.append(
            [
                escape(name),
                f"{count:,}",
                *map(_dims_text, all_dims),
                *([escape(str(planted.get(name, "")))] if planted else []),
                f'<span class="full">{bar}</span>',
                f"{numbers:,.0f}",
                f"{1 - mean / width:.1%}",
            ]
        )
    columns = ["dim"] if len(runs) == 1 else [f"seed {run.metrics['seed']}" for run in runs]
    head = ["field", "rows", *columns, *(["planted"] if planted else []), "", "numbers", "saved"]
    return _table(head, rows, is_html=True)


def _dims_text(dims: Dims) -> str:
    low, high = (int(dims.min()), int(dims.max())) if len(dims) else (0, 0)
    return str(low) if low == high else f"{low} to {high}, mean {dims.mean():.2f}"


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    means: Sequence[Sequence[str]] = (),
    *,
    is_html: bool = False,
) -> str:
    def line(cells: Sequence[str], tag: str, kind: str = "") -> str:
        shown = [cell if is_html and tag == "td" else escape(cell) for cell in cells]
        body = "".join(f"<{tag}>{cell}</{tag}>" for cell in shown)
        return f"<tr{kind}>{body}</tr>"

    body = [line(row, "td") for row in rows] + [line(row, "td", ' class="mean"') for row in means]
    return (
        f'<div class="wide"><table><thead>{line(head, "th")}</thead>\n<tbody>'
        + "\n".join(body)
        + "</tbody></table></div>"
    )
