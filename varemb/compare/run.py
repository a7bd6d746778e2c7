"""`varemb compare`: runs the cells, one after the other, and writes the tables and the picture.

A cell's folder that is finished is read and not run again; an unfinished one is continued. A cell
that fails is reported, and the others go on.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
from varemb.experiment import Result, Task, load_task
from varemb.files import atomic_write, save_json
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

Say = Callable[[str], None]


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
    cells = make_cells(asked, tasks.load(seed, asked.models[0]).train.field_names)
    progress = _Progress(len(cells), say)
    results: dict[str, Result] = {}
    failures: list[str] = []
    for cell in cells:
        is_old = load_cell(asked.out / cell.folder) is not None
        progress.begin(cell, is_old=is_old)
        try:
            results[cell.folder] = _run(cell, cells, asked, tasks, results)
        except Exception as error:  # whatever it is, the other cells are still worth running
            if trace:
                say(traceback.format_exc())
            failures.append(f"{cell.folder}: {type(error).__name__}: {error}")
            say(f"  failed: {type(error).__name__}: {error}")
            progress.end(None, is_old=is_old)
        else:
            progress.end(results[cell.folder], is_old=is_old)
    _write(asked, list(results.values()), failures, say)
    return failures


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


class _Progress:
    """Which cell of how many, and how long the rest will take."""

    def __init__(self, total: int, say: Say) -> None:
        self.total, self.say = total, say
        self.number, self.start = 0, 0.0
        self.times: list[float] = []  # seconds of each cell that was run

    def begin(self, cell: Cell, *, is_old: bool) -> None:
        self.number += 1
        name = method_name(cell.label) if cell.only is None else f"field {cell.only} alone"
        text = f"cell {self.number} of {self.total}: {cell.model}, {name}, seed {cell.seed}"
        if is_old:
            text += ", finished before"
        elif self.times:
            left = sum(self.times) / len(self.times) * (self.total - self.number + 1)
            text += f"; about {_duration(left)} left"
        self.say(text)
        self.start = time.perf_counter()

    def end(self, result: Result | None, *, is_old: bool) -> None:
        if not is_old:
            self.times.append(time.perf_counter() - self.start)
        if result is not None:
            self.say(
                f"  AUC {result['metrics']['auc']:.4f}, {result['params']:,} numbers, "
                f"{format_bytes(table_bytes(result))}, {_duration(result['seconds'])}"
            )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


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
    tables = make_tables(asked, results)
    for table in tables:
        say(f"\n{table.text()}")
    if failures:
        say("\nfailed:\n" + "\n".join(failures))
    main = _in_order(asked, [result for result in results if result["group"] == MAIN])
    summaries = summarize(main)
    asked.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "data": asked.data,
        "summary": summaries,
        "tables": [dataclasses.asdict(table) for table in tables],
        "failed": failures,
        "cells": results,
    }
    save_json(asked.out / "comparison.json", record)
    parts = [table.markdown() for table in tables]
    if failures:
        parts.append("## Failed\n\n" + "\n".join(f"- {line}" for line in failures))
    atomic_write(asked.out / "comparison.md", ("\n\n".join(parts) + "\n").encode())
    written: list[Path] = [asked.out / "comparison.json", asked.out / "comparison.md"]
    if summaries:
        try:
            picture = draw_tradeoff(summaries, f"Quality against bytes, {asked.data}")
        except ImportError as error:
            say(f"\nno picture: {error}")
        else:
            atomic_write(asked.out / "comparison.png", picture)
            written.append(asked.out / "comparison.png")
    say("\nwritten: " + ", ".join(map(str, written)))
