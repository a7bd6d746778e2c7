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
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varemb.search.csr import CsrTable
from varemb.search.pairwise import (
    Fitting,
    MakeNodeTable,
    PairData,
    PairwiseConfig,
    Prepare,
    Trainer,
)
from varemb.search.pep import GRANULARITIES, ThresholdTable
from varemb.search.retraining import Candidate, RankingResult, measure_levels, open_progress
from varemb.search.settings import check_choice, check_positive, check_rates, option
from varemb.search.sparsity import allowed_numbers


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

        A checkpoint keeps the masks once all are there, and every training after that.

        Raises:
            RuntimeError: a sparsity is not reached within the passes.
        """
        config = self.config
        check_ranking_pep(config)
        kept, state = open_progress("pep", config, training, data, checkpoint_dir, resume=resume)
        rows = data.num_users + data.num_items
        allowed = {c: allowed_numbers(rows, config.width, c) for c in sorted(config.sparsities)}
        trainer = Trainer.of_search(prepare, data, training, config.seed)
        if state is None:
            first, masks = self._prune(trainer, allowed, rows)
            kept.before = {"first": first, "masks": masks, "seconds": dict(trainer.seconds)}
            kept.file.save({**kept.before, "done": {}})
        else:
            kept.before = {name: state[name] for name in ("first", "masks", "seconds")}
            first, masks = state["first"], state["masks"]
        found = {
            c: [Candidate(_masked_tables(rows, first, masks[place]))]
            for place, c in enumerate(allowed)
        }
        return measure_levels(
            {c: found[c] for c in config.sparsities}, data, prepare, trainer, training,
            config.width, config.seed, lambda quality: quality.mean, kept, progress=progress,
        )  # fmt: skip

    def _prune(
        self, trainer: Trainer, allowed: dict[float, int], rows: int
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """First numbers of each table [N, D], and for each sparsity the mask of each table."""
        config, generator = self.config, torch.Generator().manual_seed(self.config.seed)
        tables: list[ThresholdTable] = []

        def make_table(std: float) -> nn.Module:
            tables.append(
                ThresholdTable([rows], config.width, config.granularity, config.s_init, std)
            )
            return NodeTable(tables[-1])

        fitting = trainer.start(make_table, generator)
        first = [t.table.weight.detach().clone().view(rows, config.width) for t in tables]
        total = trainer.steps_of(config.max_epochs)
        fitting.optimizer = self._make_optimizer(fitting, tables, total)
        masks: list[list[Tensor]] = []
        waiting, left = list(allowed.values()), math.inf
        for _ in range(total):
            trainer.advance(fitting, 1, generator)
            now = [table.mask() for table in tables]
            left = sum(int(mask.sum()) for mask in now)
            while waiting and left <= len(tables) * waiting[0]:
                masks.append(now)
                del waiting[0]
            if not waiting:
                return first, masks
        share = left / (len(tables) * rows * config.width)
        raise RuntimeError(
            f"PEP: {share:.3f} of the numbers are left after {config.max_epochs} epochs, "
            f"sparsities {config.sparsities}; lower lr, or raise s_lr or max_epochs"
        )

    def _make_optimizer(
        self, fitting: Fitting, tables: list[ThresholdTable], steps: int
    ) -> torch.optim.Optimizer:
        """Adam, with a group for the thresholds; the rates stay as they are."""
        config, logits = self.config, [table.s for table in tables]
        own = {id(s) for s in logits}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in fitting.model.parameters() if id(p) not in own]},
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
