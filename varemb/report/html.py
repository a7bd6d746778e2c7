"""Parts of a page that stands alone: no scripts, no outside resources, the picture inside."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from varemb.plan import Dims
from varemb.report.table import EXTRA_PARTS, PARTS, format_bytes, method_name
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
th:first-child, td:first-child { text-align: left; padding-left: 2px; white-space: normal;
                                 min-width: 9em; }
tr.mean td { font-weight: 600; background: #f4f8fb; }
.bar { display: inline-block; height: 11px; background: #0072B2; vertical-align: middle; }
.full { display: inline-block; width: 160px; background: #eee; text-align: left; line-height: 11px;
        vertical-align: middle; }
@media print { body { max-width: none; padding: 0; } }
"""


def name_methods(runs: Sequence[Run]) -> str:
    """The methods of all results, or how many they are."""
    methods = list(dict.fromkeys(result["method"] for run in runs for result in run.results))
    return (
        " and ".join(map(method_name, methods)) if len(methods) < 3 else f"{len(methods)} methods"
    )


def name_seeds(runs: Sequence[Run]) -> str:
    """The seeds of the runs, each once."""
    seeds = dict.fromkeys(str(run.metrics["seed"]) for run in runs)
    return f"seed {', '.join(seeds)}"


def make_page(title: str, sections: Sequence[str]) -> str:
    """The whole page; sections are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style></head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def show_picture(picture: bytes, text: str) -> str:
    """A PNG inside the page, with the text of what it shows."""
    image = base64.b64encode(picture).decode()
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{image}">'


def show_cards(cards: Sequence[tuple[str, str]], runs: Sequence[Run]) -> str:
    """Numbers in large letters, each with what it says; means of several runs."""
    body = "".join(
        f'<div class="card"><b>{escape(number)}</b><span>{escape(text)}</span></div>'
        for number, text in cards
    )
    note = f'<p class="sub">Means of {len(runs)} runs.</p>' if len(runs) > 1 else ""
    return f'{note}<div class="cards">{body}</div>'


def show_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    means: Sequence[Sequence[str]] = (),
    *,
    is_html: bool = False,
) -> str:
    """A table of text; with `is_html` the cells of its body are HTML. Means stand out below."""

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


def show_results(
    runs: Sequence[Run],
    head: Sequence[str],
    row: Callable[[Mapping[str, Any]], list[str]],
    means: Sequence[Sequence[str]],
) -> str:
    """The table of all results of all runs, one line each, and their means."""
    rows = [_labelled(runs, run, row(result)) for run in runs for result in run.results]
    return show_table(head, rows, means)


def show_memory(runs: Sequence[Run]) -> str:
    """The table of measured bytes of all results."""
    results = [(run, result) for run in runs for result in run.results]
    parts = [*PARTS, *(part for part in EXTRA_PARTS if any(part in r["bytes"] for _, r in results))]
    totals = [sum(int(result["bytes"].get(part, 0)) for part in parts) for _, result in results]
    rows = []
    for (run, result), total in zip(results, totals, strict=True):
        counts = [f"{result['bytes'].get(part, 0):,}" for part in parts]
        share = f"{total / max(*totals, 1):.1%}"
        cells = [*counts, f"{total:,}", format_bytes(total), share]
        rows.append(_labelled(runs, run, [method_name(result["method"]), *cells]))
    return show_table(["bytes", *parts, "total", "", "of the most"], rows)


def _labelled(runs: Sequence[Run], run: Run, row: list[str]) -> list[str]:
    return [f"{row[0]}, seed {run.metrics['seed']}", *row[1:]] if len(runs) > 1 else row


def run_name(run: Run) -> str:
    """The method and the seed of a run."""
    return f"{method_name(run.metrics['method'])}, seed {run.metrics['seed']}"


def show_runs(runs: Sequence[Run]) -> str:
    """The table of the folders."""
    rows = []
    for run in runs:
        names = [str(run.metrics[name]) for name in ("data", "model", "seed")]
        speed = run.metrics.get("rows_per_second")
        rows.append([run.folder.name, *names, "" if speed is None else f"{speed:,.0f}"])
    return show_table(["folder", "data", "model", "seed", "rows per second"], rows)


def show_dims(runs: Sequence[Run]) -> list[str]:
    """Dims per field, in sections; a method's runs over the same tables stand side by side."""
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        key = (run.metrics["method"], *((name, len(run.plan[name])) for name in run.plan))
        groups.setdefault(key, []).append(run)
    heads = ["dim"] if len(runs) == 1 else None
    return [
        part
        for group in groups.values()
        for part in (
            "<h2>Dims per field</h2>",
            _dims_table(group, heads or [run_name(run) for run in group]),
        )
    ]


def _dims_table(runs: Sequence[Run], heads: Sequence[str]) -> str:
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
                *map(dims_text, all_dims),
                *([escape(str(planted.get(name, "")))] if planted else []),
                f'<span class="full">{bar}</span>',
                f"{numbers:,.0f}",
                f"{1 - mean / width:.1%}",
            ]
        )
    head = ["field", "rows", *heads, *(["planted"] if planted else []), "", "numbers", "saved"]
    return show_table(head, rows, is_html=True)


def dims_text(dims: Dims) -> str:
    """The dims of a table's rows: the one that all have, or the range and the mean."""
    low, high = (int(dims.min()), int(dims.max())) if len(dims) else (0, 0)
    return str(low) if low == high else f"{low} to {high}, mean {dims.mean():.2f}"
