"""One cell of a comparison: a method's search, the training of what it found, and its folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from varemb.compare.methods import Method, config_options, find_method
from varemb.data import ClickData
from varemb.experiment import Result, Task, plan_checksum
from varemb.files import load_json, save_json, save_jsonl
from varemb.plan import SizePlan
from varemb.runs import CHECKPOINT, HISTORY, METRICS, PLAN, open_run
from varemb.search import (
    SearchResult,
    TrainConfig,
    TrainResult,
    measure_trained,
    train_plan,
    train_table,
)

MAIN, SWEEP, FIELD = "comparison", "f-sweep", "importance"


@dataclass(frozen=True)
class Cell:
    """What one cell is.

    Attributes:
        group: the table it belongs to: MAIN, SWEEP or FIELD.
        model, seed: of the training.
        method: a name in METHODS.
        label: what results call it; the method, unless something was changed.
        changes: of the method's config.
        source: the model whose plan is taken instead of searching.
        only: the number of the only field that the model sees.
    """

    group: str
    model: str
    method: str
    seed: int
    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    only: int | None = None

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        part = self.label if self.only is None else f"field{self.only}"
        return f"{self.model}-{part}-seed{self.seed}"


@dataclass(frozen=True)
class Grid:
    """Settings of training to choose from on validation; empty when nothing is tuned."""

    lr: tuple[float, ...] = ()
    weight_decay: tuple[float, ...] = ()

    def points(self, training: TrainConfig) -> list[TrainConfig]:
        """Every combination; the given training alone without a grid."""
        return [
            dataclasses.replace(training, lr=lr, weight_decay=decay)
            for lr in self.lr or (training.lr,)
            for decay in self.weight_decay or (training.weight_decay,)
        ]


def only_field(data: ClickData, number: int) -> ClickData:
    """The rows with one field of theirs."""
    return ClickData(
        data.ids[:, [number]].contiguous(),
        data.labels,
        (data.field_names[number],),
        (data.cardinalities[number],),
    )


def load_cell(folder: Path) -> Result | None:
    """The result in a cell's folder; None if it is not finished."""
    return load_json(folder / METRICS) if (folder / METRICS).exists() else None


def run_cell(
    cell: Cell, task: Task, config: Any, given: SearchResult | None, grid: Grid, folder: Path
) -> Result:
    """Runs a cell, or continues it; a finished one is only read.

    Args:
        cell: what it is.
        task: model, data and training.
        config: settings of its method.
        given: a plan and its unify, trained instead of searching; or None.
        grid: what is tuned here.
        folder: where it lives.

    Returns:
        metrics.json: as of every run, and group, dims (mean dim per field), unify, score
        (validation AUC while searching), lr, weight_decay, and with a grid tuned (validation AUC
        of every setting). Seconds are those of the search and of the chosen setting.

    Raises:
        ValueError: the folder holds a run with other options, or what search and training raise.
    """
    options = {"command": "compare", "method": cell.label, **task.options()}
    if given is None or given.plan is None:
        options |= config_options(config)
    else:
        options["content of the plan"] = plan_checksum(given.plan)
    if grid.points(task.training) != [task.training]:
        options |= {"--tune-lr": grid.lr, "--tune-weight-decay": grid.weight_decay}
    with open_run(folder, options, resume=True) as is_finished:
        finished = load_cell(folder) if is_finished else None
        return finished or _run(cell, task, config, given, grid, folder)


def _run(
    cell: Cell, task: Task, config: Any, given: SearchResult | None, grid: Grid, folder: Path
) -> Result:
    method, points = find_method(cell.method), grid.points(task.training)
    found = given
    best: tuple[float, Result, SizePlan | None, list[dict[str, Any]]] | None = None
    tuned = []
    for number, training in enumerate(points):
        place = folder / CHECKPOINT / f"setting{number}"
        if given is None and method.shared:
            found = None  # a trained model goes before the next one is made
        if found is None:
            found = _search(method, task, config, training, place)
        trained, measured = _train(task, found, training, place / "train.safetensors")
        auc = trained.valid["auc"]
        setting = {"lr": training.lr, "weight_decay": training.weight_decay}
        tuned.append({**setting, "auc": auc})
        if best is None or auc > best[0]:
            result = {
                "method": cell.label, "data": task.data, "model": task.model, "seed": cell.seed,
                "group": cell.group, **measured, **_describe(found, trained, cell), **setting,
            }  # fmt: skip
            own = [] if found.trained else trained.history
            history = [*found.history, *({"method": cell.label, **record} for record in own)]
            best = auc, result, found.plan, history
        del trained
    assert best is not None
    _, result, plan, history = best
    if len(points) > 1:
        result["tuned"] = tuned
    if plan is not None:
        plan.save(folder / PLAN)
    save_jsonl(folder / HISTORY, history)
    save_json(folder / METRICS, result)
    return result


def given_plan(folder: Path) -> SearchResult:
    """What the finished cell in a folder found, for another model to be trained with.

    Raises:
        FileNotFoundError: its storage is no plan.
    """
    result: Result = load_json(folder / METRICS)
    return SearchResult(SizePlan.load(folder / PLAN), math.nan, [], 0.0, unify=result["unify"])


def _search(
    method: Method, task: Task, config: Any, training: TrainConfig, place: Path
) -> SearchResult:
    shared = {name: getattr(training, name) for name in method.shared}
    config = dataclasses.replace(config, **shared)
    return method.search(config).fit(
        task.make_model(_width(config)),
        task.train,
        task.valid,
        checkpoint_dir=place,
        resume=True,
    )


def _width(config: Any) -> int:
    return int(config.width if hasattr(config, "width") else config.candidates[-1])


def _train(
    task: Task, found: SearchResult, training: TrainConfig, checkpoint: Path
) -> tuple[TrainResult, Result]:
    """What the search found, trained from new weights unless it is trained already."""
    parts = (task.train, task.valid, task.test)
    if found.trained is not None:
        assert found.table is not None
        return found.trained, measure_trained(found.trained, found.table, task.test, task.width)
    make_model = task.make_model(task.width)
    if found.make_table is not None:
        return train_table(
            make_model, found.make_table, *parts, training, width=task.width,
            checkpoint=checkpoint, resume=True,
        )  # fmt: skip
    assert found.plan is not None
    return train_plan(
        make_model, found.plan, *parts, training, unify=found.unify,
        checkpoint=checkpoint, resume=True,
    )  # fmt: skip


def _describe(found: SearchResult, trained: TrainResult, cell: Cell) -> Result:
    is_trained = found.trained is not None  # its training is part of the search
    train_seconds = 0.0 if is_trained else trained.seconds
    plan = found.plan
    return {
        "score": found.score if math.isfinite(found.score) else None,
        "dims": None if plan is None else {name: float(plan[name].mean()) for name in plan},
        "unify": found.unify,
        "search_seconds": found.seconds,
        "train_seconds": train_seconds,
        "seconds": found.seconds + train_seconds,
        "source": cell.source,
        "only": cell.only,
    }


def chosen_training(result: Result, training: TrainConfig) -> TrainConfig:
    """A training with the learning rate and the weight decay that another cell chose."""
    return dataclasses.replace(training, lr=result["lr"], weight_decay=result["weight_decay"])
