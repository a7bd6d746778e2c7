# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803
"""Mean and covariance of each field's looked-up rows: what AutoDim's soft mixture normalises with.

The mixture (AutoDim Eq. 1, 2, 7) is linear in a row once these are known, one matrix per field, so
it is `lookup_linear` with a group per field; so is the gradient of the moments themselves. No
candidate's output, and not even the looked-up rows, are ever stored.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from varemb.ops.triton.arithmetic import widen
from varemb.ops.triton.checks import check, check_indices, check_rows, check_vector
from varemb.ops.triton.launch import OPTIONS, guard, wide_dtype, wide_type
from varemb.ops.triton.lookup_linear import lookup_linear
from varemb.ops.triton.matrices import BLOCK_K, block_of
from varemb.ops.triton.rows import look_up, places


@triton.jit
def moments_kernel(
    values_ptr,  # [E]
    index_ptr,  # [blocks, 4] or [words]
    indices_ptr,  # [B * F]
    center_ptr,  # [F, D], or None for the mean
    out_ptr,  # [F, D] for the mean, [F, D, D] for the covariance
    batch,
    fields,
    num_rows,
    width,
    granule,
    chunks,
    numbers,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # A program takes a field and BLOCK_D columns, of the covariance BLOCK_D x BLOCK_D numbers, and
    # adds the field's rows in their order, ROWS at a time. Deterministic.
    field = tl.program_id(0).to(tl.int64)
    left = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    right = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D, BLOCK_D], WIDE)
    sums = tl.zeros([BLOCK_D], WIDE)
    for first in range(0, batch, ROWS):
        sample = first + tl.arange(0, ROWS).to(tl.int64)
        mask = sample < batch
        _, offset, dim, is_row = look_up(
            index_ptr, indices_ptr, None, sample * fields + field, mask, num_rows, width, granule,
            chunks, numbers, 0,
        )  # fmt: skip
        tl.device_assert(is_row | (sample >= batch), "mixture: an index is outside the table")
        inside = is_row[:, None] & (left[None, :] < dim[:, None])
        rows = tl.load(values_ptr + offset[:, None] + left[None, :], mask=inside, other=0.0)
        rows = widen(rows, WIDE)
        if center_ptr is None:
            sums += tl.sum(rows, 0)
        else:
            inside = is_row[:, None] & (right[None, :] < dim[:, None])
            others = tl.load(values_ptr + offset[:, None] + right[None, :], mask=inside, other=0.0)
            at = center_ptr + field * width
            rows -= tl.load(at + left, mask=left < width, other=0.0)[None, :]
            others = widen(others, WIDE)
            others -= tl.load(at + right, mask=right < width, other=0.0)[None, :]
            rows = tl.where(mask[:, None], rows, 0.0)
            total = tl.dot(
                tl.trans(rows), others, total, input_precision="ieee", out_dtype=WIDE
            )  # fmt: skip
    if center_ptr is None:
        tl.store(out_ptr + field * width + left, sums / batch, mask=left < width)
    else:
        to = (field * width + left)[:, None] * width + right[None, :]
        inside = (left < width)[:, None] & (right < width)[None, :]
        tl.store(out_ptr + to, total / batch, mask=inside)


def lookup_moments(
    values: Tensor,
    index: Tensor,
    indices: Tensor,
    fields: int,
    num_rows: int,
    width: int,
    granule: int,
) -> tuple[Tensor, Tensor]:
    """Mean and covariance over the batch of each field's zero-padded rows.

    Args:
        values: the numbers of all rows. [E]
        index: packed [blocks, 4] or paged [words] index, int64.
        indices: rows of B samples, F fields each; repeats count. [B * F], int32 or int64.
        fields: F.
        num_rows, width, granule: as in `Rows`.

    Returns:
        [F, D] and [F, D, D], divided by B; float32, or float64 for float64 values.

    Raises:
        ValueError, IndexError: the tensors do not fit together, or an index is outside the table
            (on a GPU a device assert).

    Deterministic: yes.
    """
    op = "mixture"
    check_vector(op, "values", values)
    check_rows(op, index, num_rows, width, granule)
    check_indices(op, indices, num_rows, index, values.shape[0])
    check(
        fields > 0 and indices.shape[0] > 0 and indices.shape[0] % fields == 0,
        f"{op}: indices must be those of at least one sample of {fields} fields, "
        f"got {indices.shape[0]}",
    )
    check(width > 0, f"{op}: width must be at least 1")
    wide = wide_dtype(values.dtype)
    mean = torch.empty((fields, width), dtype=wide, device=values.device)
    covariance = torch.empty((fields, width, width), dtype=wide, device=values.device)
    block = block_of(width)
    blocks = triton.cdiv(width, block)
    # Centred before they are multiplied: a mean far from zero would otherwise cancel digits.
    passes = ((None, mean, (fields, blocks, 1)), (mean, covariance, (fields, blocks, blocks)))
    with guard(values):
        for center, out, grid in passes:
            moments_kernel[grid](
                **places(index, num_rows, width, granule, values.shape[0]),
                values_ptr=values,
                indices_ptr=indices,
                center_ptr=center,
                out_ptr=out,
                batch=indices.shape[0] // fields,
                fields=fields,
                WIDE=wide_type(values.dtype),
                ROWS=4 * BLOCK_K,
                BLOCK_D=block,
                **OPTIONS,
            )
    return mean, covariance


def field_groups(fields: int, width: int, device: torch.device) -> Tensor:
    """`groups` of lookup_linear with one matrix [D, D] per field; shorter rows use its first rows.

    [F, D + 1, 2] int64
    """
    field = torch.arange(fields, device=device)[:, None].expand(fields, width + 1)
    return torch.stack([field * width, field], 2).contiguous()


def lookup_moments_backward(
    mean_grad: Tensor,
    covariance_grad: Tensor,
    mean: Tensor,
    values: Tensor,
    index: Tensor,
    indices: Tensor,
    num_rows: int,
    width: int,
    granule: int,
) -> Tensor:
    """The gradient of the looked-up rows: ((e - mean) (C + C^T) + m) / B of the field's C and m.

    Args:
        mean_grad, covariance_grad: gradients m and C of the moments. [F, D], [F, D, D]
        mean: as `lookup_moments` returned it. [F, D]
        values, index, indices, num_rows, width, granule: as in `lookup_moments`.

    Returns:
        [B * F, D], dtype of values; columns beyond a row's dim mean nothing.

    Raises:
        ValueError, IndexError: as `lookup_moments`.

    Deterministic: yes.
    """
    fields = mean.shape[0]
    batch = indices.shape[0] // fields
    matrices = (covariance_grad + covariance_grad.mT) / batch  # [F, D, D]
    shift = mean_grad / batch - torch.bmm(mean[:, None], matrices)[:, 0]
    return lookup_linear(
        values,
        index,
        indices,
        field_groups(fields, width, values.device),
        matrices.reshape(fields * width, width).to(values.dtype),
        shift.to(values.dtype),
        num_rows,
        width,
        granule,
    )
