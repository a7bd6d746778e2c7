"""OptEmbed for rankings: drop small rows, then evolve a dim per side on a trained supernet.

The method of `search/optembed.py` (F. Lyu et al., CIKM 2022) on recommenders that learn from
triples, as CIESS compares with it; the fields are users and items. With e_n the row of node n, over
all tables of the recommender, t its side's threshold and k_n how many numbers it keeps:

    e^_n = 1[mean |e_n| > t] e_n[1 .. k_n],    loss = loss of the triples + alpha sum exp(-t)

1. k_n is drawn from 1..D for every node and step; the step's gradient is the long-tailed estimate.
2. Evolution over (d_user, d_item) by mean eval(u) (Eq. 8 of CIESS) of the validation pairs, with
   frozen weights.
3. Rows below their threshold have dim 0, others their side's: trained from new weights.

What else DIFFERS stands in `search/optembed.py`.

DIFFERS: OptEmbed has no budget. Here one supernet serves all sparsities, and each has an evolution
    of its own among the pairs of dims whose numbers, after rows are dropped, are within it: a
    mutation draws from the dims that the other side leaves, and a child of two parents that is
    above it is made again. A sparsity therefore always holds; what rounding to one dim per side
    leaves over stays unused, as in ES.
DIFFERS: the mean of |numbers|, not their sum. At the learning rate of these recommenders sums pass
    100, where neither the estimate nor exp(-t) has a slope; means are 0.1 to 2.
DIFFERS: alpha's default is 1000 times the largest of the paper's, at which thresholds fall and all
    rows stay. On ml-1m (LightGCN, sparsity 0.8, 8 epochs, 15 generations, trained for 20 passes)
    alpha = 0, 0.1, 0.3 drops 0, 1.5, 18 % of the rows, with Recall@20 of .176, .174, .167 on the
    validation pairs; ES has .177.
DIFFERS: generations descend from the fittest of all pairs of dims that were judged, for any
    sparsity, and none is judged twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varemb.search.node_masks import MaskedNodes, NodeMasks
from varemb.search.optembed import cross
from varemb.search.pairwise import (
    PairData,
    PairwiseConfig,
    Prepare,
    Trainer,
    packed_table,
)
from varemb.search.progress import run_steps
from varemb.search.retraining import (
    RankingResult,
    measure_levels,
    open_progress,
    plan_candidate,
)
from varemb.search.settings import check_positive, check_rates, option
from varemb.search.sparsity import Dims, allowed_numbers, check_distinct
from varemb.search.training import seeded_from

_SIDES = ("user", "item")


@dataclass(frozen=True)
class RankingOptEmbedConfig:
    """Settings of the search; the symbols are OptEmbed's."""

    width: int = option(128, "D, numbers of a whole row")
    sparsities: tuple[float, ...] = option((0.8, 0.9, 0.95), "c: shares of the numbers left out")
    alpha: float = option(0.1, "alpha: weight of sum exp(-t); larger drops more rows")
    t_init: float = option(0.0, "t: first thresholds, of a row's mean of |numbers|")
    t_lr: float = option(0.01, "learning rate of t, plain descent")
    epochs: int = option(20, "passes over the pairs that train the supernet")
    population: int = option(20, "plans of a generation, half by mutation, half by crossover")
    parents: int = option(15, "k: fittest plans that generations descend from")
    generations: int = option(30, "generations of the evolution for each sparsity")
    mutation: float = option(0.1, "chance that a mutation redraws a side's dim")
    seed: int = option(0, "of all randomness")


