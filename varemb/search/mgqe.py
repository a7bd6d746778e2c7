"""MGQE: DPQ in which rare rows may use fewer centroids.

W.-C. Kang et al., *Learning Multi-granular Quantized Embeddings for Large-Vocab Categorical
Features in Recommender Systems*, WWW 2020 (arXiv 2002.08530), Section 3.3, with shared centroids.
The rows of a field are ordered by how often they occur; the head may use all K centroids, the
others only the first of the same ones, so that their codes take fewer bits. The table's equations
are those of `search/quantized.py`; as with DPQ, training takes the memory of the full table.

A row's tier is a bit, and its place among the rows of its tier 4 bytes per 64 rows: both are
counted as index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from varemb.search.base import FieldData, MakeModel, SearchResult
from varemb.search.dpq import check_codes, learnt_in_training
from varemb.search.epochs import count_rows
from varemb.search.quantized import QuantizedTable
from varemb.search.settings import check_positive, check_rates, check_share, option


@dataclass(frozen=True)
class MGQEConfig:
    """Settings of the codes; the symbols are the paper's."""

    width: int = option(32, "D: numbers of a row as the model sees it")
    groups: int = option(4, "codes of a row; divides D")
    centroids: int = option(256, "K of the head: centroids that a frequent row may use")
    tail_centroids: int = option(64, "K of the tail: how many of them the other rows may use")
    head: float = option(0.1, "share of each field's rows that are the head")
    beta: float = option(0.25, "weight of the term that ties rows to their centroids")
    init_std: float = option(0.01, "of the first queries and centroids")
    seed: int = option(0, "nothing is random before the training")


def find_head(counts: list[Tensor], share: float) -> Tensor:
    """The most frequent rows of each field, at least one; ties go to the earlier. [N] bool

    Example:
        >>> find_head([torch.tensor([1, 5, 5, 0]), torch.tensor([2, 3])], 0.5).tolist()
        [False, True, True, False, False, True]
    """
    parts = []
    for field in counts:
        order = torch.argsort(field, descending=True, stable=True)
        part = torch.zeros(len(field), dtype=torch.bool)
        part[order[: math.ceil(share * len(field))]] = True
        parts.append(part)
    return torch.cat(parts)


class MGQE:
    """MGQE (W.-C. Kang et al., WWW 2020): DPQ in which rare rows may use fewer centroids.

    Args:
        config: its settings.

    Example:
        >>> MGQE(MGQEConfig(width=16)).config.tail_centroids
        64
    """

    def __init__(self, config: MGQEConfig) -> None:
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
        """The table at once; of the data, only the training rows' counts are read.

        Returns:
            `make_table`, with a score of NaN: no model was trained.

        Raises:
            ValueError: settings that do not fit.
        """
        config = self.config
        check_mgqe(config)
        head = find_head(count_rows(train), config.head)

        def make_table() -> nn.Module:
            return QuantizedTable(
                train.cardinalities, config.width, config.groups, config.centroids, config.beta,
                config.init_std, head, config.tail_centroids,
            )  # fmt: skip

        return learnt_in_training(make_table)


def check_mgqe(config: MGQEConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_positive("MGQE", config, "width", "groups")
    check_share("MGQE", config, "head")
    check_codes("MGQE", config.width, config.groups, config.centroids)
    if not 2 <= config.tail_centroids <= config.centroids:
        raise ValueError(
            f"MGQE: tail_centroids must be in 2..{config.centroids}, got {config.tail_centroids}"
        )
    check_rates("MGQE", config)
