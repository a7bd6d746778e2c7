"""The tables of a comparison: methods over seeds, paired tests, and what the dims did.

A result is a cell's metrics.json. All tables are rows of text with a head, so that they are printed
and written as Markdown alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np

from varemb.report.table import format_bytes, format_table, method_name, total_bytes

Result = dict[str, Any]
Rows = list[list[str]]
Measure = Callable[[Result], float]

OWN = "autodim"  # methods of this name are compared with all others, the baselines


@dataclass(frozen=True)
class Table:
    """Rows of text with a head."""

    title: str
    head: tuple[str, ...]
    rows: Rows

    def text(self) -> str:
        """For the terminal."""
        return f"{self.title}\n\n{format_table(self.head, self.rows)}"

    def markdown(self) -> str:
        """For a page.

        Example:
            >>> print(Table("Dims", ("field", "dim"), [["user", "8"]]).markdown())
            ## Dims
            <BLANKLINE>
            | field | dim |
            | --- | --- |
            | user | 8 |
        """
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"## {self.title}\n\n{body}"


def paired_t(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    """t and two-sided p of the paired t-test; None below two pairs, or if no difference varies.

    Raises:
        ImportError: without the package that computes it.

    Example:
        >>> t, p = paired_t([0.81, 0.82, 0.83], [0.809, 0.818, 0.827])
        >>> round(t, 3), round(p, 3)
        (3.464, 0.074)
    """
    try:
        from scipy.stats import ttest_rel
    except ImportError:
        raise ImportError("the t-test needs SciPy: pip install 'varemb[data]'") from None
    differences = np.subtract(first, second)
    if len(differences) < 2 or np.ptp(differences) == 0:
        return None
    test = ttest_rel(first, second)
    return float(test.statistic), float(test.pvalue)


def table_bytes(result: Result) -> int:
    """Weights, index and unify: what serving the table takes."""
    return total_bytes(result) - int(result["bytes"].get("optimizer", 0))


def summarize(
    results: Sequence[Result],
    measures: Mapping[str, Measure] | None = None,
    own: str = OWN,
) -> list[dict[str, Any]]:
    """One record per model and method: means and standard deviations over the seeds.

    Each has a paired t-test of its quality, over the seeds that both have, against the best
    baseline: the method outside the own family with the highest mean quality on that model, over
    the seeds that all of these have (over its own if there are none: other seeds are other splits).

    Args:
        results: of any models, methods and seeds.
        measures: name -> what is averaged; the first is the quality. By default those of clicks.
        own: what the names of the own family begin with.
    """
    measures = MEASURES if measures is None else measures
    quality = next(iter(measures.values()))
    groups = _groups(results)
    summaries = []
    for (model, method), mine in groups.items():
        others = {name: group for (m, name), group in groups.items()
                  if m == model and not name.startswith(own)}  # fmt: skip
        best = _best(others, quality)
        record: dict[str, Any] = {
            "model": model, "method": method, "seeds": [r["seed"] for r in mine],
            "baseline": best, "gain": None, "t": None, "p": None,
        }  # fmt: skip
        for name, value in measures.items():
            values = [float(value(result)) for result in mine]
            record[name] = mean(values)
            record[f"{name}_sd"] = stdev(values) if len(values) > 1 else None
        if best is not None and best != method:
            pairs = _paired(mine, others[best], quality)
            if pairs:
                record["gain"] = mean(a - b for a, b in pairs)
                test = paired_t(*zip(*pairs, strict=True)) if len(pairs) > 1 else None
                record["t"], record["p"] = test or (None, None)
        summaries.append(record)
    return summaries


def _best(others: Mapping[str, Sequence[Result]], quality: Measure) -> str | None:
    """The method with the highest mean quality over the seeds that all have."""
    seeds = [{result["seed"] for result in group} for group in others.values()]
    shared = set.intersection(*seeds) if seeds else set()

    def score(name: str) -> float:
        return mean(quality(r) for r in others[name] if not shared or r["seed"] in shared)

    return max(others, key=score, default=None)


def _auc(result: Result) -> float:
    return float(result["metrics"]["auc"])


MEASURES: dict[str, Measure] = {
    "auc": _auc,
    "logloss": lambda result: result["metrics"]["logloss"],
    "params": lambda result: result["params"],
    "share": lambda result: result["params"] / max(result["params_full"], 1),
    "bytes": table_bytes,
    "seconds": lambda result: result["seconds"],
}


def _groups(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result["model"], result["method"]), []).append(result)
    return groups


def _paired(
    first: Sequence[Result], second: Sequence[Result], quality: Measure
) -> list[tuple[float, float]]:
    other = {result["seed"]: quality(result) for result in second}
    return [(quality(r), other[r["seed"]]) for r in first if r["seed"] in other]


def main_tables(results: Sequence[Result]) -> list[Table]:
    """The paper's table, one per model."""
    summaries = summarize(results)
    head = ("method", "seeds", "AUC", "logloss", "numbers", "of full", "bytes", "seconds",
            "AUC gain", "p")  # fmt: skip
    tables = []
    for model in dict.fromkeys(summary["model"] for summary in summaries):
        mine = [summary for summary in summaries if summary["model"] == model]
        best = mine[0]["baseline"]
        title = f"{results[0]['data']}, {model}"
        if best is not None:
            title += f"; gain and p against the best baseline, {method_name(best)}"
        tables.append(Table(title, head, [_summary_row(summary) for summary in mine]))
    return tables


