"""One table for users and items whose bytes never exceed a budget, not even while rows move.

Its buffer has exactly the budget's numbers; rows are resized in place, those that shrink before
those that grow. Users and items get rows as they come, so that one budget serves both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varemb.budget import Ints
from varemb.nn import VarEmbedding
from varemb.ops import lookup_bag
from varemb.plan import SizePlan
from varemb.storage import PackedStorage


def make_table(
    dims: Ints, width: int, budget: int, std: float, generator: torch.Generator
) -> VarEmbedding:
    """A table with a buffer of `budget` numbers; rows are N(0, std)."""
    table = VarEmbedding(len(dims), width, dims=dims, reserve_numbers=budget)
    torch.nn.init.normal_(table.weight, std=std, generator=generator)
    check_budget(table, budget)
    return table


def move_table(
    table: VarEmbedding,
    dims: Ints,
    budget: int,
    generator: torch.Generator,
    *,
    grown_std: float,
    new_std: float,
) -> None:
    """Gives the rows new dims, in place, and adds rows behind them.

    A budget that has grown gets a larger buffer; on the CPU the old one is given back while it is
    copied, on a GPU both are there for that time.

    Args:
        table: N rows; each keeps its first min(old, new) numbers.
        dims: of all rows, the new ones last. [N + n]
        budget: numbers that the table may hold.
        generator: draws the new numbers.
        grown_std: deviation of the numbers that rows grow by.
        new_std: deviation of new rows.
    """
    rows, storage = table.num_embeddings, table.storage
    assert isinstance(storage, PackedStorage)
    storage.reserve_numbers = budget
    old = torch.from_numpy(dims[:rows])
    table.resize(torch.arange(rows), old, "normal", std=grown_std, generator=generator)
    check_budget(table, budget)
    if len(dims) > rows:
        new = torch.from_numpy(dims[rows:])
        table.extend(len(new), new, "normal", std=new_std, generator=generator)
    check_budget(table, budget)


def check_budget(table: VarEmbedding, budget: int) -> None:
    """Asserts that neither the buffer nor the rows exceed the budget, in bytes."""
    weight = table.weight
    most = budget * weight.element_size()
    held = weight.untyped_storage().nbytes()
    live = table.live_numbers * weight.element_size()
    assert live <= most, f"rows hold {live} bytes, the budget is {most}"
    assert held <= most, f"the buffer holds {held} bytes, the budget is {most}"


def mean_rows(table: VarEmbedding, groups: tuple[Ints, Ints]) -> Tensor:  # [2, D]
    """Mean of the zero-padded rows of two groups of rows."""
    rows = torch.from_numpy(np.concatenate(groups))
    return lookup_bag(
        table.weight.detach(), table.storage.rows, rows, torch.tensor([0, len(groups[0])])
    )


def table_state(table: VarEmbedding) -> dict[str, Any]:
    """Dims and numbers, for a checkpoint."""
    return {"dims": table.dims, "weight": table.weight.detach()}


def table_from(state: Mapping[str, Any], width: int, budget: int) -> VarEmbedding:
    """What `table_state` was made of."""
    table = VarEmbedding(len(state["dims"]), width, dims=state["dims"], reserve_numbers=budget)
    with torch.no_grad():
        table.weight.copy_(state["weight"])
    return table


def make_plan(table: VarEmbedding, nodes: tuple[Ints, Ints]) -> SizePlan:
    """Dims of users and of items."""
    dims = table.dims.numpy()
    return SizePlan({"user": dims[nodes[0]], "item": dims[nodes[1]]}, table.embedding_dim)
