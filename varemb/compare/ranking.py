"""`varemb compare` of models that rank: methods under sparsities, a run folder per search.

A cell is a method's search for one model and seed; it gives a plan for every sparsity, each trained
and tested (`search/retraining.py`). Cells of one seed share the split, which is kept beside them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from varemb.compare.earlier import read_earlier
from varemb.compare.methods import Settings, check_names, check_seeds, check_used
from varemb.compare.ranking_methods import (
    RANKING_METHODS,
    UNIT,
    config_of,
    make_ranking_config,
    pairwise_option,
    ranking_option,
)
from varemb.compare.ranking_pairs import content_of, keep_split, load_pairs
from varemb.compare.running import Say, duration, run_cells, write_comparison
from varemb.data import Split
from varemb.experiment import Result
from varemb.files import load_json, save_json, save_jsonl
from varemb.models import RECOMMENDERS, TRAININGS, prepare_recommender
from varemb.plan import SizePlan
from varemb.report import method_name
from varemb.report.ranking import cost_table, ranking_tables, summarize_levels
from varemb.report.ranking_figure import draw_ranking
from varemb.runs import CHECKPOINT, HISTORY, METRICS, open_run
from varemb.search import PairwiseConfig
from varemb.search.retraining import LevelResult

MAIN, COST = "comparison", "cost"
_CONTENT = "content of the split"  # its option of a run folder


@dataclass(frozen=True)
class RankingComparison:
    """What the command line asked for.

    Attributes:
        data: a name in INTERACTIONS, a Parquet or text file of pairs, or a folder with train.txt
            and test.txt, a user and the user's items in each line.
        data_dir: the folder of a data set that has a name.
        models: names in RECOMMENDERS.
        methods: name in RANKING_METHODS -> its seeds.
        out: folder of the cells' run folders, the splits and the tables.
        settings: option of the command line -> value, of the methods and of PairwiseConfig.
        costs: values of CIESS's lambda to try.
        columns: of users and items in a file.
    """

    data: str
    data_dir: Path | None
    models: tuple[str, ...]
    methods: Mapping[str, tuple[int, ...]]
    out: Path
    settings: Settings = field(default_factory=dict)
    costs: tuple[float, ...] = ()
    columns: tuple[str, str] = ("user", "item")


@dataclass(frozen=True)
class RankingCell:
    """One search.

    Attributes:
        group: MAIN or COST.
        model, seed: of recommender, split, search and training.
        method: a name in RANKING_METHODS.
        label: what results call it; the method, unless something was changed.
        changes: of the method's config.
    """

    group: str
    model: str
    method: str
    seed: int
    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        return f"{self.model}-{self.label.replace(' ', '-').replace('=', '')}-seed{self.seed}"


def check_ranking(asked: RankingComparison) -> None:
    """Raises ValueError for what cannot be compared, before anything runs."""
    check_names("model that ranks", asked.models, RECOMMENDERS)
    check_names("method that ranks", asked.methods, RANKING_METHODS)
    check_seeds(asked.models, asked.methods)
    if asked.settings.get(UNIT, "numbers") != "numbers":
        for name in asked.methods:
            if "unit" not in {each.name for each in fields(RANKING_METHODS[name].config)}:
                raise ValueError(f"compare: {name} counts numbers alone, not {UNIT} bytes")
    if len(set(asked.costs)) < len(asked.costs) or any(not cost >= 0 for cost in asked.costs):
        raise ValueError(f"compare: --cost-sweep needs distinct values >= 0, got {asked.costs}")
    check_used(asked.settings, _used_options(asked), asked.methods)
    widths = {cell.method: _make_settings(cell, asked)[0].width
              for cell in make_ranking_cells(asked)}  # fmt: skip
    if len(set(widths.values())) > 1:
        raise ValueError(
            "compare: methods must have one width (--width; the largest of --ranking-esapn-sizes), "
            f"got {', '.join(f'{name} {width}' for name, width in widths.items())}"
        )


def _used_options(asked: RankingComparison) -> set[str]:
    used = {pairwise_option(each.name) for each in fields(PairwiseConfig)}
    for cell in make_ranking_cells(asked):
        method = RANKING_METHODS[cell.method]
        used |= {
            ranking_option(method.config, each.name) for each in fields(method.config)
            if each.name not in {**method.changes, **cell.changes}
        }  # fmt: skip
    return used


def _make_settings(cell: RankingCell, asked: RankingComparison) -> tuple[Any, PairwiseConfig]:
    """The configs of a cell's method and of its trainings, checked."""
    changes = {**cell.changes, "seed": cell.seed}
    config = make_ranking_config(RANKING_METHODS[cell.method], asked.settings, changes)
    of_model = {
        name: value
        for name, value in TRAININGS[cell.model].items()
        if pairwise_option(name) not in asked.settings
    }
    return config, config_of(PairwiseConfig, asked.settings, pairwise_option, of_model)


