"""MDE: dims by popularity, not learnt.

A. Ginart et al., *Mixed Dimension Embeddings with Application to Memory-Efficient Recommendation
Systems*, ISIT 2021 (arXiv 1909.11810), and its code in DLRM. The table is cut into blocks: the
fields, or bins of popularity inside each field. A block has n_i rows and k_i lookups per example:

    d_i = round(max(1, lambda (n_i / k_i)^-alpha))              the power law of its Algorithm 1

optionally rounded to a power of two, cut at the width D, and brought to D by a matrix without bias;
rows of D numbers are taken as they are. lambda gives the block with the smallest n_i / k_i the full
width, or is chosen for a budget of B numbers:

    lambda = D min_i (n_i / k_i)^alpha,   or   lambda = B / sum_i n_i (n_i / k_i)^-alpha

Every setting of the grid is trained fully and the best validation AUC decides: what AutoDim's
authors did with 16 settings that they do not list.

DIFFERS: for a budget the paper's sum is over (n_i / k_i)^(1 - alpha), which is the same for k_i = 1
    only; with bins it would not count stored numbers.
DIFFERS: the paper does not say how its bins are cut; here each has about the same number of
    lookups, so the first is a few popular rows and the last is the long tail.
DIFFERS: blocks of a field whose dims are rounded to the same one share a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from varemb.nn import VarEmbedding
from varemb.nn.unify import LinearUnify
from varemb.plan import SizePlan
from varemb.search.base import FieldData, MakeModel, MakeTable, SearchResult
from varemb.search.settings import check_choice, check_positive, option
from varemb.search.training import TrainConfig
from varemb.search.trials import train_trials
from varemb.storage import LaidOut

Ints = npt.NDArray[np.int64]

_ROUNDINGS = {"yes": [True], "no": [False], "both": [False, True]}


@dataclass(frozen=True)
class MdeConfig:
    """Settings of the rule; every combination of alphas, powers of two and bins is trained."""

    width: int = option(32, "D, the width of the most popular block")
    alphas: tuple[float, ...] = option((0.1, 0.2, 0.3, 0.4), "alpha, the temperature")
    bins: tuple[int, ...] = option((1, 8), "popularity bins in a field; 1 is a dim per field")
    power_of_two: str = option("both", "round dims to a power of two: yes, no or both")
    numbers: int = option(0, "B, the budget; 0 gives the smallest block the width")
    training: TrainConfig = field(
        default_factory=TrainConfig, metadata={"help": "how each setting is trained"}
    )
    seed: int = option(0, "nothing is random but the training")


def mde_dims(
    rows: Sequence[int],
    lookups: Sequence[float],
    alpha: float,
    width: int,
    *,
    numbers: int = 0,
    power_of_two: bool = False,
) -> list[int]:
    """d_i of blocks with n_i rows and k_i lookups per example.

    Args:
        rows: n_i, at least 1.
        lookups: k_i, above 0.
        alpha: 0 gives all blocks the same dim.
        width: D.
        numbers: the budget B, met up to rounding and the limits 1 and D; 0 for none.
        power_of_two: round to the nearest, in the logarithm.

    Example:
        >>> mde_dims([1, 16, 256], [1, 1, 1], 0.5, 16)
        [16, 4, 1]
    """
    ratios = [n / k for n, k in zip(rows, lookups, strict=True)]
    if numbers:
        scale = numbers / sum(n * q**-alpha for n, q in zip(rows, ratios, strict=True))
    else:
        scale = width * min(ratios) ** alpha
    dims = [max(1.0, scale * ratio**-alpha) for ratio in ratios]
    if power_of_two:
        dims = [2.0 ** round(math.log2(dim)) for dim in dims]
    return [min(round(dim), width) for dim in dims]


def popularity_bins(counts: Ints, bins: int) -> list[Ints]:
    """Rows of a field by falling popularity, cut where each bin has about as many lookups.

    Args:
        counts: lookups of each row in the training rows. [N]
        bins: at most so many; none is empty.

    Example:
        >>> [rows.tolist() for rows in popularity_bins(np.array([1, 6, 2, 3]), 2)]
        [[1], [3, 2, 0]]
    """
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]  # lookups of more popular rows
    bin_of = before * bins // max(int(counts.sum()), 1)
    bin_of = np.minimum(bin_of, bins - 1)  # rows that were never looked up
    return [order[bin_of == number] for number in range(bins) if (bin_of == number).any()]


def mde_plan(
    data: FieldData, alpha: float, bins: int, width: int, *, numbers: int, power_of_two: bool
) -> SizePlan:
    """The rule's plan for the popularity in the rows of `data`; see `mde_dims`."""
    blocks: list[tuple[int, Ints, float]] = []  # field, its rows, lookups per example
    for number, rows in enumerate(data.cardinalities):
        counts = torch.bincount(data.ids[:, number].long(), minlength=rows).numpy()
        parts = popularity_bins(counts, bins) if bins > 1 else [np.arange(rows)]
        # A bin of rows that were never looked up counts as one lookup in all.
        blocks += [(number, part, max(int(counts[part].sum()), 1) / len(data.labels))
                   for part in parts]  # fmt: skip
    dims = mde_dims(
        [len(part) for _, part, _ in blocks], [lookups for _, _, lookups in blocks],
        alpha, width, numbers=numbers, power_of_two=power_of_two,
    )  # fmt: skip
    tables = [np.ones(rows, np.int64) for rows in data.cardinalities]
    for (number, part, _), dim in zip(blocks, dims, strict=True):
        tables[number][part] = dim
    return SizePlan(dict(zip(data.field_names, tables, strict=True)), width)


