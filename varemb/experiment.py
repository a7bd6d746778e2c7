"""What `varemb search`, `train` and `demo` do: read data, search, train, compare, write the run
folder.

The compared methods are trained one after the other by `train_plan` with the same settings, split
and seed; FDE is the plan in which every row has the full width, without matrices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import nn

from varemb.data import (
    PLANTED_DIMS,
    ClickData,
    load_avazu,
    load_criteo,
    load_ml1m,
    planted_clicks,
)
from varemb.files import checksum, save_json, save_jsonl
from varemb.models import FM, IPNN, NFM, AutoInt, DeepFM, WideDeep
from varemb.plan import SizePlan
from varemb.report import format_results, format_table, method_name, total_bytes
from varemb.runs import CHECKPOINT, HISTORY, METRICS, PLAN, load_run, open_run
from varemb.search import AutoDim, AutoDimConfig, MakeModel, TrainConfig, train_plan

Result = dict[str, Any]
Say = Callable[[str], None]

# Readers of data sets by the value of --data; each takes the folder of --data-dir.
DATA: dict[str, Callable[[Path], ClickData]] = {
    "ml-1m": load_ml1m,
    "criteo": load_criteo,
    "avazu": load_avazu,
}
# Recommenders by the value of --model; each takes the fields' rows, the width and the table.
MODELS: dict[str, Callable[[tuple[int, ...], int, nn.Module], nn.Module]] = {
    "fm": FM,
    "wide-deep": WideDeep,
    "deepfm": DeepFM,
    "nfm": NFM,
    "ipnn": IPNN,
    "autoint": AutoInt,
}

# Small enough for a minute on two cores, large enough to tell the fields apart. The price lambda_
# keeps a field from taking numbers that bring it nothing.
DEMO_ROWS = 60_000
DEMO_SEARCH = AutoDimConfig(
    candidates=(2, 4, 8, 16),
    f=1,
    warmup_epochs=8,
    search_epochs=12,
    batch_size=500,
    lr=3e-3,
    theta_lr=0.03,
    weight_decay=1e-6,
    lambda_=0.15,
)
DEMO_TRAINING = TrainConfig(batch_size=500, lr=3e-3, weight_decay=1e-5, max_epochs=25, patience=3)


@dataclass(frozen=True)
class Task:
    """Data, model and training that all compared methods share."""

    data: str
    model: str
    train: ClickData
    valid: ClickData
    test: ClickData
    training: TrainConfig
    width: int = 0  # of a comparison, in which all methods share it; 0 elsewhere

    def make_model(self, width: int) -> MakeModel:
        """Builds the model around a table of that width."""
        return lambda table: MODELS[self.model](self.train.cardinalities, width, table)

    def options(self) -> dict[str, Any]:
        """What decides a result of this task: option of the command line -> value."""
        return {
            "--data": self.data,
            "--model": self.model,
            **{train_option(name): value for name, value in asdict(self.training).items()},
            "content of --data-dir": _data_checksum(self.train, self.valid, self.test),
        }


def search_option(name: str) -> str:
    """The command-line option of a field of a search's config; what training has too says
    search."""
    is_shared = name in {field.name for field in fields(TrainConfig)} and name != "seed"
    return train_option(f"search_{name}" if is_shared else name)


def train_option(name: str) -> str:
    """The command-line option of a field of the training's config."""
    return "--" + name.rstrip("_").replace("_", "-")


# Of each train part, as long as it lives: the cells of a comparison share their data.
_CHECKSUMS: WeakKeyDictionary[ClickData, str] = WeakKeyDictionary()


def _data_checksum(*parts: ClickData) -> str:
    if parts[0] not in _CHECKSUMS:
        arrays = [array for part in parts for array in (part.ids.numpy(), part.labels.numpy())]
        _CHECKSUMS[parts[0]] = f"checksum {checksum(arrays)}"
    return _CHECKSUMS[parts[0]]


def plan_checksum(plan: SizePlan) -> str:
    """What tells a plan from another in the options of a run."""
    return f"checksum {checksum(plan[name] for name in plan)}"


@dataclass(frozen=True)
class Place:
    """Where a run lives; without a folder nothing is kept."""

    folder: Path | None
    resume: bool = False

    def checkpoint(self, name: str) -> Path | None:
        """The file that one training continues from."""
        return self.folder / CHECKPOINT / f"{name}.safetensors" if self.folder else None


