"""`lookup_linear`: rows of different dims, each times the matrix of its group."""

from __future__ import annotations

import torch
from torch import Tensor

from varemb.ops.reference.lookup import lookup
from varemb.ops.reference.rows import check_indices, locate, wide_dtype


def lookup_linear(
    values: Tensor,
    index: Tensor,
    indices: Tensor,
    groups: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_rows: int,
    width: int,
    granule: int,
) -> Tensor:
    """out[l] = row @ weight[first : first + d] + bias[group] of the row's field and dim. [L, O]"""
    check_indices("lookup_linear", indices, num_rows, index, values.numel())
    rows = lookup(values, index, indices, None, num_rows, width, granule)
    matrices, inside, group = _matrices(index, indices, groups, num_rows, width, granule)
    wide = wide_dtype(values.dtype)
    taken = _taken(weight.to(wide), matrices, inside)
    out = torch.bmm(rows.to(wide)[:, None], taken)[:, 0] + bias.to(wide)[group]
    return out.to(values.dtype)


def _matrices(
    index: Tensor, indices: Tensor, groups: Tensor, num_rows: int, width: int, granule: int
) -> tuple[Tensor, Tensor, Tensor]:  # [L, D], [L, D] bool, [L]
    """The matrix row of each column of each lookup, whether it exists, and the bias row."""
    _, dim = locate(index, indices, num_rows, width, granule)
    field = torch.arange(indices.numel(), device=indices.device) % groups.shape[0]
    first, group = groups[field, dim].unbind(1)
    if bool((group < 0).any()):
        at = int((group < 0).nonzero()[0, 0])
        raise ValueError(
            f"lookup_linear: no matrix for rows of dim {int(dim[at])} in field {int(field[at])}"
        )
    columns = torch.arange(width, device=indices.device)
    inside = columns < dim[:, None]
    return torch.where(inside, first[:, None] + columns, 0), inside, group


def _taken(weight: Tensor, matrices: Tensor, inside: Tensor) -> Tensor:  # [L, D, O]
    """The matrix row of each column of each lookup; zeros where it has none."""
    if not weight.shape[0]:  # all rows have a dim of 0
        return weight.new_zeros(*matrices.shape, weight.shape[1])
    return torch.where(inside[:, :, None], weight[matrices], 0.0)


def lookup_linear_backward(
    grad: Tensor,
    values: Tensor,
    index: Tensor,
    indices: Tensor,
    groups: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_rows: int,
    width: int,
    granule: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the looked-up rows [L, D], of weight [S, O] and of bias [C, O]."""
    rows = lookup(values, index, indices, None, num_rows, width, granule)
    matrices, inside, group = _matrices(index, indices, groups, num_rows, width, granule)
    wide = wide_dtype(values.dtype)
    grad, rows = grad.to(wide), rows.to(wide)
    taken = _taken(weight.to(wide), matrices, inside)
    row_grad = torch.bmm(taken, grad[:, :, None])[:, :, 0]
    outer = rows[:, :, None] * grad[:, None]  # [L, D, O]
    weight_grad = torch.zeros_like(weight, dtype=wide).index_add(0, matrices[inside], outer[inside])
    bias_grad = torch.zeros_like(bias, dtype=wide).index_add(0, group, grad)
    return row_grad.to(values.dtype), weight_grad.to(values.dtype), bias_grad.to(values.dtype)
