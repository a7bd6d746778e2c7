"""Full trainings of recommenders, in rounds of some epochs, each of which is kept in a file.

A training takes up to an hour. Stopped between two rounds it goes on with the same triples, weights
and dropout, and ends as if it had not been.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from varemb.search.base import Checkpoint
from varemb.search.pairwise import Fitting, MakeNodeTable, Quality, Recommender, Trainer
from varemb.search.progress import closing, make_bar
from varemb.search.training import seeded_from


@dataclass(frozen=True)
class Unfinished:
    """The file of a training between two rounds.

    Attributes:
        file: where it is kept.
        resume: go on from what a stopped run kept.
    """

    file: Checkpoint
    resume: bool

    def load(self) -> dict[str, Any] | None:
        """What was kept, if anything."""
        return self.file.load(resume=self.resume)

    def remove(self) -> None:
        """Once the training's record is kept."""
        if self.file.path is not None:
            self.file.path.unlink(missing_ok=True)


@dataclass
class _Best:
    """The best round of a training so far: its weights and quality; round 0 before the first."""

    weights: dict[str, Any]
    quality: Quality | None = None
    round: int = 0

    @property
    def found(self) -> Quality:
        assert self.quality is not None
        return self.quality

    def offer(self, model: Recommender, quality: Quality, number: int) -> None:
        """Takes a copy of a round that is better than all before."""
        if self.quality is None or quality.mean > self.quality.mean:
            self.weights = {name: value.clone() for name, value in model.state_dict().items()}
            self.quality, self.round = quality, number

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"weights": self.weights, "quality": vars(self.found), "round": self.round}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> _Best:
        """From what `state` gave."""
        return cls(state["weights"], Quality(**state["quality"]), state["round"])


def train_while_better(
    trainer: Trainer,
    make_table: MakeNodeTable,
    generator: torch.Generator,
    kept: Unfinished | None = None,
    *,
    progress: bool = False,
) -> tuple[Fitting, Quality, int]:
    """A recommender trained until it does not get better, as `trainer.config` says.

    Args:
        trainer: of the pairs to learn from and those to judge by.
        make_table: makes the recommender's tables.
        generator: of first weights and dropout.
        kept: where it is saved after every round, and goes on from.
        progress: show a bar of its steps.

    Returns:
        The recommender with the weights of its best round, its quality, and that round, from 1.
    """
    config, before = trainer.config, dict(trainer.seconds)
    fitting, steps = trainer.start(make_table, generator), trainer.steps_of(config.round_epochs)
    number, best = 0, _Best(fitting.model.state_dict())
    state = None if kept is None else kept.load()
    if state is not None:
        _load_state(trainer, fitting, state)
        generator.set_state(state["generator"])
        number, best = state["round"], _Best.of_state(state["best"])
    total = config.max_rounds * steps
    bar = make_bar("steps, at most", total, initial=number * steps, progress=progress)
    with closing(bar):
        while number < config.max_rounds and number - best.round < config.patience:
            trainer.advance(fitting, steps, generator, bar)
            number += 1
            best.offer(fitting.model, trainer.rank(fitting.model), number)
            if kept is not None:
                own = {"generator": generator.get_state(), "round": number, "best": best.state()}
                kept.file.save(_state(trainer, fitting, before) | own)
            if bar is not None:
                recall = f"{best.found.means['recall@20']:.4f}"
                bar.set_postfix({"round": number, "best": best.round, "R@20": recall})
    fitting.model.load_state_dict(best.weights)
    return fitting, best.found, best.round


def train_for(
    trainer: Trainer,
    make_table: MakeNodeTable,
    steps: int,
    generator: torch.Generator,
    kept: Unfinished | None = None,
    *,
    progress: bool = False,
) -> Fitting:
    """A recommender trained for so many steps; other arguments as `train_while_better`."""
    before, of_round = dict(trainer.seconds), trainer.steps_of(trainer.config.round_epochs)
    fitting = trainer.start(make_table, generator)
    with seeded_from(generator):
        state = None if kept is None else kept.load()
        if state is not None:
            _load_state(trainer, fitting, state)
            torch.set_rng_state(state["rng"])
        bar = make_bar("steps", steps, initial=fitting.steps, progress=progress)
        with closing(bar):
            while fitting.steps < steps:
                trainer.run(fitting, min(of_round, steps - fitting.steps), bar)
                if kept is not None:
                    own = {"rng": torch.get_rng_state()}
                    kept.file.save(_state(trainer, fitting, before) | own)
    return fitting


def seconds_since(trainer: Trainer, before: Mapping[str, float]) -> dict[str, float]:
    """What a trainer spent by part since it had spent so much."""
    return {part: value - before[part] for part, value in trainer.seconds.items()}


def _state(trainer: Trainer, fitting: Fitting, before: Mapping[str, float]) -> dict[str, Any]:
    """A training between two rounds that began when so many seconds were spent."""
    return {
        "fitting": fitting.state(),
        "sampler": trainer.sampler.state(),
        "seconds": seconds_since(trainer, before),
    }


def _load_state(trainer: Trainer, fitting: Fitting, state: Mapping[str, Any]) -> None:
    """Takes over what `_state` gave."""
    fitting.load_state(state["fitting"])
    trainer.sampler.load_state(state["sampler"])
    for part, value in state["seconds"].items():
        trainer.seconds[part] += value