def load_task(data: str, data_dir: Path | None, model: str, training: TrainConfig) -> Task:
    """Reads a data set and splits it 80/10/10 with the seed of the training.

    Raises:
        ValueError: the data set needs a folder and none is given, a file is damaged, or rows of a
            part all have one label, so that it has no AUC.
        FileNotFoundError: the folder or a file of it is missing.
    """
    if data_dir is None:
        raise ValueError(f"--data {data} needs --data-dir, the folder with its files")
    train, valid, test = DATA[data](data_dir).split(training.seed)
    for part, use in ((train, "train"), (valid, "validate"), (test, "test")):
        positives = int(part.labels.count_nonzero())
        if not 0 < positives < len(part):
            raise ValueError(
                f"--data {data}: rows to {use} on must have labels 0 and 1, got {len(part):,} "
                f"rows, {positives:,} of 1"
            )
    return Task(data, model, train, valid, test, training)


def run_search(task: Task, config: AutoDimConfig, place: Place, say: Say = print) -> list[Result]:
    """AutoDim, its jagged table trained from new weights, and FDE beside it.

    Args:
        task: what is trained.
        config: the search's settings.
        place: the run folder.
        say: takes each line that is printed.

    Returns:
        The results, AutoDim's first; fields as in metrics.json.
    """
    options = {"command": "search autodim", **task.options()}
    options |= {search_option(name): value for name, value in asdict(config).items()}
    with open_run(place.folder, options, resume=place.resume) as is_finished:
        if place.folder and is_finished:
            return show_finished(place.folder, say)
        return _search(task, config, place, say)


def _search(
    task: Task,
    config: AutoDimConfig,
    place: Place,
    say: Say,
    planted: Mapping[str, int] | None = None,
) -> list[Result]:
    _describe(task, say)
    found = AutoDim(config).fit(
        task.make_model(max(config.candidates)),
        task.train,
        task.valid,
        checkpoint_dir=place.folder / CHECKPOINT if place.folder else None,
        resume=place.resume,
    )
    plan = found.plan
    if plan is None:
        raise RuntimeError("AutoDim: a search for dims gives a plan")
    history = list(found.history)
    _keep(place, plan, history)
    say(f"\nAutoDim searched for {found.seconds:.0f} s and found\n{plan.summary()}\n")
    if planted:
        rows = [
            [name, str(dims[0]), str(planted.get(name, ""))] for name, dims in plan.tables.items()
        ]
        say(format_table(["field", "dim found", "planted"], rows) + "\n")
    autodim = _train(task, place, autodim_name(config), plan, found.unify, history)
    seconds = {"search_seconds": found.seconds, "train_seconds": autodim["seconds"]}
    autodim |= {**seconds, "seconds": sum(seconds.values())}
    if planted:
        autodim["planted"] = dict(planted)
    full = SizePlan(
        {name: np.full(len(plan[name]), plan.widths[name]) for name in plan},
        plan.widths,
    )
    fde = _train(task, place, "fde", full, "pad", history)
    _keep(place, plan, history)
    return _finish(place, [autodim, fde], say)


def run_train(
    task: Task, plan: SizePlan, unify: str, place: Place, say: Say = print
) -> list[Result]:
    """The task's model, trained on a table with the dims of a plan.

    Args:
        task: what is trained.
        plan: a table per field of the data.
        unify: how rows reach the width: "linear" or "pad".
        place: the run folder.
        say: takes each line that is printed.

    Returns:
        One result; fields as in metrics.json.

    Raises:
        ValueError: the plan is for other tables; the message names the first that differs.
    """
    check_plan(plan, task)
    options = {"command": "train", **task.options(), "--unify": unify}
    options["content of --plan"] = plan_checksum(plan)
    with open_run(place.folder, options, resume=place.resume) as is_finished:
        if place.folder and is_finished:
            return show_finished(place.folder, say)
        _describe(task, say)
        history: list[Result] = []
        result = _train(task, place, "plan", plan, unify, history)
        _keep(place, plan, history)
        return _finish(place, [result], say)


def autodim_name(config: AutoDimConfig) -> str:
    """What results call AutoDim with these settings: autodim is the paper's AD-2."""
    name = "autodim-s" if config.joint else "autodim"
    return name if config.variant == "ad-2" else f"{name}-{config.variant}"


