"""What a comparison is asked for, and its cells in an order in which each finds what it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from varemb.compare.cells import FIELD, MAIN, SWEEP, Cell, Grid
from varemb.compare.methods import (
    METHODS,
    check_names,
    check_seeds,
    check_used,
    find_method,
    make_config,
    own_fields,
    setting_option,
)
from varemb.experiment import DATA, MODELS, train_option
from varemb.search import TrainConfig, UniformConfig
from varemb.search.settings import check_candidates, naming_options

BUDGET_OF = "autodim"  # whose numbers the uniform table gets


@dataclass(frozen=True)
class Comparison:
    """What the command line asked for.

    Attributes:
        data, data_dir: the data set and its folder.
        models: names in experiment.MODELS.
        methods: name in METHODS -> its seeds.
        out: folder of the cells' run folders and of the tables.
        training: how every method's result is trained; the seed is the cell's.
        candidates: dims to choose from; the last is the width of all methods.
        settings: option of the command line -> value, of the methods.
        grid: what is tuned on the first seed of each model and method.
        transfer_from: the model whose plans the others take, or None.
        f_sweep: values of AutoDim's f.
        stability, importance: whether these tables are wanted.
    """

    data: str
    data_dir: Path | None
    models: tuple[str, ...]
    methods: Mapping[str, tuple[int, ...]]
    out: Path
    training: TrainConfig = field(default_factory=TrainConfig)
    candidates: tuple[int, ...] = (2, 8, 16, 24, 32)
    settings: Mapping[str, Any] = field(default_factory=dict)
    grid: Grid = field(default_factory=Grid)
    transfer_from: str | None = None
    f_sweep: tuple[int, ...] = ()
    stability: bool = False
    importance: bool = False


def check_comparison(asked: Comparison) -> None:
    """Raises ValueError for what cannot be compared, before anything runs."""
    check_names("data set of clicks", [asked.data], DATA)
    check_names("model", asked.models, MODELS)
    check_names("method", asked.methods, METHODS)
    if asked.transfer_from is not None:
        check_names("model", [asked.transfer_from], MODELS)
    check_seeds(asked.models, asked.methods)
    check_candidates("compare", asked.candidates, "--candidates")
    if any(f < 1 for f in asked.f_sweep) or len(set(asked.f_sweep)) < len(asked.f_sweep):
        raise ValueError(f"compare: --f-sweep needs distinct values >= 1, got {asked.f_sweep}")
    if "uniform" in asked.methods and not has_budget(asked):
        missing = set(asked.methods["uniform"]) - set(asked.methods.get(BUDGET_OF, ()))
        if missing:
            raise ValueError(
                f"compare: uniform takes the numbers of {BUDGET_OF}, which has no seed "
                f"{min(missing)} here; add it, or give --uniform-share or --uniform-numbers"
            )
    _check_settings(asked)


def _check_settings(asked: Comparison) -> None:
    """Makes and checks the settings of every cell; a cell of a single field is an FDE."""
    with naming_options(TrainConfig, lambda name: train_option(f"tune_{name}")):
        asked.grid.points(asked.training)
    used: set[str] = set()
    for cell in make_cells(asked, ()):
        method = find_method(cell.method)
        option = partial(setting_option, method.config)
        used |= {
            option(each.name) for each in own_fields(method.config)
            if each.name not in {**method.changes, **cell.changes}
        }  # fmt: skip
        with naming_options(method.config, option):
            method.check(
                make_config(method, asked.settings, asked.candidates, asked.training, cell.changes)
            )
    check_used(asked.settings, used, asked.methods)


def has_budget(asked: Comparison) -> bool:
    """Whether the uniform table's budget is given, instead of taken from AutoDim."""
    names = (setting_option(UniformConfig, name) for name in ("share", "numbers"))
    return any(name in asked.settings for name in names)


def make_cells(asked: Comparison, fields: Sequence[str]) -> list[Cell]:
    """The cells: by seed, then by model; what others need comes first.

    Args:
        asked: the comparison.
        fields: names of the data's fields.
    """
    cells: list[Cell] = []
    models = list(asked.models)
    source = asked.transfer_from
    if source is not None:
        models = [source, *(model for model in models if model != source)]
    methods = sorted(asked.methods, key=lambda name: name == "uniform")  # after its budget
    seeds = list(dict.fromkeys(seed for each in asked.methods.values() for seed in each))
    first = seeds[0]
    for seed in seeds:
        for model in models:
            for method in methods:
                if seed in asked.methods[method]:
                    cells.append(_main_cell(model, method, seed, source))
            if asked.f_sweep and seed in asked.methods.get("autodim", (first,)):
                cells += [
                    Cell(SWEEP, model, "autodim", seed, f"autodim-f{f}", {"f": f})
                    for f in asked.f_sweep
                ]
            if asked.importance and seed == first:
                cells += [
                    Cell(FIELD, model, "fde", seed, "fde", only=number)
                    for number in range(len(fields))
                ]
    return cells


def _main_cell(model: str, method: str, seed: int, source: str | None) -> Cell:
    cell = Cell(MAIN, model, method, seed, method)
    takes_plan = source not in (None, model) and method not in ("fde", "uniform")
    if not takes_plan or not find_method(method).has_plan:
        return cell
    return dataclasses.replace(cell, label=f"{method}-from-{source}", source=source)


def needed(cell: Cell, cells: Sequence[Cell], asked: Comparison) -> dict[str, Cell]:
    """The cells whose results this one needs: "tuned", "plan" and "budget", as far as it does."""
    found: dict[str, Cell] = {}
    same = [c for c in cells if c.group == cell.group and c.only == cell.only]
    first = next(c for c in same if (c.model, c.label) == (cell.model, cell.label))
    if first != cell and asked.grid != Grid():
        found["tuned"] = first
    if cell.source is not None:
        found["plan"] = next(
            c for c in cells
            if (c.group, c.model, c.method, c.seed) == (MAIN, cell.source, cell.method, cell.seed)
        )  # fmt: skip
    if cell.method == "uniform" and not has_budget(asked):
        found["budget"] = next(
            c for c in cells
            if (c.group, c.model, c.method, c.seed) == (MAIN, cell.model, BUDGET_OF, cell.seed)
        )  # fmt: skip
    return found