def make_ranking_cells(asked: RankingComparison) -> list[RankingCell]:
    """The cells by seed, then by model."""
    cells: list[RankingCell] = []
    seeds = dict.fromkeys(seed for each in asked.methods.values() for seed in each)
    for seed in seeds:
        for model in asked.models:
            cells += [
                RankingCell(MAIN, model, method, seed, method)
                for method, mine in asked.methods.items()
                if seed in mine
            ]
            if seed in asked.methods.get("ciess", (next(iter(seeds)),)):
                cells += [
                    RankingCell(COST, model, "ciess", seed, f"ciess cost={cost:g}", {"cost": cost})
                    for cost in asked.costs
                ]
    return cells


def run_ranking(asked: RankingComparison, say: Say = print, *, trace: bool = False) -> list[str]:
    """Runs or continues every cell; writes comparison.json, .md and .png into `asked.out`.

    The tables also have the cells that earlier commands finished there, as far as their data,
    widths and full trainings are the same.

    Args:
        asked: what is compared.
        say: takes each line that is printed.
        trace: also print where a failing cell failed.

    Returns:
        A line for each cell that failed; none is what one hopes for.

    Raises:
        ValueError: a name or option that does not fit; nothing was run.
    """
    check_ranking(asked)
    cells = {cell.folder: cell for cell in make_ranking_cells(asked)}
    interactions = load_pairs(asked.data, asked.data_dir, asked.columns)
    splits: dict[int, Split] = {}  # of the seed at hand

    def run(folder: str, results: dict[str, Result]) -> Result:
        cell = cells[folder]
        if cell.seed not in splits:
            splits.clear()
            splits[cell.seed] = keep_split(interactions, cell.seed, asked.out)
        return run_ranking_cell(cell, asked, splits[cell.seed])

    results, failures = run_cells(
        {
            folder: f"{cell.model}, {method_name(cell.label)}, seed {cell.seed}"
            for folder, cell in cells.items()
        },
        run,
        lambda folder: (asked.out / folder / METRICS).exists(),
        _describe,
        say,
        trace=trace,
    )
    contents = functools.cache(lambda seed: content_of(interactions.split(seed)))
    earlier = read_earlier(
        asked.out,
        cells,
        lambda model, seed: {_CONTENT: contents(seed), **_shared_options(asked, model)},
        say,
    )
    _write(asked, [*results.values(), *earlier], failures, say)
    return failures


def _shared_options(asked: RankingComparison, model: str) -> dict[str, Any]:
    """What cells of a model have alike when they are compared, whatever their seed."""
    cell = dataclasses.replace(make_ranking_cells(asked)[0], model=model)
    config, training = _make_settings(cell, asked)
    trained = dataclasses.asdict(training)
    del trained["epochs"]  # of a search's trainings, not of the full ones
    return {
        "--data": asked.data,
        "--width": config.width,
        UNIT: asked.settings.get(UNIT, "numbers"),
        **{pairwise_option(name): value for name, value in trained.items()},
    }