def check_plan(plan: SizePlan, task: Task) -> None:
    """Raises ValueError when a plan is not for the fields of the task's data."""
    data = task.train
    rows_of = dict(zip(data.field_names, data.cardinalities, strict=True))
    for name in plan:
        if name not in rows_of:
            raise ValueError(
                f"train: the plan is for other tables: {task.data} has no field {name}, "
                f"it has {', '.join(rows_of)}"
            )
    for name, rows in rows_of.items():
        if name not in plan:
            raise ValueError(f"train: the plan is for other tables: it has no table {name}")
        if len(plan[name]) != rows:
            raise ValueError(
                f"train: the plan is for other tables: its table {name} has {len(plan[name]):,} "
                f"rows, the field {name} of {task.data} has {rows:,}"
            )
    if list(plan) != list(rows_of):
        raise ValueError(
            f"train: the plan must have the tables in the order {', '.join(rows_of)}, "
            f"got {', '.join(plan)}"
        )


def run_demo(seed: int, place: Place, *, rows: int = DEMO_ROWS, say: Say = print) -> list[Result]:
    """AutoDim and FDE on generated clicks whose fields need known dims, found beside planted.

    Args:
        seed: of data, split and training.
        place: the run folder; without one nothing is kept.
        rows: clicks to generate.
        say: takes each line that is printed.

    Returns:
        The results, AutoDim's first; fields as in metrics.json.
    """
    train, valid, test = planted_clicks(rows, seed=seed).split(seed)
    training = dataclasses.replace(DEMO_TRAINING, seed=seed)
    task = Task("clicks", "wide-deep", train, valid, test, training)
    config = dataclasses.replace(DEMO_SEARCH, seed=seed)
    with open_run(
        place.folder, {"command": "demo", **task.options()}, resume=place.resume
    ) as is_finished:
        if place.folder and is_finished:
            return show_finished(place.folder, say)
        return _search(task, config, place, say, planted=PLANTED_DIMS)


def _describe(task: Task, say: Say) -> None:
    data = task.train
    parts = " / ".join(f"{len(part):,}" for part in (task.train, task.valid, task.test))
    sizes = ", ".join(
        f"{name} {rows:,}" for name, rows in zip(data.field_names, data.cardinalities, strict=True)
    )
    say(f"{task.data}: {parts} rows to train, validate and test on; seed {task.training.seed}")
    say(f"rows of the fields: {sizes}")


def _train(
    task: Task, place: Place, method: str, plan: SizePlan, unify: str, history: list[Result]
) -> Result:
    trained, measured = train_plan(
        task.make_model(max(plan.widths.values())),
        plan,
        task.train,
        task.valid,
        task.test,
        task.training,
        unify=unify,
        checkpoint=place.checkpoint(f"train-{method}"),
        resume=place.resume,
    )
    history += [{"method": method, **record} for record in trained.history]
    named = {"method": method, "data": task.data, "model": task.model, "seed": task.training.seed}
    return {**named, **measured}


def _keep(place: Place, plan: SizePlan, history: list[Result]) -> None:
    if place.folder:
        plan.save(place.folder / PLAN)
        save_jsonl(place.folder / HISTORY, history)


def _finish(place: Place, results: list[Result], say: Say) -> list[Result]:
    if place.folder:  # before anything is said: who reads it may be gone
        save_json(place.folder / METRICS, {**results[0], "compared": results[1:]})
    say(format_results(results))
    for other in results[1:]:
        say(_compare(results[0], other))
    if place.folder:
        say(f"\nwritten to {place.folder}; next: varemb report {place.folder}")
    return results


def _compare(result: Result, other: Result) -> str:
    gains = {name: result["metrics"][name] - other["metrics"][name] for name in ("auc", "logloss")}
    saved = 1 - result["params"] / max(other["params"], 1)
    share = total_bytes(result) / max(total_bytes(other), 1)
    return (
        f"{method_name(result['method'])} against {method_name(other['method'])}: "
        f"AUC {gains['auc']:+.4f}, logloss {gains['logloss']:+.4f}, {saved:.1%} of the numbers "
        f"saved, {share:.1%} of the bytes"
    )


def show_finished(
    folder: Path, say: Say, shown: Callable[[Sequence[Result]], str] = format_results
) -> list[Result]:
    """Says what a finished run found; returns its results."""
    results = load_run(folder).results
    say(f"{folder} holds this run, finished:")
    say(shown(results))
    return results
