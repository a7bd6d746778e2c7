"""AutoDim's soft mixture by moments and a matrix per field, against every candidate by itself."""

import pytest
import torch
from ops.cases import need_interpreter

from varemb.testing import assert_agree, make_table

need_interpreter()

from varemb.ops.triton import lookup_linear  # noqa: E402
from varemb.ops.triton.lookup_linear import lookup_linear_backward  # noqa: E402
from varemb.ops.triton.mixture import (  # noqa: E402
    field_groups,
    lookup_moments,
    lookup_moments_backward,
)

FIELDS, BATCH, EPS = 3, 50, 1e-5


class Mixture(torch.autograd.Function):
    """Looked-up rows to their moments, or times one matrix per field; nothing of size B stays."""

    @staticmethod
    def forward(ctx, values, matrices, shift, index, indices, where):
        width = where[1]
        groups = field_groups(FIELDS, width, values.device)
        linear = (values, index, indices, groups, matrices.reshape(-1, width), shift, *where)
        ctx.linear = linear
        return lookup_linear(*linear)

    @staticmethod
    def backward(ctx, grad):
        rows, weight, bias = lookup_linear_backward(grad.contiguous(), *ctx.linear)
        width = rows.shape[1]
        return spread(rows, ctx.linear), weight.view(FIELDS, width, width), bias, None, None, None


class Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, index, indices, where):
        mean, covariance = lookup_moments(values, index, indices, FIELDS, *where)
        ctx.saved = (mean, values, index, indices, *where)
        return mean, covariance

    @staticmethod
    def backward(ctx, mean_grad, covariance_grad):
        rows = lookup_moments_backward(mean_grad, covariance_grad, *ctx.saved)
        return spread(rows, ctx.saved[1:]), None, None, None


def spread(rows_grad, looked_up):
    """The gradient of a table whose rows are all D wide. [E]"""
    values, _, indices = looked_up[:3]
    width = rows_grad.shape[1]
    return torch.zeros_like(values).view(-1, width).index_add(0, indices, rows_grad).view(-1)


def mixture_by_moments(values, weight, p, index, indices, where, masks):
    mean, covariance = Moments.apply(values, index, indices, where)
    width = where[1]
    mixed = torch.zeros(FIELDS, width, width, dtype=values.dtype)
    for n, mask in enumerate(masks):
        w = weight[:, n] * mask[:, None]  # [F, D, D]
        var = (w * (covariance @ w)).sum(1)
        mixed = mixed + p[:, n, None, None] * w * torch.rsqrt(var + EPS)[:, None]
    shift = -torch.bmm(mean[:, None], mixed)[:, 0]
    return Mixture.apply(values, mixed, shift, index, indices, where)


def mixture_by_candidates(values, weight, p, indices, width, masks):
    """N lookups, N products, N batch norms and a weighted sum."""
    rows = values.view(-1, width)[indices].view(BATCH, FIELDS, width)
    out = 0
    for n, mask in enumerate(masks):
        z = torch.einsum("bfd,fdo->bfo", rows * mask, weight[:, n])
        z = (z - z.mean(0)) * torch.rsqrt(z.var(0, unbiased=False) + EPS)
        out = out + p[:, n, None] * z
    return out.reshape(-1, width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [4, 40])
def test_mixture_is_every_candidate_normalised_and_summed(dtype, width):
    table = make_table(torch.full((30,), width), width, torch.float64)
    masks = torch.arange(width) < torch.tensor([1, width // 2, width])[:, None]
    indices = torch.randint(0, 10, (BATCH, FIELDS)) + torch.tensor([0, 10, 20])
    indices = indices.reshape(-1)
    weight = torch.randn(FIELDS, 3, width, width, dtype=torch.float64)
    p = torch.softmax(torch.randn(FIELDS, 3, dtype=torch.float64), 1)
    exact = [t.detach().clone().requires_grad_() for t in (table.values + 1, weight, p)]
    expected = mixture_by_candidates(*exact, indices, width, masks.double())
    given = [t.detach().to(dtype).requires_grad_() for t in exact]
    where = (30, width, 1)
    got = mixture_by_moments(*given, table.rows.index, indices, where, masks.to(dtype))
    assert_agree(got, expected.to(dtype))
    grad = torch.randn_like(expected)
    expected.backward(grad)
    got.backward(grad.to(dtype))
    for ours, theirs in zip(given, exact, strict=True):
        error = (ours.grad.double() - theirs.grad).abs().max() / theirs.grad.abs().max()
        assert (
            error < 500 * torch.finfo(dtype).eps
        )  # a candidate of one column has a gradient near 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_moments_of_rows_of_different_dims(dtype):
    table = make_table(torch.randint(0, 22, (30,)), 21, dtype)
    indices = torch.randint(0, 30, (BATCH * FIELDS,))
    where = (30, 21, 1)
    mean, covariance = lookup_moments(
        table.values.detach(), table.rows.index, indices, FIELDS, *where
    )
    rows = table.dense[indices].double().view(BATCH, FIELDS, 21)
    centered = rows - rows.mean(0)
    assert_agree(mean, rows.mean(0).float())
    assert_agree(covariance, (torch.einsum("bfi,bfj->fij", centered, centered) / BATCH).float())


def test_gradient_of_moments():
    """Of a covariance gradient that is not symmetric, too."""
    table = make_table(torch.full((30,), 6), 6, torch.float64)
    indices, where = torch.randint(0, 30, (BATCH * FIELDS,)), (30, 6, 1)
    looked_up = (table.values.detach(), table.rows.index, indices)
    mean, _ = lookup_moments(*looked_up, FIELDS, *where)
    mean_grad, grad = torch.randn_like(mean), torch.randn(FIELDS, 6, 6, dtype=torch.float64)
    rows = table.dense[indices].view(BATCH, FIELDS, 6).requires_grad_()
    centered = rows - rows.mean(0)
    covariance = torch.einsum("bfi,bfj->fij", centered, centered) / BATCH
    ((covariance * grad).sum() + (rows.mean(0) * mean_grad).sum()).backward()
    got = lookup_moments_backward(mean_grad, grad, mean, *looked_up, *where)
    assert_agree(got, rows.grad.view(-1, 6))


def test_moments_refuse_an_incomplete_sample():
    table = make_table(torch.full((30,), 4), 4)
    with pytest.raises(ValueError, match="at least one sample of 3 fields, got 4"):
        indices = torch.zeros(4, dtype=torch.int64)
        lookup_moments(table.values.detach(), table.rows.index, indices, FIELDS, 30, 4, 1)
