"""NIS: a controller learns by trial how many numbers the frequent and the rare rows get.

M. Joglekar et al., *Neural Input Search for Large Scale Recommendation Models*, KDD 2020 (arXiv
1907.04471), multi-size. The rows of a field are ordered by how often they occur and cut into 5
blocks, the columns into 4. For each field f and column block c the controller draws how many row
blocks keep the columns, r_fc ~ softmax(policy_fc) over 0..5, most frequent first; a row of block i
then has the numbers of the column blocks with r_fc > i, projected to D by the field's matrix.

    reward = AUC on a validation batch - weight max(0, numbers / budget - 1)
    policy gradient: (reward - b) grad log p(r),   b <- decay b + (1 - decay) reward

After a warm-up in which r is uniform, one step of the policy and f of the model alternate, each on
sizes drawn anew; the plan is the most likely draw, trained from new weights. The authors' text
names blocks, budget and policy gradient; these steps fill in the rest.

DIFFERS: of a field's column blocks, those that more row blocks keep come first, so that a row's
    numbers are a prefix. The blocks are alike before the training: nothing is lost.
DIFFERS: a grid per field instead of one for a single vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varemb.nn import VarEmbedding
from varemb.ops import field_rows
from varemb.plan import SizePlan
from varemb.search.base import FieldData, MakeModel, SearchResult
from varemb.search.epochs import (
    Epochs,
    count_rows,
    first_rows,
    gradient_step,
    logloss,
    open_checkpoint,
)
from varemb.search.settings import check_positive, check_rates, check_share, option
from varemb.search.training import evaluate, make_adam, seeded_from


@dataclass(frozen=True)
class NISConfig:
    """Settings of the search."""

    width: int = option(32, "D: numbers of a whole row")
    row_shares: tuple[float, ...] = option(
        (0.01, 0.05, 0.2, 0.5, 1.0), "where row blocks end, in shares of a field's rows"
    )
    column_blocks: int = option(4, "column blocks")
    budget: float = option(0.5, "share of the full width's numbers that costs nothing")
    cost_weight: float = option(1.0, "price of twice the budget, in AUC")
    f: int = option(1, "training batches per step of the policy")
    policy_lr: float = option(0.05, "learning rate of the policy")
    decay: float = option(0.9, "of the moving average b of rewards")
    warmup_epochs: int = option(1, "epochs with uniform draws before the search")
    search_epochs: int = option(4, "epochs of the search")
    batch_size: int = option(2000, "rows of a batch")
    lr: float = option(0.001, "learning rate of everything else")
    weight_decay: float = option(1e-3, "L2 of the tables")
    init_std: float = option(0.01, "of the table's first numbers")
    seed: int = option(0, "of all randomness")


@dataclass(frozen=True)
class _Batch:
    """Some rows of the data."""

    ids: Tensor
    labels: Tensor
    field_names: tuple[str, ...]
    cardinalities: tuple[int, ...]


class BlockTable(nn.Module):
    """A table whose rows are cut by the sizes of their blocks. [B, F] -> [B, F, D]

    Args:
        counts: how often each row of each field occurs. F tensors [V_f]
        config: the search's settings.

    Attributes:
        block: row block of each row, 0 the most frequent. [R]
        sizes: numbers of each field's row blocks, set by the search. [F, row blocks]
        policy: logits of r. Parameter [F, column blocks, row blocks + 1]
    """

    block: Tensor
    block_rows: Tensor
    starts: Tensor

    def __init__(self, counts: Sequence[Tensor], config: NISConfig) -> None:
        super().__init__()
        cardinalities, width = [len(count) for count in counts], config.width
        fields, blocks = len(counts), len(config.row_shares)
        self.table = VarEmbedding.for_fields(cardinalities, width)
        nn.init.normal_(self.table.weight, std=config.init_std)
        self.matrix = nn.Parameter((torch.rand(fields, width, width) * 2 - 1) / math.sqrt(width))
        self.policy = nn.Parameter(torch.zeros(fields, config.column_blocks, blocks + 1))
        block = [cut_rows(count, config.row_shares) for count in counts]
        rows = torch.stack([torch.bincount(part, minlength=blocks) for part in block])
        self.register_buffer("block", torch.cat(block), persistent=False)
        self.register_buffer("block_rows", rows, persistent=False)  # [F, row blocks]
        self.register_buffer("starts", first_rows(cardinalities), persistent=False)
        self.sizes = torch.full((fields, blocks), width)

    def forward(self, ids: Tensor) -> Tensor:  # [B, F] -> [B, F, D]
        block = self.block[field_rows(ids, self.starts)]
        limit = self.sizes[torch.arange(ids.shape[1]), block].int()  # [B, F]
        return torch.einsum("bfd,fde->bfe", self.table(ids, limit=limit), self.matrix)

    def draw(self, *, is_uniform: bool) -> Tensor:
        """r, and sets the sizes it means. [F, column blocks]"""
        logits = torch.zeros_like(self.policy) if is_uniform else self.policy.detach()
        drawn = torch.distributions.Categorical(logits=logits).sample()
        self.sizes = find_sizes(drawn, self.table.embedding_dim, self.policy.shape[2] - 1)
        return drawn

    def numbers(self) -> int:
        """Numbers that the sizes take."""
        return int((self.sizes * self.block_rows).sum())


def cut_rows(counts: Tensor, shares: Sequence[float]) -> Tensor:
    """Row block of each row: the most frequent share is block 0; ties go to the earlier. [V]

    Example:
        >>> cut_rows(torch.tensor([1, 9, 3, 3]), (0.25, 0.5, 1.0)).tolist()
        [2, 0, 1, 2]
    """
    ends = torch.tensor([math.ceil(share * len(counts)) for share in shares])
    order = torch.argsort(counts, descending=True, stable=True)
    block = torch.empty_like(order)
    block[order] = torch.searchsorted(ends, torch.arange(len(counts)), right=True)
    return block


def find_sizes(drawn: Tensor, width: int, blocks: int) -> Tensor:
    """Numbers of each row block when column block c is kept by the first r_c. [F, blocks]

    Args:
        drawn: r. [F, column blocks]
        width: D; its columns are shared out evenly, the first blocks take the rest.
        blocks: row blocks.

    Example:
        >>> find_sizes(torch.tensor([[1, 3, 0]]), 8, 3).tolist()
        [[6, 3, 3]]
    """
    columns = drawn.shape[1]
    widths = torch.tensor([width // columns + (c < width % columns) for c in range(columns)])
    kept = drawn.sort(1, descending=True)[0][:, None] > torch.arange(blocks)[:, None]
    return (kept * widths).sum(2)


class NIS:
    """NIS (M. Joglekar et al., KDD 2020): a controller learns by trial what numbers rows keep.

    Args:
        config: its settings.

    Example:
        >>> NIS(NISConfig(budget=0.25)).config.column_blocks
        4
    """

    def __init__(self, config: NISConfig) -> None:
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
        """One dim per row, the same in a row block of a field.

        Args:
            make_model: builds a model around an embedding [B, F] -> [B, F, D].
            train: rows for everything but the policy; their counts order the rows.
            valid: rows for the rewards; they also score the result.
            progress: show a bar per epoch.
            checkpoint_dir: folder of nis.safetensors, written after every epoch.
            resume: continue from it; the result is the one of an uninterrupted run.

        Returns:
            The plan, and the AUC of the shared table cut to it. Exceeding the budget has a price
            only: the plan may take more numbers.

        Raises:
            ValueError: settings that do not fit, or a damaged or foreign checkpoint.
            FloatingPointError: the loss is not finite.

        Deterministic: yes, from config.seed.
        """
        check_nis(self.config)
        config, generator = self.config, torch.Generator().manual_seed(self.config.seed)
        with seeded_from(generator):
            table = BlockTable(count_rows(train), config)
            model = make_model(table)
        adam = make_adam(model, config.lr, config.weight_decay)
        for group in adam.param_groups:
            group["params"] = [p for p in group["params"] if p is not table.policy]
        run = Epochs(model, [adam, torch.optim.Adam([table.policy], config.policy_lr)], generator)

        def run_epoch(epoch: int) -> dict[str, Any]:
            return _search(run, table, config, train, valid, epoch, progress=progress)

        file = open_checkpoint(checkpoint_dir, "nis", config, train, valid)
        run.run(run_epoch, config.warmup_epochs + config.search_epochs, file, resume)
        _choose_best(table)
        blocks = table.block.split(list(train.cardinalities))
        dims = zip(train.field_names, table.sizes, blocks, strict=True)
        plan = SizePlan({name: sizes[block] for name, sizes, block in dims}, config.width)
        return SearchResult(plan, run.history[-1]["valid"]["auc"], run.history, run.seconds)


def _search(
    run: Epochs,
    table: BlockTable,
    config: NISConfig,
    train: FieldData,
    valid: FieldData,
    epoch: int,
    *,
    progress: bool,
) -> dict[str, Any]:
    """One epoch of the model, and one step of the policy per f of its batches."""
    is_search = epoch > config.warmup_epochs
    losses: list[float] = []
    rewards: list[float] = []
    run.model.train()
    text = f"{'search' if is_search else 'warm-up'}, epoch {epoch}"
    for rows in run.batches(train, config.batch_size, text, progress=progress):
        if is_search and len(losses) % config.f == 0:
            reward = _update_policy(run, table, config, valid)
            if reward is not None:
                rewards.append(reward)
        table.draw(is_uniform=not is_search)
        losses.append(gradient_step(logloss(run.model, train, rows), run.optimizers[:1]))
    if is_search:
        _choose_best(table)
    else:
        table.sizes = torch.full_like(table.sizes, config.width)
    return {
        "phase": "search" if is_search else "warmup",
        "epoch": epoch,
        "train_loss": sum(losses) / len(losses),
        "reward": sum(rewards) / len(rewards) if rewards else None,
        "valid": evaluate(run.model, valid),
        "params": table.numbers(),
        "sizes": dict(zip(train.field_names, table.sizes.tolist(), strict=True)),
    }


def _update_policy(
    run: Epochs, table: BlockTable, config: NISConfig, valid: FieldData
) -> float | None:
    """One draw, its reward on a validation batch, and a step up the policy gradient.

    Nothing is drawn for a batch of one class, which has no AUC.
    """
    rows = run.next_rows(valid, config.batch_size)
    if not 0 < float(valid.labels[rows].sum()) < len(rows):
        return None
    drawn = table.draw(is_uniform=False)
    batch = _Batch(valid.ids[rows], valid.labels[rows], valid.field_names, valid.cardinalities)
    allowed = config.budget * table.table.weight.numel()
    cost = max(0.0, table.numbers() / allowed - 1)
    reward = evaluate(run.model, batch)["auc"] - config.cost_weight * cost
    average = run.kept.setdefault("average", reward)
    log_p = torch.distributions.Categorical(logits=table.policy).log_prob(drawn).sum()
    gradient_step(-(reward - average) * log_p, run.optimizers[1:])
    run.kept["average"] = config.decay * average + (1 - config.decay) * reward
    return reward


def _choose_best(table: BlockTable) -> None:
    """Sets the sizes of the most likely draw."""
    drawn = table.policy.detach().argmax(2)
    table.sizes = find_sizes(drawn, table.table.embedding_dim, table.policy.shape[2] - 1)


def check_nis(config: NISConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_positive("NIS", config, "width", "column_blocks", "f", "search_epochs", "batch_size")
    check_share("NIS", config, "budget")
    check_rates("NIS", config)
    shares = config.row_shares
    rises = all(a < b for a, b in itertools.pairwise((0.0, *shares)))
    if not shares or not rises or shares[-1] != 1:
        raise ValueError(f"NIS: row_shares must increase from above 0 to 1, got {shares}")
    if config.column_blocks > config.width:
        raise ValueError(
            f"NIS: column_blocks must be at most the width {config.width}, "
            f"got {config.column_blocks}"
        )