class RankingOptEmbed:
    """OptEmbed (F. Lyu et al., CIKM 2022) for rankings: small rows dropped, a dim per side evolved.

    Args:
        config: its settings.

    Example:
        >>> RankingOptEmbed(RankingOptEmbedConfig()).config.generations
        30
    """

    def __init__(self, config: RankingOptEmbedConfig) -> None:
        self.config = config

    def fit(
        self,
        data: PairData,
        prepare: Prepare,
        training: PairwiseConfig,
        *,
        progress: bool = True,
        checkpoint_dir: Path | None = None,
        resume: bool = False,
    ) -> RankingResult:
        """A plan for every sparsity, trained and tested; arguments and errors as CIESS.fit.

        A checkpoint is written after every epoch, generation and training.

        Returns:
            The levels; history has a record per epoch of the supernet and per generation.

        Raises:
            RuntimeError: all users or all items are below their threshold.

        Deterministic: yes, from config.seed, with the times in seconds aside.
        """
        config = self.config
        check_ranking_optembed(config)
        search = _Search(config, data, prepare, training)
        kept, state = open_progress(
            "optembed", config, search.trainer, data, checkpoint_dir, resume=resume
        )
        if state is not None:
            search.load_state(state)
        steps = search.num_steps
        run_steps("optembed", search, steps, kept.file.save, lambda record: {}, progress=progress)
        kept.before = search.state()
        candidates = {
            c: [plan_candidate(search.best_plan(c), data.num_users, config.width)]
            for c in config.sparsities
        }
        trainer, history = search.trainer, search.history
        del search  # and with it the supernet and its optimizer
        result = measure_levels(
            candidates, data, prepare, trainer, training, config.width, config.seed,
            lambda quality: quality.mean, kept, progress=progress,
        )  # fmt: skip
        return replace(result, history=history)


class _Search:
    """A search between two epochs or generations."""

    def __init__(
        self,
        config: RankingOptEmbedConfig,
        data: PairData,
        prepare: Prepare,
        training: PairwiseConfig,
    ) -> None:
        rows = data.num_users + data.num_items
        self.config, self.generator = config, torch.Generator().manual_seed(config.seed)
        self.allowed = {c: allowed_numbers(rows, config.width, c) for c in config.sparsities}
        self.trainer = Trainer.of_search(prepare, data, training, config.seed)
        masks = NodeMasks(data.num_users, rows, config.width, config.t_init)
        make_full = packed_table(np.full(rows, config.width), config.width)
        self.masks, self.fitting = masks, self.trainer.start(
            lambda std: MaskedNodes(make_full(std), masks), self.generator
        )  # fmt: skip
        self.history: list[dict[str, Any]] = []
        self.judged: dict[tuple[int, int], float] = {}  # dims of both sides -> mean eval(u)
        self.population: list[tuple[int, int]] = []

    @property
    def num_steps(self) -> int:
        """Epochs and generations of the whole search."""
        return self.config.epochs + len(self.allowed) * self.config.generations

    def advance(self) -> dict[str, Any]:
        """The next epoch or generation; returns its record."""
        done = len(self.history) - self.config.epochs
        if done < 0:
            return self._train()
        place, generation = divmod(done, self.config.generations)
        return self._evolve(list(self.allowed)[place], generation + 1)

    def _train(self) -> dict[str, Any]:
        """Stage 1: one epoch of the supernet."""
        config, masks, trainer = self.config, self.masks, self.trainer
        sgd = torch.optim.SGD([masks.t], config.t_lr)
        loss, steps = 0.0, trainer.steps_of(1)
        for _ in range(steps):
            masks.dims = torch.randint(
                1, config.width + 1, masks.dims.shape, generator=self.generator
            )
            sgd.zero_grad()
            # The recommender's own optimizer does not know t; its gradients of both terms add up.
            (config.alpha * torch.exp(-masks.t).sum()).backward()
            loss += trainer.advance(self.fitting, 1, self.generator)
            sgd.step()
        masks.dims = torch.full_like(masks.dims, config.width)
        return {
            "phase": "supernet",
            "epoch": len(self.history) + 1,
            "train_loss": loss / steps,
            "valid": trainer.rank(self.fitting.model).means,
            "thresholds": masks.t.tolist(),
            "kept_rows": self._kept_rows().tolist(),
        }

    def _kept_rows(self) -> Tensor:
        """Users and items that pass their threshold. [2]"""
        return torch.bincount(self.masks.side[self.masks.kept_rows()], minlength=2)

    def _evolve(self, sparsity: float, generation: int) -> dict[str, Any]:
        """Stage 2: judges one generation and makes the next one of the fittest so far."""
        config, numbers = self.config, self.allowed[sparsity]
        kept = self._kept_rows()
        if not kept.all():
            raise RuntimeError(
                f"OptEmbed: every {_SIDES[int(kept.argmin())]} is below the threshold; "
                "lower alpha, t_lr or t_init"
            )
        with seeded_from(self.generator):
            if generation == 1:
                self.population = first_plans(kept, config.width, numbers, config.population)
            for dims in self.population:
                if dims not in self.judged:
                    self.judged[dims] = self._judge(dims)
            fittest = self._fittest(numbers)
            parents = [list(dims) for dims in fittest[: config.parents]]
            self.population = [
                cross_within(parents, kept, numbers)
                if number % 2
                else mutate_within(parents, kept, numbers, config.width, config.mutation)
                for number in range(config.population)
            ]
        return {
            "phase": "evolution",
            "sparsity": sparsity,
            "epoch": generation,
            "quality": self.judged[fittest[0]],
            "dims": list(fittest[0]),
        }

    def _judge(self, dims: tuple[int, int]) -> float:
        """Mean eval(u) of the supernet cut to a dim per side."""
        full = self.masks.dims
        self.masks.dims = torch.tensor(dims)[self.masks.side]
        quality = self.trainer.rank(self.fitting.model).mean
        self.masks.dims = full
        return quality

    def _fittest(self, numbers: int) -> list[tuple[int, int]]:
        """All judged dims within so many numbers, the fittest first; of equals the earlier one."""
        kept = self._kept_rows()
        within = [dims for dims in self.judged if _numbers(dims, kept) <= numbers]
        return sorted(within, key=lambda dims: -self.judged[dims])

    def best_plan(self, sparsity: float) -> Dims:
        """Dims of all nodes: the fittest within a sparsity, 0 for dropped rows. [N]"""
        dims = torch.tensor(self._fittest(self.allowed[sparsity])[0])
        plan: Dims = (dims[self.masks.side] * self.masks.kept_rows()).numpy()
        return plan

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: at the end of the search no supernet any more."""
        is_over = len(self.history) == self.num_steps
        return {
            **({} if is_over else self.fitting.state()),
            "t": self.masks.t.detach(),
            "generator": self.generator.get_state(),
            "sampler": self.trainer.sampler.state(),
            "history": self.history,
            "judged": [[*dims, quality] for dims, quality in self.judged.items()],
            "population": self.population,
            "seconds": dict(self.trainer.seconds),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over what `state` gave."""
        if "model" in state:
            self.fitting.load_state(state)
        self.masks.t.data.copy_(state["t"])
        self.generator.set_state(state["generator"])
        self.trainer.sampler.load_state(state["sampler"])
        self.history = state["history"]
        self.judged = {(user, item): quality for user, item, quality in state["judged"]}
        self.population = [(user, item) for user, item in state["population"]]
        self.trainer.seconds.update(state["seconds"])


