"""DPQ-VQ: rows are stored as codes of centroids that are learnt with the model.

T. Chen et al., *Differentiable Product Quantization for End-to-End Embedding Compression*, ICML
2020 (arXiv 1908.09756), Section 3.2 (VQ). A row of D numbers is cut into G groups, each stored as
the log2 K bits that name its centroid; the table's equations are those of `search/quantized.py`.
Nothing is searched: codes and centroids are learnt in the one training.

A table of V rows is served from V G log2 K bits and K D centroid numbers. Training keeps the full
V D queries and their optimizer state, and centroids and codes beside them: it takes no less memory
than the full table.

DIFFERS: each field has a codebook of its own, of no more centroids than the field has rows; the
    fields are the paper's tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from varemb.search.base import FieldData, MakeModel, SearchResult
from varemb.search.quantized import QuantizedTable
from varemb.search.settings import check_exact, check_positive, check_rates, option


@dataclass(frozen=True)
class DPQConfig:
    """Settings of the codes; the symbols are the paper's."""

    width: int = option(32, "D: numbers of a row as the model sees it")
    groups: int = option(8, "G: codes of a row; divides D")
    centroids: int = option(32, "K: centroids that a code tells apart")
    beta: float = option(0.25, "beta: weight of the term that ties rows to their centroids")
    init_std: float = option(0.01, "of the first queries and centroids")
    seed: int = option(0, "nothing is random before the training")


class DPQ:
    """DPQ-VQ (T. Chen et al., ICML 2020): rows are codes of centroids, learnt with the model.

    Args:
        config: its settings.

    Example:
        >>> DPQ(DPQConfig(width=16)).config.centroids
        32
    """

    def __init__(self, config: DPQConfig) -> None:
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
        """The table at once; the arguments are those of every search.

        Returns:
            `make_table`, with a score of NaN: no model was trained.

        Raises:
            ValueError: settings that do not fit.
        """
        config = self.config
        check_dpq(config)

        def make_table() -> nn.Module:
            return QuantizedTable(
                train.cardinalities, config.width, config.groups, config.centroids, config.beta,
                config.init_std,
            )  # fmt: skip

        return learnt_in_training(make_table)


def check_dpq(config: DPQConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_positive("DPQ", config, "width", "groups")
    check_codes("DPQ", config.width, config.groups, config.centroids)
    check_rates("DPQ", config)


def check_codes(method: str, width: int, groups: int, centroids: int) -> None:
    """Raises ValueError unless the groups divide the width and a code takes 1 to 16 bits."""
    check_exact(method, width)
    if width % groups:
        raise ValueError(f"{method}: groups must divide the width {width}, got {groups}")
    if not 2 <= centroids <= 65536:
        raise ValueError(f"{method}: centroids must be in 2..65536, got {centroids}")


def learnt_in_training(make_table: Callable[[], nn.Module]) -> SearchResult:
    """The result of a method that searches nothing before the training."""
    return SearchResult(None, math.nan, [], 0.0, make_table=make_table)