class Projection(LaidOut):
    """Matrices [d, D] without bias, Xavier at the start; rows of D numbers are left as they are.

    Takes the place of a table's `unify`.
    """

    groups: Tensor
    rows: Tensor
    identity: Tensor
    bias: Tensor

    def __init__(self, linear: LinearUnify) -> None:
        super().__init__()
        width = linear.weight.shape[1]
        matrices: list[Tensor] = []
        learnt: list[Tensor] = []  # their rows among all matrices' rows
        identity, first = torch.zeros_like(linear.weight.data), 0
        for _, size in linear.members:
            if size == width:
                identity[first : first + size].fill_diagonal_(1)
            elif size:
                matrices.append(nn.init.xavier_uniform_(torch.empty(size, width)))
                learnt.append(torch.arange(first, first + size))
            first += size
        self.weight = nn.Parameter(torch.cat(matrices) if matrices else torch.empty(0, width))
        rows = torch.cat(learnt) if learnt else torch.empty(0, dtype=torch.int64)
        bias, device = torch.zeros_like(linear.bias.data), self.weight.device
        for name, tensor in (("rows", rows), ("identity", identity), ("bias", bias),
                             ("groups", linear.groups)):  # fmt: skip
            self.keep(name, tensor, device)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """weight [S, D] and bias [C, D] of the groups, as a table asks for them."""
        return self.identity.index_copy(0, self.rows, self.weight), self.bias


def mde_table(plan: SizePlan, cardinalities: Sequence[int], init_std: float) -> VarEmbedding:
    """A table with the dims of a plan and MDE's projections, with new weights."""
    width = max(plan.widths.values())
    table = VarEmbedding.for_fields(cardinalities, width, plan, unify="linear")
    nn.init.normal_(table.weight, std=init_std)
    if isinstance(table.unify, LinearUnify):
        table.add_module("unify", Projection(table.unify))
    return table


class Mde:
    """MDE (A. Ginart et al., ISIT 2021): dims by popularity, its setting chosen on validation rows.

    Args:
        config: its settings.

    Example:
        >>> Mde(MdeConfig(alphas=(0.3,))).config.bins
        (1, 8)
    """

    def __init__(self, config: MdeConfig) -> None:
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
        """The best setting's plan; with a single setting nothing is trained here.

        Args: as of every search; each setting has a checkpoint of its own.

        Returns:
            The plan, and how to make its table; the score is the setting's validation AUC.

        Raises:
            ValueError: settings that do not fit, or a damaged or foreign checkpoint.

        Deterministic: yes, from config.training.seed.
        """
        config = self.config
        plans = make_plans(config, train)

        def table_of(plan: SizePlan) -> MakeTable:
            return lambda: mde_table(plan, train.cardinalities, config.training.init_std)

        if len(plans) == 1:
            return SearchResult(plans[0], math.nan, [], 0.0, make_table=table_of(plans[0]))
        trials = train_trials(
            "mde", make_model, [table_of(plan) for plan in plans], train, valid, config.training,
            progress=progress, checkpoint_dir=checkpoint_dir, resume=resume,
        )  # fmt: skip
        plan, score = plans[trials.best], trials.valid[trials.best]["auc"]
        return SearchResult(plan, score, trials.history, trials.seconds, make_table=table_of(plan))


def make_plans(config: MdeConfig, data: FieldData) -> list[SizePlan]:
    """The plans of all settings; equal ones once.

    Raises:
        ValueError: settings that do not fit.
    """
    check_mde(config)
    plans: list[SizePlan] = []
    for alpha in config.alphas:
        for rounding in _ROUNDINGS[config.power_of_two]:
            for bins in config.bins:
                plan = mde_plan(
                    data, alpha, bins, config.width,
                    numbers=config.numbers, power_of_two=rounding,
                )  # fmt: skip
                if plan not in plans:
                    plans.append(plan)
    return plans


def check_mde(config: MdeConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_positive("MDE", config, "width")
    check_choice("MDE", config, "power_of_two", _ROUNDINGS)
    if not config.alphas or not min(config.alphas) >= 0:
        raise ValueError(f"MDE: alphas must be at least 0, got {config.alphas}")
    if not config.bins or min(config.bins) < 1:
        raise ValueError(f"MDE: bins must be at least 1, got {config.bins}")
    if config.numbers < 0:
        raise ValueError(f"MDE: numbers must be at least 0, got {config.numbers}")