def _numbers(dims: tuple[int, int], kept: Tensor) -> int:
    return dims[0] * int(kept[0]) + dims[1] * int(kept[1])


def first_plans(kept: Tensor, width: int, numbers: int, count: int) -> list[tuple[int, int]]:
    """Dims of both sides, uniform over all pairs within so many numbers.

    Args:
        kept: rows of each side that are not dropped. [2]
        width: D.
        numbers: at least one for each of these rows.
        count: how many pairs.
    """
    pairs = torch.cartesian_prod(*[torch.arange(1, width + 1)] * 2)  # [D * D, 2]
    within = pairs[(pairs * kept).sum(1) <= numbers]
    return [(u, v) for u, v in within[torch.randint(len(within), (count,))].tolist()]


def mutate_within(
    parents: list[list[int]], kept: Tensor, numbers: int, width: int, chance: float
) -> tuple[int, int]:
    """A copy of a parent in which some sides' dims are drawn anew, from those the other leaves."""
    child = list(parents[int(torch.randint(len(parents), ()))])
    for side in range(2):
        if torch.rand(()) < chance:
            left = numbers - child[1 - side] * int(kept[1 - side])
            most = min(left // int(kept[side]), width)
            child[side] = int(torch.randint(1, most + 1, ()))
    return child[0], child[1]


def cross_within(parents: list[list[int]], kept: Tensor, numbers: int) -> tuple[int, int]:
    """The users' dim of one parent and the items' of another, within so many numbers."""
    while True:  # a parent crossed with itself is within them, so this ends
        user, item = cross(parents)
        if _numbers((user, item), kept) <= numbers:
            return user, item


def check_ranking_optembed(config: RankingOptEmbedConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_positive(
        "OptEmbed", config, "width", "epochs", "population", "parents", "generations"
    )  # fmt: skip
    if not 0 <= config.mutation <= 1:
        raise ValueError(f"OptEmbed: mutation must be in [0, 1], got {config.mutation}")
    check_distinct("OptEmbed", config.sparsities)
    check_rates("OptEmbed", config)
    if not config.alpha >= 0:
        raise ValueError(f"OptEmbed: alpha must be at least 0, got {config.alpha}")
