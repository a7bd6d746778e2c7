"""Results of runs on streams as rows of text: the same columns on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from varemb.report.table import PARTS, format_bytes, format_table, method_name

Result = Mapping[str, Any]

# Metric -> how it is written and whether more is better; in the order they are shown in.
QUALITY = {
    "accuracy": ("accuracy", True),
    "mse": ("MSE", False),
    "cross_entropy": ("cross-entropy", False),
    "recall@20": ("R@20", True),
    "ndcg@20": ("N@20", True),
}
REFERENCE = "fixed"  # the method that others are compared with begins so


def quality_names(results: Sequence[Result]) -> list[str]:
    """The metrics that results of streams are judged by, those that any has."""
    return [name for name in QUALITY if any(name in result["metrics"] for result in results)]


def format_quality(name: str, value: float | None) -> str:
    """A metric's value as text; accuracy in percent.

    Example:
        >>> format_quality("accuracy", 0.72161), format_quality("mse", 0.18421)
        ('72.16 %', '0.1842')
    """
    if value is None:
        return ""
    return f"{value:.2%}".replace("%", " %") if name == "accuracy" else f"{value:.4f}"


def stream_head(results: Sequence[Result]) -> list[str]:
    """The heads of the columns of `stream_row`."""
    shown = [QUALITY[name][0] for name in quality_names(results)]
    return ["method", *shown, "numbers", "of full", "mean dim", *PARTS, "seconds", "events/s"]


def stream_row(result: Result, names: Sequence[str]) -> list[str]:
    """The cells of one result.

    Args:
        result: fields as in metrics.json.
        names: of `quality_names`.
    """
    return [
        method_name(result["method"]),
        *(format_quality(name, result["metrics"].get(name)) for name in names),
        f"{result['params']:,}",
        f"{result['params'] / max(result['params_full'], 1):.1%}",
        f"{mean_dim(result):.1f}",
        *(format_bytes(result["bytes"].get(part, 0)) for part in PARTS),
        f"{result['seconds']:,.0f}",
        f"{result['rows_per_second']:,.0f}",
    ]


def mean_dim(result: Result) -> float:
    """Numbers of a row at the end of the stream, on average."""
    return float(result["params"] / max(result["users"] + result["items"], 1))


def stream_average(results: Sequence[Result]) -> dict[str, Any]:
    """One result with the means of several of the same method."""
    names = quality_names(results)
    fields = ("params", "params_full", "users", "items")
    return {
        "method": results[0]["method"],
        "metrics": {
            name: mean(result["metrics"][name] for result in results)
            for name in names
            if all(name in result["metrics"] for result in results)
        },
        **{name: round(mean(result[name] for result in results)) for name in fields},
        "bytes": {part: mean(result["bytes"].get(part, 0) for result in results) for part in PARTS},
        "seconds": mean(result["seconds"] for result in results),
        "rows_per_second": mean(result["rows_per_second"] for result in results),
    }


def stream_means(results: Sequence[Result]) -> list[list[str]]:
    """A row per method that has several results: mean and standard deviation over the runs."""
    names = quality_names(results)
    rows = []
    for method in dict.fromkeys(result["method"] for result in results):
        mine = [result for result in results if result["method"] == method]
        if len(mine) < 2:
            continue
        average = stream_average(mine)
        row = stream_row(average, names)
        row[0] = f"{method_name(method)}, mean of {len(mine)}"
        for column, name in enumerate(names, 1):
            if name in average["metrics"]:
                spread = stdev(result["metrics"][name] for result in mine)
                is_share = name == "accuracy"
                row[column] += f" ±{100 * spread:.2f}" if is_share else f" ±{spread:.4f}"
        rows.append(row)
    return rows


def format_stream_results(results: Sequence[Result]) -> str:
    """The table of results that a run on a stream prints."""
    names = quality_names(results)
    return format_table(stream_head(results), [stream_row(result, names) for result in results])
