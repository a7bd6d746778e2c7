"""The page of runs on streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from varemb.report.html import (
    dims_text,
    make_page,
    name_methods,
    name_seeds,
    run_name,
    show_cards,
    show_memory,
    show_picture,
    show_results,
    show_runs,
    show_table,
)
from varemb.report.stream_table import (
    QUALITY,
    REFERENCE,
    format_quality,
    mean_dim,
    quality_names,
    stream_average,
    stream_head,
    stream_means,
    stream_row,
)
from varemb.report.table import PARTS, format_bytes, method_name
from varemb.runs import Run


def stream_title(runs: Sequence[Run]) -> str:
    """One line that says what the runs are."""
    first = runs[0].metrics
    return f"{name_methods(runs)} on {first['data']}, order {first['order']}, {name_seeds(runs)}"


def make_stream_page(runs: Sequence[Run], title: str, picture: bytes) -> str:
    """The whole page.

    Args:
        runs: finished runs on one stream.
        title: the first line.
        picture: of `draw_streams`.
    """
    results = [run.metrics for run in runs]
    names = quality_names(results)
    head = stream_head(results)
    columns = [i for i, name in enumerate(head) if name not in PARTS]  # these stand under Memory
    first = [run for run in runs if run.metrics["method"] == results[0]["method"]]
    return make_page(
        title,
        [
            '<p class="sub">Tables that change while they train. Predictions are recorded before '
            "their events are learnt; bytes are those of the allocated buffers.</p>",
            show_cards(_cards(results), first),
            show_picture(
                picture,
                f"{title}: quality and bytes over the stream, quality and width by frequency, "
                "widths at the end; the totals are in the tables below",
            ),
            "<h2>Results</h2>",
            show_results(
                runs,
                [head[i] for i in columns],
                lambda result: [stream_row(result, names)[i] for i in columns],
                [[row[i] for i in columns] for row in stream_means(results)],
            ),
            "<h2>Memory</h2>",
            show_memory(runs),
            *_over_time(runs),
            "<h2>Dims at the end of the stream</h2>",
            _dims_table(runs),
            "<h2>Runs</h2>",
            show_runs(runs),
        ],
    )


def _cards(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    methods = list(dict.fromkeys(result["method"] for result in results))
    means = [stream_average([r for r in results if r["method"] == method]) for method in methods]
    first, own = means[0], method_name(methods[0])
    name, *_ = quality_names([first])
    value = first["metrics"][name]
    cards = [
        (format_quality(name, value), f"{QUALITY[name][0]} of {own}"),
        (f"{mean_dim(first):.1f}", f"numbers of a row on average, {own}, at the end"),
    ]
    others = [each for each in means[1:] if each["method"].startswith((REFERENCE, "uniform"))]
    for other in (others or means[1:])[:1]:
        against = method_name(other["method"])
        if name in other["metrics"]:
            gain = value - other["metrics"][name]
            shown = f"{100 * gain:+.2f}" if name == "accuracy" else f"{gain:+.4f}"
            unit = "points of accuracy" if name == "accuracy" else QUALITY[name][0]
            cards.append((shown, f"{unit} against {against}"))
        share = _stored(first) / max(_stored(other), 1)
        cards.append((f"{share:.1%}", f"of the bytes of {against}: weights, index and unify"))
    return cards


def _stored(result: Mapping[str, Any]) -> float:
    return float(sum(result["bytes"].get(part, 0) for part in ("weights", "index", "unify")))


def _over_time(runs: Sequence[Run]) -> list[str]:
    """Segments of runs that have them, a line each."""
    sections = []
    for run in runs:
        records = [record for record in run.history if "segment" in record]
        if not records:
            continue
        head = [
            "segment",
            "events",
            "R@20",
            "N@20",
            "mean dim",
            "bytes",
            "budget",
            "grew",
            "shrank",
        ]
        rows = [
            [
                str(record["segment"]),
                f"{record['events']:,}",
                format_quality("recall@20", record.get("recall@20")),
                format_quality("ndcg@20", record.get("ndcg@20")),
                "" if "mean_dim" not in record else f"{record['mean_dim']:.2f}",
                format_bytes(record["bytes"]),
                "" if not record.get("budget_bytes") else format_bytes(record["budget_bytes"]),
                *(_share(record.get(name)) for name in ("grown", "shrunk")),
            ]
            for record in records
        ]
        sections += [f"<h2>Segments: {escape(run_name(run))}</h2>", show_table(head, rows)]
    return sections


def _dims_table(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        for table, dims in run.plan.tables.items():
            count, numbers = len(dims), int(dims.sum(dtype="int64"))
            saved = 1 - numbers / max(count * run.plan.widths[table], 1)
            cells = [table, f"{count:,}", dims_text(dims), f"{numbers:,}", f"{saved:.1%}"]
            rows.append([run_name(run), *cells])
    return show_table(["method", "table", "rows", "dim", "numbers", "saved"], rows)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
