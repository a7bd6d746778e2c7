"""`varemb compare`: runs the cells, one after the other, and writes the tables and the picture.

A cell's folder that is finished is read and not run again; an unfinished one is continued.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from varemb.compare.cells import (
    FIELD,
    MAIN,
    SWEEP,
    Cell,
    Grid,
    chosen_training,
    given_plan,
    load_cell,
    only_field,
    run_cell,
)
from varemb.compare.methods import find_method, make_config
from varemb.compare.order import Comparison, check_comparison, make_cells, needed
from varemb.compare.running import Say, duration, run_cells, write_comparison
from varemb.experiment import Result, Task, load_task
from varemb.report import (
    Table,
    draw_tradeoff,
    format_bytes,
    importance_tables,
    main_tables,
    method_name,
    stability_table,
    summarize,
    sweep_table,
)
from varemb.report.comparison import table_bytes


def run_compare(asked: Comparison, say: Say = print, *, trace: bool = False) -> list[str]:
    """Runs or continues every cell; writes comparison.json, .md and .png into `asked.out`.

    Args:
        asked: what is compared.
        say: takes each line that is printed.
        trace: also print where a failing cell failed.

    Returns:
        A line for each cell that failed; none is what one hopes for.

    Raises:
        ValueError: a name, seed or option that does not fit; nothing was run.
    """
    check_comparison(asked)
    tasks = _Tasks(asked)
    seed = next(iter(asked.methods.values()))[0]
    cells = {
        cell.folder: cell
        for cell in make_cells(asked, tasks.load(seed, asked.models[0]).train.field_names)
    }

    def run(folder: str, results: dict[str, Result]) -> Result:
        return _run(cells[folder], list(cells.values()), asked, tasks, results)

    results, failures = run_cells(
        {folder: _title(cell) for folder, cell in cells.items()},
        run,
        lambda folder: load_cell(asked.out / folder) is not None,
        _describe,
        say,
        trace=trace,
    )
    _write(asked, list(results.values()), failures, say)
    return failures


def _title(cell: Cell) -> str:
    name = method_name(cell.label) if cell.only is None else f"field {cell.only} alone"
    return f"{cell.model}, {name}, seed {cell.seed}"


def _describe(result: Result) -> str:
    return (
        f"AUC {result['metrics']['auc']:.4f}, {result['params']:,} numbers, "
        f"{format_bytes(table_bytes(result))}, {duration(result['seconds'])}"
    )


class _Tasks:
    """The data, read and split once per seed."""

    def __init__(self, asked: Comparison) -> None:
        self.asked = asked
        self.last: Task | None = None

    def load(self, seed: int, model: str) -> Task:
        """The task of a model; its data stays in memory until another seed is asked for."""
        if self.last is None or self.last.training.seed != seed:
            self.last = None  # the old rows go before the new ones come
            training = dataclasses.replace(self.asked.training, seed=seed)
            self.last = load_task(self.asked.data, self.asked.data_dir, model, training)
        return dataclasses.replace(self.last, model=model, width=self.asked.candidates[-1])


def _run(
    cell: Cell,
    cells: Sequence[Cell],
    asked: Comparison,
    tasks: _Tasks,
    results: dict[str, Result],
) -> Result:
    needs = needed(cell, cells, asked)
    for use, other in needs.items():
        if other.folder not in results:
            raise ValueError(f"needs the {use} of {other.folder}, which failed")
    task = tasks.load(cell.seed, cell.model)
    if cell.only is not None:
        train, valid, test = (only_field(p, cell.only) for p in (task.train, task.valid, task.test))
        task = dataclasses.replace(task, train=train, valid=valid, test=test)
    grid = asked.grid
    if "tuned" in needs:
        training = chosen_training(results[needs["tuned"].folder], task.training)
        task, grid = dataclasses.replace(task, training=training), Grid()
    given, changes = None, dict(cell.changes)
    if "plan" in needs:
        given = given_plan(asked.out / needs["plan"].folder)
    if "budget" in needs:
        changes["numbers"] = results[needs["budget"].folder]["params"]
    config = make_config(
        find_method(cell.method), asked.settings, asked.candidates, task.training, changes
    )
    return run_cell(cell, task, config, given, grid, asked.out / cell.folder)


def make_tables(asked: Comparison, results: Sequence[Result]) -> list[Table]:
    """Every table that was asked for and has a finished cell."""
    groups = {group: [r for r in results if r["group"] == group] for group in (MAIN, SWEEP, FIELD)}
    tables = main_tables(_in_order(asked, groups[MAIN])) if groups[MAIN] else []
    if groups[SWEEP]:
        tables.append(sweep_table(groups[SWEEP]))
    if asked.stability:
        tables.append(stability_table(groups[MAIN]))
    if groups[FIELD]:
        tables += importance_tables(groups[MAIN], groups[FIELD])
    return tables


def _in_order(asked: Comparison, results: Sequence[Result]) -> list[Result]:
    """By model and method as the command line had them, then by seed."""
    models, methods = list(asked.models), list(asked.methods)

    def place(result: Result) -> tuple[int, int, int]:
        model = models.index(result["model"]) if result["model"] in models else -1
        return model, methods.index(result["method"].partition("-from-")[0]), result["seed"]

    return sorted(results, key=place)


def _write(asked: Comparison, results: list[Result], failures: list[str], say: Say) -> None:
    summaries = summarize(_in_order(asked, [r for r in results if r["group"] == MAIN]))
    title = f"Quality against bytes, {asked.data}"
    write_comparison(
        asked.out,
        {"data": asked.data, "summary": summaries, "cells": results},
        make_tables(asked, results),
        failures,
        say,
        (lambda: draw_tradeoff(summaries, title)) if summaries else None,
    )
