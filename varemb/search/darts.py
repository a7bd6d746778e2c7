"""DARTS: each row chooses its width softly, by logits of its own.

H. Liu et al., *DARTS: Differentiable Architecture Search*, ICLR 2019 (arXiv 1806.09055), as a
search for embedding sizes the way H. Liu et al., *Automated Embedding Size Search in Deep
Recommender Systems*, SIGIR 2020 (ESAPN), compare with it: every id has a logit per candidate,
p = softmax(theta), equal at the start; the mixture and the first-order alternation are those of
`search/mixture.py`.

DIFFERS: logits learn from validation batches, as AutoDim's do, not from the batch before: there is
    no stream here.
DIFFERS: their learning rate is 100 times the 0.0001 of the comparison, whose streams are longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from varemb.search.base import FieldData, MakeModel, SearchResult
from varemb.search.mixture import MixtureConfig, Selector, check_mixture, fit_mixture
from varemb.search.settings import check_rates


@dataclass(frozen=True)
class DARTSConfig(MixtureConfig):
    """Settings of the search."""


class LogitSelector(Selector):
    """p = softmax of the row's own logits.

    Args:
        rows: of all fields, R.
        num: candidates N.

    Example:
        >>> LogitSelector(3, 2)(torch.tensor([[0, 2]])).tolist()
        [[[0.5, 0.5], [0.5, 0.5]]]
    """

    def __init__(self, rows: int, num: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full((rows, num), 1 / num))

    def forward(self, rows: Tensor) -> Tensor:  # [B, F] -> [B, F, N]
        return torch.softmax(nn.functional.embedding(rows, self.theta), 2)

    def weights(self) -> dict[str, Tensor]:
        return {"theta": self.theta.detach()}

    def index(self) -> dict[str, Tensor]:
        return {}


class DARTS:
    """DARTS (H. Liu et al., ICLR 2019) for embedding sizes: rows mix widths by logits of their own.

    Args:
        config: its settings.

    Example:
        >>> DARTS(DARTSConfig(candidates=(2, 4))).config.f
        10
    """

    def __init__(self, config: DARTSConfig) -> None:
        self.config = config

    def fit(
        self,
        make_model: MakeModel,
        train: FieldData,
        valid: FieldData,
        *,
        progress: bool = True,
        checkpoint_dir: Path | None = None,
        resume: bool = False,
    ) -> SearchResult:
        """A trained model whose rows mix the candidates by their own logits.

        Args:
            make_model: builds a model around an embedding [B, F] -> [B, F, D].
            train: rows for everything but the logits.
            valid: rows for the logits; they also choose the epoch.
            progress: show a bar per epoch.
            checkpoint_dir: folder of darts.safetensors, written after every epoch.
            resume: continue from it; the result is the one of an uninterrupted run.

        Returns:
            `trained`, and the table inside it.

        Raises:
            ValueError: settings that do not fit, or a damaged or foreign checkpoint.
            FloatingPointError: the loss is not finite.

        Deterministic: yes, from config.seed.
        """
        check_darts(self.config)
        selector = LogitSelector(sum(train.cardinalities), len(self.config.candidates))
        return fit_mixture(
            "DARTS", self.config, selector, make_model, train, valid, progress=progress,
            checkpoint_dir=checkpoint_dir, resume=resume,
        )  # fmt: skip


def check_darts(config: DARTSConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_mixture("DARTS", config)
    check_rates("DARTS", config)
