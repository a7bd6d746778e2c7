"""PEP for rankings: thresholds cut the numbers of user and item rows, one by one, under a sparsity.

The method of `search/pep.py` (S. Liu et al., ICLR 2021) on recommenders that learn from triples, as
CIESS compares with it. One training passes all sparsities, the least first: each time no more than
its numbers are left, the mask is kept. The rows are then trained again under it, from the same
first numbers, as compressed sparse rows. What else DIFFERS stands in `search/pep.py`.

While they are pruned, rows learn at a rate of their own, PEP's: at that of CIESS's recommenders
they outgrow thresholds of at most sigmoid(0), and no mask is sparse enough.

DIFFERS: gradients are not clipped; recommenders here are trained as CIESS trains them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varemb.search.csr import CsrTable
from varemb.search.pairwise import (
    MakeNodeTable,
    PairData,
    PairwiseConfig,
    Prepare,
    Trainer,
)
from varemb.search.pep import GRANULARITIES, ThresholdTable
from varemb.search.progress import closing, make_bar
from varemb.search.retraining import Candidate, RankingResult, measure_levels, open_progress
from varemb.search.settings import check_choice, check_positive, check_rates, option
from varemb.search.sparsity import allowed_numbers, check_distinct


@dataclass(frozen=True)
class RankingPEPConfig:
    """Settings of the pruning; the symbols are PEP's."""

    width: int = option(128, "D, numbers of a row before pruning")
    sparsities: tuple[float, ...] = option((0.8, 0.9, 0.95), "c: shares of the numbers left out")
    granularity: str = option("row-dimension", "what has a threshold: " + ", ".join(GRANULARITIES))
    s_init: float = option(-15.0, "s: first logit of the thresholds")
    s_lr: float = option(0.0, "learning rate of s; 0: s can rise to 0 in half the planned steps")
    s_weight_decay: float = option(1e-5, "L2 of s; it moves s up, towards 0")
    lr: float = option(0.001, "learning rate of all else while rows are pruned")
    max_epochs: int = option(30, "passes over the pairs within which all sparsities are reached")
    seed: int = option(0, "of all randomness")


class NodeTable(nn.Module):
    """A table of one field, [B, 1] -> [B, 1, D], as a table of rows. [L] -> [L, D]"""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, rows: Tensor) -> Tensor:  # [L] -> [L, D]
        vectors: Tensor = self.table(rows[:, None])
        return vectors[:, 0]


class RankingPEP:
    """PEP (S. Liu et al., ICLR 2021) for rankings: thresholds cut the rows of users and items.

    Args:
        config: its settings.

    Example:
        >>> RankingPEP(RankingPEPConfig()).config.granularity
        'row-dimension'
    """

    def __init__(self, config: RankingPEPConfig) -> None:
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
        """Masks for every sparsity, trained and tested; arguments and errors as CIESS.fit.

        A checkpoint is written after every epoch of the pruning and every training after it.

        Raises:
            RuntimeError: a sparsity is not reached within the passes.
        """
        config = self.config
        check_ranking_pep(config)
        search = _Search(config, data, prepare, training)
        kept, state = open_progress(
            "pep", config, search.trainer, data, checkpoint_dir, resume=resume
        )
        if state is not None:
            search.load_state(state)
        bar = make_bar("pep", config.max_epochs, initial=search.epochs, progress=progress)
        with closing(bar):
            while search.is_waiting:
                left = search.advance()
                kept.file.save(search.state())
                if bar is not None:
                    bar.update()
                    bar.set_postfix({"sparsity": f"{1 - left:.3f}"})
        kept.before = search.state()
        found = {c: [search.candidate(c)] for c in config.sparsities}
        trainer = search.trainer
        del search  # and with it the full-size model and its optimizer
        return measure_levels(
            found, data, prepare, trainer, training, config.width, config.seed,
            lambda quality: quality.mean, kept, progress=progress,
        )  # fmt: skip


