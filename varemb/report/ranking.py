"""The tables of methods that rank under a sparsity.

A result is a cell's metrics.json: its `levels` hold a record for each sparsity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from varemb.report.comparison import Measure, Result, Table, gain_cells, spread, summarize
from varemb.report.comparison import table_bytes as level_bytes
from varemb.report.table import format_bytes, method_name

OWN = "ciess"

_SHOWN = ("recall@5", "ndcg@5", "recall@20", "ndcg@20")


def _metric(name: str) -> Measure:
    return lambda level: float(level["metrics"][name])


_MEASURES: dict[str, Measure] = {
    "recall@20": _metric("recall@20"),
    **{name: _metric(name) for name in _SHOWN if name != "recall@20"},
    "params": lambda level: level["params"],
    "reached": lambda level: level["sparsity_reached"],
    "bytes": level_bytes,
    "seconds": lambda level: level["seconds"],
}


def levels_of(results: Sequence[Result]) -> dict[float, list[Result]]:
    """Sparsity, ascending -> a record of each result that has it."""
    levels: dict[float, list[Result]] = {}
    for result in results:
        own = {name: result[name] for name in ("model", "method", "seed", "seconds", "cost")}
        for level in result["levels"]:
            levels.setdefault(level["sparsity"], []).append({**level, **own})
    return dict(sorted(levels.items()))


def summarize_levels(results: Sequence[Result]) -> list[dict[str, Any]]:
    """As `summarize`, by model, sparsity and method; the quality is Recall@20."""
    summaries = []
    models = list(dict.fromkeys(result["model"] for result in results))
    for sparsity, levels in levels_of(results).items():
        for summary in summarize(levels, _MEASURES, OWN):
            mine = [x for x in levels if (x["model"], x["method"]) == _key(summary)]
            cut = sum(level["is_cut"] for level in mine)
            summaries.append({"sparsity": sparsity, "cut": cut, **summary})
    return sorted(summaries, key=lambda summary: models.index(summary["model"]))


def _key(record: Mapping[str, Any]) -> tuple[str, str]:
    return record["model"], record["method"]


def ranking_tables(data: str, summaries: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The table of CIESS's paper, one per model and sparsity.

    A star says for how many seeds the plan was above the sparsity in the search and was cut to it.
    """
    head = ("method", "seeds", "R@5", "N@5", "R@20", "N@20", "sparsity", "bytes", "seconds, all",
            "R@20 gain", "p")  # fmt: skip
    tables = []
    for model, sparsity in dict.fromkeys((s["model"], s["sparsity"]) for s in summaries):
        mine = [dict(s) for s in summaries if (s["model"], s["sparsity"]) == (model, sparsity)]
        asked = f"sparsity {sparsity:g}" if sparsity else "the sparsity that results"
        title = f"{data}, {model}, {asked}"
        if mine[0]["baseline"] is not None:
            title += f"; gain and p against the best baseline, {method_name(mine[0]['baseline'])}"
        tables.append(Table(title, head, [_row(summary) for summary in mine]))
    return tables


def _row(summary: dict[str, Any]) -> list[str]:
    star = f" *{summary['cut']}" if summary["cut"] else ""
    return [
        method_name(summary["method"]) + star,
        str(len(summary["seeds"])),
        *(spread(summary, name) for name in _SHOWN),
        f"{summary['reached']:.4f}",
        format_bytes(summary["bytes"]),
        f"{summary['seconds']:,.0f}",
        *gain_cells(summary),
    ]


def cost_table(results: Sequence[Result]) -> Table:
    """What CIESS's lambda does at each sparsity (Figure 4 of its paper)."""
    rows = []
    for sparsity, levels in levels_of(results).items():
        for summary in summarize(levels, _MEASURES, OWN):
            cost = next(x["cost"] for x in levels if (x["model"], x["method"]) == _key(summary))
            rows.append([
                f"{cost:g}", summary["model"], f"{sparsity:g}", str(len(summary["seeds"])),
                spread(summary, "recall@20"), spread(summary, "ndcg@20"),
            ])  # fmt: skip
    head = ("lambda", "model", "sparsity", "seeds", "R@20", "N@20")
    return Table("CIESS by lambda, the weight of width in the reward", head, rows)
