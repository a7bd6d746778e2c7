"""Results as rows of text: the same columns on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

PARTS = ("weights", "index", "unify", "optimizer")
EXTRA_PARTS = ("ids", "search")  # of streams: rows of raw ids; what only the choice of dims needs
HEAD = (
    "method",
    "AUC",
    "logloss",
    "numbers",
    "saved",
    "weights",
    "index",
    "unify",
    "optimizer",
    "seconds",
)

_NAMES = {
    "autodim": "AutoDim",
    "autodim-s": "AutoDim-s",
    "autoemb": "AutoEmb",
    "ciess": "CIESS",
    "ciess-code-walk": "CIESS, walk of the code",
    "ciess-no-noise": "CIESS, no noise",
    "ciess-no-walk": "CIESS, no walk",
    "ciess-ou": "CIESS, OU noise",
    "ciess-uniform": "CIESS, uniform noise",
    "ciess-warm": "CIESS, warm starts",
    "darts": "DARTS",
    "dpq": "DPQ",
    "es": "ES",
    "esapn": "ESAPN",
    "esapn-fitted": "ESAPN, cut",
    "fde": "FDE",
    "frequency": "by frequency",
    "mde": "MDE",
    "mgqe": "MGQE",
    "mr": "MR",
    "nis": "NIS",
    "optembed": "OptEmbed",
    "pep": "PEP",
    "ras": "RaS",
    "scall": "SCALL",
}


def method_name(method: str) -> str:
    """How a method is written for people.

    Example:
        >>> method_name("autodim-s"), method_name("autodim-ad-1"), method_name("ras-from-fm")
        ('AutoDim-s', 'AutoDim AD-1', 'RaS from fm')
        >>> method_name("fixed-128"), method_name("esapn policy=always price=0.1")
        ('FIXED-128', 'ESAPN, policy always, price 0.1')
    """
    method, *settings = method.split(" ")
    if settings:
        return ", ".join([method_name(method), *(each.replace("=", " ") for each in settings)])
    if method.startswith("fixed-"):
        return f"FIXED-{method.removeprefix('fixed-')}"
    method, _, source = method.partition("-from-")
    name, _, variant = method.partition("-ad-")
    shown = _NAMES.get(name, name)
    return shown + (f" AD-{variant}" if variant else "") + (f" from {source}" if source else "")


def format_bytes(count: float) -> str:
    """Bytes with three digits and a binary unit.

    Example:
        >>> format_bytes(853_024), format_bytes(512), format_bytes(0)
        ('833 KiB', '512 B', '0 B')
    """
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 999.5 or unit == "GiB":
            break
    return f"{count:.{2 if count < 9.995 else 1 if count < 99.95 else 0}f} {unit}"


def result_row(result: Mapping[str, Any]) -> list[str]:
    """The cells of one result, in the order of HEAD."""
    metrics, counts = result["metrics"], result["bytes"]
    saved = 1 - result["params"] / max(result["params_full"], 1)
    return [
        method_name(result["method"]),
        f"{metrics['auc']:.4f}",
        f"{metrics['logloss']:.4f}",
        f"{result['params']:,}",
        f"{saved:.1%}",
        *(format_bytes(counts.get(part, 0)) for part in PARTS),
        f"{result['seconds']:,.0f}",
    ]


def average(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One result with the means of several of the same method."""
    first = results[0]
    return {
        "method": first["method"],
        "params": round(mean(result["params"] for result in results)),
        "params_full": round(mean(result["params_full"] for result in results)),
        "seconds": mean(result["seconds"] for result in results),
        "metrics": {
            name: mean(result["metrics"][name] for result in results) for name in ("auc", "logloss")
        },
        "bytes": {part: mean(result["bytes"].get(part, 0) for result in results) for part in PARTS},
    }


def mean_rows(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row per method that has several results: mean and standard deviation over the runs."""
    rows = []
    for method in dict.fromkeys(result["method"] for result in results):
        of_method = [result for result in results if result["method"] == method]
        if len(of_method) < 2:
            continue
        row = result_row(average(of_method))
        row[0] = f"{method_name(method)}, mean of {len(of_method)}"
        for column, name in ((1, "auc"), (2, "logloss")):
            spread = stdev(result["metrics"][name] for result in of_method)
            row[column] += f" ±{spread:.4f}"
        rows.append(row)
    return rows


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right.

    Example:
        >>> print(format_table(["field", "dim"], [["userId", "16"], ["gender", "2"]]))
        field   dim
        userId   16
        gender    2
    """
    lines = [head, *rows]
    columns = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join([line[0].ljust(columns[0]), *map(str.rjust, line[1:], columns[1:])]).rstrip()
        for line in lines
    )


def format_results(results: Sequence[Mapping[str, Any]]) -> str:
    """The table of results that a run prints."""
    return format_table(HEAD, [result_row(result) for result in results])


def total_bytes(result: Mapping[str, Any]) -> int:
    """Weights, index, unify and optimizer state together."""
    return sum(int(result["bytes"].get(part, 0)) for part in PARTS)
