"""AutoEmb: a controller chooses each row's width softly, by how often the row occurs.

X. Zhao et al., *AutoEmb: Automated Embedding Dimensionality Search in Streaming Recommendations*,
ICDM 2021 (arXiv 2002.11252). The weights of the candidates come from the row's frequency,

    p = softmax(W2 tanh(W1 freq[field, bucket] + b1) + b2),   bucket = floor(log2(1 + count))

and the controller learns from validation batches (Section 2.5); the mixture and the alternation are
those of `search/mixture.py`. Rows of one field and bucket share p, so that a trained table serves
it from one or two bytes a row and a weight per candidate, field and bucket.

DIFFERS: applied inside the fields of a click data set, as AutoDim's comparison does: the counts
    are those of the training rows and do not change, so the row's previous weights are no input.
DIFFERS: p is equal at the start, not all on the smallest width.
DIFFERS: no batch normalisation in the controller: it computes every bucket once, in no batch.
DIFFERS: the controller's learning rate is 10 times the paper's 0.0001, whose streams are longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from varemb.search.base import FieldData, MakeModel, SearchResult
from varemb.search.epochs import count_rows
from varemb.search.mixture import MixtureConfig, Selector, check_mixture, fit_mixture
from varemb.search.settings import check_positive, check_rates, option
from varemb.search.training import seeded_from


@dataclass(frozen=True)
class AutoEmbConfig(MixtureConfig):
    """Settings of the search."""

    selector_lr: float = option(0.001, "learning rate of the controller")
    hidden: int = option(512, "outputs of the controller's hidden layer")
    frequency_width: int = option(32, "numbers that stand for a field's bucket of counts")


class Controller(Selector):
    """p of a row from its field and how often it occurs.

    Args:
        counts: how often each row of each field occurs. F tensors [V_f]
        num: candidates N.
        hidden: outputs of the hidden layer.
        frequency_width: numbers of a bucket.

    Attributes:
        line: field and bucket of each row, in the smallest integers that hold it. [R]
    """

    line: Tensor

    def __init__(
        self, counts: Sequence[Tensor], num: int, hidden: int, frequency_width: int
    ) -> None:
        super().__init__()
        lines, first = [], 0
        for count in counts:
            # log2 in float64 is exact at the powers of two, where buckets begin.
            bucket = torch.log2(1 + count.double()).floor().long()
            lines.append(first + bucket)
            first += int(bucket.max()) + 1
        dtype = torch.uint8 if first <= 256 else torch.int16 if first <= 32768 else torch.int32
        self.register_buffer("line", torch.cat(lines).to(dtype))
        self.frequency = nn.Parameter(torch.randn(first, frequency_width))
        self.hidden = nn.Linear(frequency_width, hidden)
        self.out = nn.Linear(hidden, num)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def choices(self) -> Tensor:
        """p of every field and bucket. [lines, N]"""
        return torch.softmax(self.out(torch.tanh(self.hidden(self.frequency))), 1)

    def forward(self, rows: Tensor) -> Tensor:  # [B, F] -> [B, F, N]
        return nn.functional.embedding(self.line[rows].long(), self.choices())

    def weights(self) -> dict[str, Tensor]:
        return {"p": self.choices().detach()}

    def index(self) -> dict[str, Tensor]:
        return {"line": self.line}


class AutoEmb:
    """AutoEmb (X. Zhao et al., ICDM 2021): rows mix widths by how often they occur.

    Args:
        config: its settings.

    Example:
        >>> AutoEmb(AutoEmbConfig(candidates=(2, 4))).config.hidden
        512
    """

    def __init__(self, config: AutoEmbConfig) -> None:
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
        """A trained model whose rows mix the candidates by how often they occur.

        Args:
            make_model: builds a model around an embedding [B, F] -> [B, F, D].
            train: rows for everything but the controller; their counts are its input.
            valid: rows for the controller; they also choose the epoch.
            progress: show a bar per epoch.
            checkpoint_dir: folder of autoemb.safetensors, written after every epoch.
            resume: continue from it; the result is the one of an uninterrupted run.

        Returns:
            `trained`, and the table inside it.

        Raises:
            ValueError: settings that do not fit, or a damaged or foreign checkpoint.
            FloatingPointError: the loss is not finite.

        Deterministic: yes, from config.seed.
        """
        config = self.config
        check_autoemb(config)
        # Another stream of draws than the one of the table and the model.
        with seeded_from(torch.Generator().manual_seed(config.seed + 1)):
            controller = Controller(
                count_rows(train), len(config.candidates), config.hidden, config.frequency_width
            )
        return fit_mixture(
            "AutoEmb", config, controller, make_model, train, valid, progress=progress,
            checkpoint_dir=checkpoint_dir, resume=resume,
        )  # fmt: skip


def check_autoemb(config: AutoEmbConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_mixture("AutoEmb", config)
    check_positive("AutoEmb", config, "hidden", "frequency_width")
    check_rates("AutoEmb", config)
