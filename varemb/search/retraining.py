"""What every method that ranks under a sparsity ends with: tables trained fully, and their test.

Candidates for a sparsity are trained on the training pairs until they do not get better on the
validation pairs; the best of them is trained once more, on both, for as many passes, and tested.
Test pairs are never looked at before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from varemb.files import checksum
from varemb.memory import memory_report
from varemb.plan import SizePlan
from varemb.search.base import Checkpoint, StoredTable, state_nbytes
from varemb.search.pairwise import (
    Fitting,
    MakeNodeTable,
    PairData,
    Pairs,
    PairwiseConfig,
    Prepare,
    Quality,
    Trainer,
    packed_table,
    tables_of,
)
from varemb.search.rounds import Unfinished, seconds_since, train_for, train_while_better
from varemb.search.sparsity import Dims, to_dims, to_plan

_BYTES = ("weights", "index", "unify", "optimizer")


@dataclass(frozen=True)
class Candidate:
    """Tables to train.

    Attributes:
        make_table: makes each of the recommender's tables, with new first numbers.
        plan: their dims; None where storage is no plan.
        is_cut: the plan was above the sparsity and was cut to it.
    """

    make_table: MakeNodeTable
    plan: SizePlan | None = None
    is_cut: bool = False


def plan_candidate(dims: Dims, num_users: int, width: int, *, is_cut: bool = False) -> Candidate:
    """Packed tables with these dims, users first."""
    return Candidate(packed_table(dims, width), to_plan(dims, num_users, width), is_cut)


@dataclass(frozen=True)
class LevelResult:
    """What a method reached at one sparsity.

    Attributes:
        sparsity: what was asked for.
        plan: dims of the tables "user" and "item"; None where storage is no plan.
        metrics: recall and ndcg of the test pairs.
        valid: the same of the validation pairs, before they were learnt.
        params: numbers of all tables.
        params_full: the same at full width.
        bytes: of the tables: weights, index, unify and optimizer.
        excluded: users without test pairs, who count in no mean.
        is_cut: the plan was above the sparsity in the search and was cut to it.
        trials: a record per candidate.
    """

    sparsity: float
    plan: SizePlan | None
    metrics: dict[str, float]
    valid: dict[str, float]
    params: int
    params_full: int
    bytes: dict[str, int]
    excluded: int
    is_cut: bool
    trials: tuple[dict[str, Any], ...]

    @property
    def sparsity_reached(self) -> float:
        """Share of the full tables' numbers that is left out."""
        return 1 - self.params / self.params_full


@dataclass(frozen=True)
class RankingResult:
    """What a method found, for every sparsity asked for.

    Attributes:
        levels: in the order of the sparsities.
        history: one record per training of the search; empty where nothing is searched.
        seconds: by part of the trainings, of the search and after it.
    """

    levels: tuple[LevelResult, ...]
    history: list[dict[str, Any]]
    seconds: dict[str, float]


@dataclass
class Progress:
    """What is kept of the trainings after a search, and where.

    Attributes:
        file: the checkpoint.
        before: what the search itself keeps.
        done: name of a finished training -> its record.
        resume: go on from what a stopped run kept.
    """

    file: Checkpoint
    before: dict[str, Any] = field(default_factory=dict)
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    resume: bool = False

    def once(self, name: str, run: Callable[[Unfinished], dict[str, Any]]) -> dict[str, Any]:
        """The record of a training, run if it is not there yet, and saved."""
        unfinished = self.unfinished(name)
        if name not in self.done:
            self.done[name] = run(unfinished)
            self.file.save({**self.before, "done": self.done})
        unfinished.remove()
        return self.done[name]

    def unfinished(self, name: str) -> Unfinished:
        """Where a training is kept until it is finished: a file of its own, beside the search's."""
        path = self.file.path
        if path is not None:
            path = path.with_name(f"{path.stem}-{name.replace('/', '-')}.safetensors")
        return Unfinished(Checkpoint(path, self.file.identity), self.resume)


def join_pairs(first: Pairs, second: Pairs) -> Pairs:
    """The pairs of both."""
    users, items = (np.concatenate(rows) for rows in zip(first, second, strict=True))
    return users, items