class _Search:
    """A pruning between two epochs."""

    def __init__(
        self,
        config: RankingPEPConfig,
        data: PairData,
        prepare: Prepare,
        training: PairwiseConfig,
    ) -> None:
        self.config, self.generator = config, torch.Generator().manual_seed(config.seed)
        self.rows = rows = data.num_users + data.num_items
        levels = sorted(config.sparsities)  # in the order in which the pruning reaches them
        self.allowed = {c: allowed_numbers(rows, config.width, c) for c in levels}
        self.trainer = Trainer.of_search(prepare, data, training, config.seed)
        self.tables: list[ThresholdTable] = []

        def make_table(std: float) -> nn.Module:
            table = ThresholdTable([rows], config.width, config.granularity, config.s_init, std)
            self.tables.append(table)
            return NodeTable(table)

        self.fitting = self.trainer.start(make_table, self.generator)
        self.first = [  # numbers of each table before the pruning. [N, D]
            table.table.weight.detach().clone().view(rows, config.width) for table in self.tables
        ]
        self.fitting.optimizer = self._make_optimizer()
        self.masks: list[list[Tensor]] = []  # of each sparsity so far, of each table. [N, D] bool
        self.epochs = 0

    @property
    def is_waiting(self) -> bool:
        """Whether a sparsity has no masks yet."""
        return len(self.masks) < len(self.allowed)

    def advance(self) -> float:
        """The next epoch, or as much of it as is needed; returns the share of numbers left.

        Raises:
            RuntimeError: it was the last one, and a sparsity is not reached.
        """
        config, limits = self.config, list(self.allowed.values())
        tables = len(self.tables)
        for _ in range(self.trainer.steps_of(1)):
            self.trainer.advance(self.fitting, 1, self.generator)
            now = [table.mask() for table in self.tables]
            left = sum(int(mask.sum()) for mask in now)
            while self.is_waiting and left <= tables * limits[len(self.masks)]:
                self.masks.append(now)
            if not self.is_waiting:
                break
        self.epochs += 1
        share = left / (tables * self.rows * config.width)
        if self.is_waiting and self.epochs == config.max_epochs:
            raise RuntimeError(
                f"PEP: {share:.3f} of the numbers are left after {config.max_epochs} epochs, "
                f"sparsities {config.sparsities}; lower lr, or raise s_lr or max_epochs"
            )
        return share

    def candidate(self, sparsity: float) -> Candidate:
        """The masked tables of a sparsity, from the first numbers."""
        masks = self.masks[list(self.allowed).index(sparsity)]
        return Candidate(_masked_tables(self.rows, self.first, masks))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: once all masks are there, no model any more."""
        state = {
            "first": self.first,
            "masks": self.masks,
            "epochs": self.epochs,
            "seconds": dict(self.trainer.seconds),
        }
        if not self.is_waiting:
            return state
        return state | {
            **self.fitting.state(),
            "generator": self.generator.get_state(),
            "sampler": self.trainer.sampler.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over what `state` gave."""
        self.first, self.masks, self.epochs = state["first"], state["masks"], state["epochs"]
        self.trainer.seconds.update(state["seconds"])
        if self.is_waiting:
            self.fitting.load_state(state)
            self.generator.set_state(state["generator"])
            self.trainer.sampler.load_state(state["sampler"])

    def _make_optimizer(self) -> torch.optim.Optimizer:
        """Adam, with a group for the thresholds; the rates stay as they are."""
        config, logits = self.config, [table.s for table in self.tables]
        own = {id(s) for s in logits}
        steps = self.trainer.steps_of(config.max_epochs)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.fitting.model.parameters() if id(p) not in own]},
            {
                "params": logits,
                "lr": config.s_lr or max(-config.s_init, 1.0) / max(steps / 2, 1),
                "weight_decay": config.s_weight_decay,
            },
        ]
        return torch.optim.Adam([{**group, "is_fixed": True} for group in groups], config.lr)


def _masked_tables(rows: int, first: list[Tensor], masks: list[Tensor]) -> MakeNodeTable:
    """Makes a recommender's tables, one call for each, from their first numbers under masks."""
    places = itertools.cycle(range(len(first)))

    def make(std: float) -> nn.Module:
        place = next(places)
        return NodeTable(CsrTable([rows], first[place], masks[place]))

    return make


def check_ranking_pep(config: RankingPEPConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_positive("PEP", config, "width", "max_epochs")
    check_choice("PEP", config, "granularity", GRANULARITIES)
    check_rates("PEP", config)
    check_distinct("PEP", config.sparsities)
