"""The report as one HTML page: no scripts, no outside resources, the picture inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from varemb.files import atomic_write
from varemb.report.figure import draw_report
from varemb.report.html import (
    make_page,
    name_methods,
    name_seeds,
    show_cards,
    show_dims,
    show_memory,
    show_picture,
    show_results,
    show_runs,
)
from varemb.report.stream_figure import draw_streams
from varemb.report.stream_page import make_stream_page, stream_title
from varemb.report.table import (
    HEAD,
    average,
    mean_rows,
    method_name,
    result_row,
    total_bytes,
)
from varemb.runs import Run


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
    is_stream = ["tables" in run.metrics for run in runs]
    if any(is_stream) and not all(is_stream):
        raise ValueError("report: runs on streams cannot be shown together with others")
    shared = ("data", "order", "task") if is_stream[0] else ("data", "model")
    kinds = list(dict.fromkeys(tuple(run.metrics[name] for name in shared) for run in runs))
    if len(kinds) > 1:
        listed = f"{', '.join(shared[:-1])} and {shared[-1]}"
        raise ValueError(f"report: runs must share {listed}, got {kinds}")
    if is_stream[0]:
        runs = _told_apart(runs)
        title = stream_title(runs)
        picture = draw_streams(runs, title)
        text = make_stream_page(runs, title, picture)
    else:
        title = _title(runs)
        picture = draw_report(runs, title)
        text = _page(runs, title, picture)
    png, page = folder / "report.png", folder / "report.html"
    atomic_write(png, picture)
    atomic_write(page, text.encode())
    return png, page


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs; those of one method and seed, whose settings must differ, are named by folder."""
    seeds = Counter((run.metrics["method"], run.metrics["seed"]) for run in runs)
    repeated = {method for (method, _), count in seeds.items() if count > 1}
    return [
        replace(
            run, metrics={**run.metrics, "method": f"{run.metrics['method']} {run.folder.name}"}
        )
        if run.metrics["method"] in repeated
        else run
        for run in runs
    ]


def _title(runs: Sequence[Run]) -> str:
    first = runs[0].metrics
    return f"{name_methods(runs)} on {first['data']}, {first['model']}, {name_seeds(runs)}"


def _page(runs: Sequence[Run], title: str, picture: bytes) -> str:
    columns = [0, 1, 2, 3, 4, HEAD.index("seconds")]
    means = mean_rows([result for run in runs for result in run.results])
    own = [run for run in runs if run.metrics["method"] == runs[0].metrics["method"]]
    return make_page(
        title,
        [
            '<p class="sub">Sizes of embedding rows, found and measured by varemb. '
            "Bytes are those of the allocated buffers.</p>",
            show_cards(_cards(runs), own),
            show_picture(
                picture,
                f"{title}: dims per field, quality against bytes, training curves and memory; the "
                "same numbers are in the tables below",
            ),
            "<h2>Results</h2>",
            show_results(
                runs,
                [HEAD[i] for i in columns],
                lambda result: [result_row(result)[i] for i in columns],
                [[row[i] for i in columns] for row in means],
            ),
            "<h2>Memory</h2>",
            show_memory(runs),
            *show_dims(runs),
            "<h2>Runs</h2>",
            show_runs(runs),
        ],
    )


def _cards(runs: Sequence[Run]) -> list[tuple[str, str]]:
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
    return cards