def run_ranking_cell(cell: RankingCell, asked: RankingComparison, split: Split) -> Result:
    """Runs a cell, or continues it; a finished one is only read.

    Returns:
        metrics.json: method, data, model, seed, group; levels, a record for each sparsity;
        episodes, means over the trainings of each episode of a search; cost, CIESS's lambda;
        seconds, and seconds_by_part.

    Raises:
        ValueError: the folder holds a run with other options, or what the method raises.
    """
    method, folder = RANKING_METHODS[cell.method], asked.out / cell.folder
    option = partial(ranking_option, method.config)
    config, training = _make_settings(cell, asked)
    options = {
        "command": "compare", "method": cell.label, "--data": asked.data, "--model": cell.model,
        _CONTENT: content_of(split), "seed": cell.seed, "--width": config.width,
        **{pairwise_option(name): value for name, value in dataclasses.asdict(training).items()},
        **{option(name): value for name, value in dataclasses.asdict(config).items()
           if name != "seed"},
    }  # fmt: skip
    prepare = partial(
        prepare_recommender,
        cell.model,
        num_users=split.num_users,
        num_items=split.num_items,
        width=config.width,
    )
    with open_run(folder, options, resume=True) as is_finished:
        if is_finished:
            finished: Result = load_json(folder / METRICS)
            return finished
        found = method.search(config).fit(
            split, prepare, training, checkpoint_dir=folder / CHECKPOINT, resume=True
        )
        for level in found.levels:
            if level.plan is not None:
                level.plan.save(folder / f"plan-{level.sparsity:g}.safetensors")
        result = {
            "method": cell.label, "data": asked.data, "model": cell.model, "seed": cell.seed,
            "group": cell.group, "levels": [level_record(level) for level in found.levels],
            "episodes": mean_episodes(found.history), "cost": getattr(config, "cost", None),
            "seconds": sum(found.seconds.values()), "seconds_by_part": found.seconds,
        }  # fmt: skip
        save_jsonl(folder / HISTORY, found.history)
        save_json(folder / METRICS, result)
    return result


def level_record(level: LevelResult) -> dict[str, Any]:
    """What a level's plan and training came to, as JSON values."""
    record = {each.name: getattr(level, each.name) for each in dataclasses.fields(level)}
    plan: SizePlan | None = record.pop("plan")
    dims = None if plan is None else {name: float(plan[name].mean()) for name in plan}
    return {**record, "sparsity_reached": level.sparsity_reached, "dims": dims}


def mean_episodes(history: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Means over the trainings of each episode; nothing for a method without episodes.

    Example:
        >>> mean_episodes([{"episode": 1, "reward": 0.25, "quality": 0.5, "mean_dim_user": 64.0,
        ...                 "mean_dim_item": 32.0}])
        [{'reward': 0.25, 'quality': 0.5, 'mean_dim_user': 64.0, 'mean_dim_item': 32.0}]
    """
    episodes: dict[int, list[Mapping[str, Any]]] = {}
    for record in history:
        if "episode" in record:
            episodes.setdefault(record["episode"], []).append(record)
    names = ("reward", "quality", "mean_dim_user", "mean_dim_item")
    return [{name: mean(each[name] for each in records) for name in names}
            for records in episodes.values()]  # fmt: skip


def _describe(result: Result) -> str:
    levels = (
        f"{level['sparsity']:g}: {level['metrics']['recall@20']:.4f}" for level in result["levels"]
    )
    return f"Recall@20 by sparsity {', '.join(levels)}; {duration(result['seconds'])}"


def _write(asked: RankingComparison, results: list[Result], failures: list[str], say: Say) -> None:
    methods = list(RANKING_METHODS)
    main = [result for result in results if result["group"] == MAIN]
    main.sort(key=lambda result: methods.index(result["method"]))
    costs = [result for result in results if result["group"] == COST]
    summaries = summarize_levels(main)
    tables = ranking_tables(asked.data, summaries)
    if costs:
        tables.append(cost_table(costs))
    title = f"Ranking under a sparsity, {asked.data}"
    write_comparison(
        asked.out,
        {"data": asked.data, "summary": summaries, "cells": results},
        tables,
        failures,
        say,
        (lambda: draw_ranking(summaries, main, costs, title)) if results else None,
    )