def measure_levels(
    candidates: Mapping[float, Sequence[Candidate]],
    data: PairData,
    prepare: Prepare,
    trainer: Trainer,
    training: PairwiseConfig,
    width: int,
    seed: int,
    score: Callable[[Quality], float],
    kept: Progress,
    *,
    progress: bool,
) -> RankingResult:
    """Trains every candidate, and the best of each sparsity for the test.

    Every training starts from the same seed and sees the same triples.

    Args:
        candidates: of each sparsity, at least one.
        data: the pairs.
        prepare: makes recommenders.
        trainer: of the training pairs, ranked for the validation pairs.
        training: how each is trained.
        width: D.
        seed: of first weights and triples.
        score: what makes a candidate the best, of its validation.
        kept: trainings that are done.
        progress: say what is trained, and show a bar of its steps.
    """
    trainers: list[Trainer] = []  # of training and validation pairs, made when it is needed

    def test(candidate: Candidate, rounds: int, unfinished: Unfinished) -> dict[str, Any]:
        if not trainers:
            both = join_pairs(data.train, data.valid)
            sizes = data.num_users, data.num_items
            trainers.append(Trainer(prepare, both, data.test, *sizes, training, seed))
        epochs = rounds * training.round_epochs
        return _test(trainers[0], candidate, epochs, width, seed, unfinished, progress=progress)

    levels = []
    for sparsity, plans in candidates.items():
        trials = []
        for number, candidate in enumerate(plans):
            _say(f"sparsity {sparsity:g}: plan {number + 1} of {len(plans)}", progress)
            attempt = partial(_try, trainer, candidate, seed, score, progress=progress)
            trials.append(kept.once(f"{sparsity}/{number}", attempt))
        best = max(range(len(trials)), key=lambda i: float(trials[i]["score"]))
        chosen, found = plans[best], trials[best]
        _say(f"sparsity {sparsity:g}: train plan {best + 1} for the test", progress)
        tested = kept.once(f"{sparsity}/test", partial(test, chosen, found["rounds"]))
        result = LevelResult(
            sparsity=sparsity,
            plan=chosen.plan,
            valid=found["valid"],
            is_cut=chosen.is_cut,
            trials=tuple(trials),
            **{name: value for name, value in tested.items() if name != "seconds"},
        )
        levels.append(result)
    seconds = dict(kept.before.get("seconds", {}))
    for record in kept.done.values():
        for part, value in record["seconds"].items():
            seconds[part] = seconds.get(part, 0.0) + value
    return RankingResult(tuple(levels), [], seconds)


def _try(
    trainer: Trainer,
    candidate: Candidate,
    seed: int,
    score: Callable[[Quality], float],
    unfinished: Unfinished,
    *,
    progress: bool,
) -> dict[str, Any]:
    trainer.rewind()
    before = dict(trainer.seconds)
    generator = torch.Generator().manual_seed(seed)
    _, quality, rounds = train_while_better(
        trainer, candidate.make_table, generator, unfinished, progress=progress
    )
    value = score(quality)
    return {
        "score": value if math.isfinite(value) else 0.0,
        "valid": quality.means,
        "rounds": rounds,
        "is_cut": candidate.is_cut,
        "mean_dim": None if candidate.plan is None else candidate.plan.mean_dim,
        "seconds": seconds_since(trainer, before),
    }


def _test(
    trainer: Trainer,
    candidate: Candidate,
    epochs: int,
    width: int,
    seed: int,
    unfinished: Unfinished,
    *,
    progress: bool,
) -> dict[str, Any]:
    trainer.rewind()
    before = dict(trainer.seconds)
    generator = torch.Generator().manual_seed(seed)
    steps = trainer.steps_of(epochs)
    fitting = train_for(
        trainer, candidate.make_table, steps, generator, unfinished, progress=progress
    )
    quality = trainer.rank(fitting.model)
    return {
        "metrics": quality.means,
        "excluded": quality.excluded,
        "seconds": seconds_since(trainer, before),
        **count_tables(fitting, width, trainer.num_users + trainer.num_items),
    }


def count_tables(fitting: Fitting, width: int, rows: int) -> dict[str, Any]:
    """params, params_full and bytes of a recommender's tables and their optimizer."""
    tables: list[Any] = list(tables_of(fitting.model))
    sizes = dict.fromkeys(_BYTES, 0)
    params = 0
    for table in tables:
        report = memory_report(table, fitting.optimizer)
        params += report.params
        for part in _BYTES:
            sizes[part] += report.bytes[part]
    for table in fitting.model.modules():
        if isinstance(table, StoredTable):
            tables.append(table)
            params += table.num_params
            for part, number in table.num_bytes().items():
                sizes[part] += number
            sizes["optimizer"] += state_nbytes(fitting.optimizer, table.parameters())
    return {"params": params, "params_full": len(tables) * rows * width, "bytes": sizes}


def open_progress(
    name: str,
    config: Any,
    trainer: Trainer,
    data: PairData,
    folder: Path | None,
    *,
    resume: bool,
) -> tuple[Progress, dict[str, Any] | None]:
    """The file `name`.safetensors of a method, bound to all that decides its result, and its state.

    Args:
        name: the method's.
        config: its settings.
        trainer: of the search; its settings and its recommender, as text, count too.
        data: the pairs.
        folder: of the file, or None to keep nothing.
        resume: read the state that is there.
    """
    parts = (data.train, data.valid, data.test)
    sizes = [len(users) for users, _ in parts]
    training = asdict(trainer.config)
    identity = {**asdict(config), **{f"training {k}": v for k, v in training.items()}}
    if folder is not None:
        narrow = packed_table(np.ones(len(trainer.counts), np.int64), config.width)
        identity["recommender"] = str(trainer.start(narrow, torch.Generator()).model)
    identity["pairs"] = [*sizes, data.num_users, data.num_items]
    identity["content"] = checksum(rows for part in parts for rows in part)
    file = Checkpoint.in_folder(folder, name, identity)
    state = file.load(resume=resume)
    done = {} if state is None else state.get("done", {})
    return Progress(file, done=done, resume=resume), state


def dims_of(result: LevelResult) -> Dims:
    """The dims of all nodes of a result with a plan."""
    if result.plan is None:
        raise ValueError("the result's storage is no plan")
    return to_dims(result.plan)


def _say(text: str, progress: bool) -> None:
    if progress:
        print(text, flush=True)