def _summary_row(summary: dict[str, Any]) -> list[str]:
    return [
        method_name(summary["method"]),
        str(len(summary["seeds"])),
        spread(summary, "auc"),
        spread(summary, "logloss"),
        f"{summary['params']:,.0f}",
        f"{summary['share']:.1%}",
        format_bytes(summary["bytes"]),
        f"{summary['seconds']:,.0f}",
        *gain_cells(summary),
    ]


def spread(summary: dict[str, Any], name: str) -> str:
    """A measure's mean and deviation over the seeds."""
    deviation = summary[f"{name}_sd"]
    return f"{summary[name]:.4f}" + ("" if deviation is None else f" ±{deviation:.4f}")


def gain_cells(summary: dict[str, Any]) -> list[str]:
    """What is gained over the best baseline, and p."""
    gain, p = summary["gain"], summary["p"]
    is_best = summary["method"] == summary["baseline"]
    return [
        "best baseline" if is_best else "" if gain is None else f"{gain:+.4f}",
        "" if p is None else f"{p:.3f}",
    ]


def sweep_table(results: Sequence[Result]) -> Table:
    """What f, the training batches per validation batch, does to the dims (RQ5 and claim A5)."""
    head = ("f", "model", "seeds", "mean dim", "numbers", "of full", "AUC", "search seconds")
    rows = []
    for (model, method), mine in _groups(results).items():
        (summary,) = summarize(mine)
        dim = mean(mean(result["dims"].values()) for result in mine)
        rows.append([
            method.rpartition("-f")[2], model, str(len(mine)), f"{dim:.2f}",
            f"{summary['params']:,.0f}", f"{summary['share']:.1%}",
            spread(summary, "auc"),
            f"{mean(result['search_seconds'] for result in mine):,.1f}",
        ])  # fmt: skip
    return Table("AutoDim by f; mean dim over the fields", head, rows)


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's, or None if one side does not vary.

    Example:
        >>> correlation([2, 4, 8], [1, 2, 4]), correlation([2, 4, 8], [1, 1, 1])
        (1.0, None)
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return None if scale == 0 else round(float(a @ b) / scale, 12)


def stability_table(results: Sequence[Result]) -> Table:
    """Correlation of the fields' dims over the seeds, mean over the pairs (RQ4 and claim A6)."""
    head = ("method", "model", "seeds", "pairs", "Pearson, mean", "least")
    rows = []
    for (model, method), mine in _groups(_with_dims(results)).items():
        pairs = [correlation(list(a["dims"].values()), list(b["dims"].values()))
                 for a, b in itertools.combinations(mine, 2)]  # fmt: skip
        known = [pair for pair in pairs if pair is not None]
        values = [f"{mean(known):.3f}", f"{min(known):.3f}"] if known else ["", ""]
        rows.append([method_name(method), model, str(len(mine)), str(len(known)), *values])
    return Table("Stability of the fields' dims over seeds", head, rows)


def importance_tables(results: Sequence[Result], singles: Sequence[Result]) -> list[Table]:
    """AUC of models that see one field, beside the dims that were found (RQ6), by falling AUC.

    A table per model; its last line is Pearson's correlation of each method's dims with the AUC.
    """
    tables = []
    for model in dict.fromkeys(single["model"] for single in singles):
        alone = sorted((s for s in singles if s["model"] == model), key=_auc, reverse=True)
        names = [next(iter(single["dims"])) for single in alone]
        dims = {
            method: [mean(result["dims"][name] for result in mine) for name in names]
            for (of, method), mine in _groups(_with_dims(results)).items()
            if of == model
        }
        rows = []
        for place, (name, single) in enumerate(zip(names, alone, strict=True)):
            measures = [f"{_auc(single):.4f}", f"{single['metrics']['logloss']:.4f}"]
            found = [f"{values[place]:.3g}" for values in dims.values()]
            count = single["params"] // round(single["dims"][name])
            rows.append([name, f"{count:,}", *measures, *found])
        aucs = [_auc(single) for single in alone]
        shown = [correlation(aucs, values) for values in dims.values()]
        rows.append(["correlation with AUC", "", "", "",
                     *("" if value is None else f"{value:.2f}" for value in shown)])  # fmt: skip
        head = ("field", "rows", "AUC alone", "logloss alone", *map(method_name, dims))
        title = f"What a field tells alone, and its mean dim: {model}"
        tables.append(Table(title, head, rows))
    return tables


def _with_dims(results: Sequence[Result]) -> list[Result]:
    """Results of methods that chose dims."""
    return [r for r in results if r["dims"] and r["method"] not in ("fde", "uniform")]
