"""lookup_bag: every backend against torch's embedding_bag on the dense table."""

import pytest
import torch
import torch.nn.functional as F
from ops.cases import CASES, combine

from varemb.ops import lookup_bag
from varemb.testing import DTYPES, assert_agree, dims_of, make_table, runnable_backends

BACKENDS = runnable_backends()
MODES = ["sum", "mean", "max"]


def bags(lookups: int) -> torch.Tensor:
    """Offsets with empty bags at the start, in the middle and at the end, and long ones."""
    cuts = torch.randint(0, lookups + 1, (6,)).sort().values
    return torch.cat([torch.tensor([0, 0]), cuts, cuts[-1:], torch.tensor([lookups])])


@pytest.mark.parametrize(
    ("backend", "name", "dtype", "mode"), combine(BACKENDS, CASES, DTYPES, MODES), ids=str
)
def test_lookup_bag_is_torchs_on_the_dense_table(backend, name, dtype, mode):
    dims, width, indices = CASES[name]
    table = make_table(dims, width, dtype)
    offsets = bags(indices.numel())
    out = lookup_bag(
        table.values, table.rows, indices, offsets, mode=mode, padding_idx=0, backend=backend
    )
    dense = table.dense.double().requires_grad_()
    expected = F.embedding_bag(indices, dense, offsets, mode=mode, padding_idx=0)
    assert_agree(out, expected.to(dtype))
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    expected.backward(grad.double())
    kept = torch.arange(width) < table.storage.dims[:, None]
    flat = dense.grad[kept]
    assert_agree(stored_numbers(table, table.values.grad), flat.to(dtype))


def stored_numbers(table, flat):
    """Flat numbers without the slack that granules leave behind a row."""
    dims, granule = table.storage.dims, table.rows.granule
    stored = (dims + granule - 1) // granule * granule
    columns = torch.arange(table.rows.width)
    places = (stored.cumsum(0) - stored)[:, None] + columns
    return flat[places[columns < dims[:, None]]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_lookup_bag_with_per_sample_weights_and_their_gradient(backend, dtype, index_dtype):
    dims, width, indices = CASES["odd_width"]
    table = make_table(dims, width, dtype)
    offsets = bags(indices.numel())
    weights = torch.randn(indices.numel()).to(dtype).requires_grad_()
    out = lookup_bag(
        table.values,
        table.rows,
        indices.to(index_dtype),
        offsets.to(index_dtype),
        mode="sum",
        per_sample_weights=weights,
        padding_idx=3,
        backend=backend,
    )
    dense = table.dense.double().requires_grad_()
    theirs = weights.detach().double().requires_grad_()
    expected = F.embedding_bag(
        indices, dense, offsets, mode="sum", per_sample_weights=theirs, padding_idx=3
    )
    assert_agree(out, expected.to(dtype))
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    expected.backward(grad.double())
    assert_agree(weights.grad, theirs.grad.to(dtype))
    kept = torch.arange(width) < dims[:, None]
    assert_agree(table.values.grad, dense.grad[kept].to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_lookup_bag_include_last_offset(backend):
    table = make_table(dims_of("uniform", 30, 6), 6)
    indices, offsets = torch.randint(0, 30, (9,)), torch.tensor([0, 4, 4, 7])
    out = lookup_bag(
        table.values, table.rows, indices, offsets, mode="sum", include_last_offset=True,
        backend=backend,
    )  # fmt: skip
    expected = [table.dense[indices[a:b]].sum(0) for a, b in ((0, 4), (4, 4), (4, 7))]
    assert_agree(out, torch.stack(expected))
    out.sum().backward()
    touched = table.values.grad.nonzero().numel()
    assert touched == int(table.storage.dims[indices[:7].unique()].sum())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_lookup_bag_limit(backend, mode):
    dims, width, indices = CASES["odd_width"]
    table, offsets = make_table(dims, width), bags(indices.numel())
    limit = torch.randint(0, width + 1, indices.shape)
    out = lookup_bag(
        table.values, table.rows, indices, offsets, mode=mode, limit=limit, backend=backend
    )
    rows = (table.dense[indices] * (torch.arange(width) < limit[:, None])).requires_grad_()
    everyone = torch.arange(indices.numel())
    expected = F.embedding_bag(everyone, rows, offsets, mode=mode)
    assert_agree(out, expected)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad)
    reach = torch.minimum(dims[indices], limit)
    masked = rows.grad * (torch.arange(width) < reach[:, None])
    dense = torch.zeros(dims.numel(), width).index_add(0, indices, masked)
    if mode != "max":  # ties of zeros are torch's choice
        kept = torch.arange(width) < dims[:, None]
        assert_agree(table.values.grad, dense[kept])


@pytest.mark.parametrize("mode", MODES)
def test_lookup_bag_backends_agree_bit_for_bit_on_ties(mode):
    dims, width, indices = CASES["repeats"]
    offsets, results = bags(indices.numel()), []
    for backend in BACKENDS:
        table = make_table(dims, width)
        with torch.no_grad():
            table.values.round_()
        out = lookup_bag(table.values, table.rows, indices, offsets, mode=mode, backend=backend)
        out.backward(torch.ones_like(out))
        results.append((out.detach(), table.values.grad))
    for out, grad in results:
        assert_agree(out, results[-1][0])
        assert_agree(grad, results[-1][1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_lookup_bag_max_keeps_nan(backend):
    table = make_table(torch.tensor([2, 3]), 3)
    with torch.no_grad():
        table.values[0] = float("nan")
    indices, offsets = torch.tensor([1, 0, 1]), torch.tensor([0])
    out = lookup_bag(table.values, table.rows, indices, offsets, mode="max", backend=backend)
    assert out.isnan().tolist() == [[True, False, False]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("offsets", "message"),
    [([0, 5, 3], "must not decrease"), ([1, 2], "start at 0"), ([0, 11], "not pass")],
)
def test_lookup_bag_refuses_broken_offsets(backend, offsets, message):
    table = make_table(dims_of("uniform", 30, 6), 6)
    indices = torch.zeros(10, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        lookup_bag(table.values, table.rows, indices, torch.tensor(offsets), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lookup_bag_refuses_an_index_outside_the_table(backend):
    table = make_table(dims_of("uniform", 30, 6), 6)
    indices = torch.zeros(5000, dtype=torch.int64)
    indices[4321] = 30
    with pytest.raises(IndexError, match=r"\[0, 30\), got 30 at position 4321"):
        offsets = torch.arange(0, 5000, 10)
        lookup_bag(table.values, table.rows, indices, offsets, mode="sum", backend=backend)


def test_lookup_bag_refuses_options_that_do_not_fit():
    table = make_table(dims_of("uniform", 30, 6), 6)
    indices, offsets = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 2])
    with pytest.raises(ValueError, match="mode must be sum, mean or max, got 'min'"):
        lookup_bag(table.values, table.rows, indices, offsets, mode="min")
    with pytest.raises(ValueError, match="per_sample_weights need mode 'sum', got 'mean'"):
        lookup_bag(table.values, table.rows, indices, offsets, per_sample_weights=torch.ones(4))
    with pytest.raises(ValueError, match="offsets must have the dtype of indices"):
        lookup_bag(table.values, table.rows, indices, offsets.int())
    with pytest.raises(ValueError, match="offsets must be on the table's device cpu, got meta"):
        lookup_bag(table.values, table.rows, indices, offsets.to("meta"))
    limit = torch.ones(4, dtype=torch.int32, device="meta")
    with pytest.raises(ValueError, match="limit must be on the device of indices cpu, got meta"):
        lookup_bag(table.values, table.rows, indices, offsets, limit=limit)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_lookup_bag_gradcheck(backend, mode):
    table = make_table(torch.tensor([2, 0, 4, 1]), 4, torch.float64)
    indices, offsets = torch.tensor([2, 0, 2, 3, 1]), torch.tensor([0, 3, 3])
    weights = torch.rand(5, dtype=torch.float64, requires_grad=True)

    def run(values, weights):
        given = weights if mode == "sum" else None
        return lookup_bag(
            values, table.rows, indices, offsets, mode=mode, per_sample_weights=given,
            backend=backend,
        ) + 0 * weights.sum()  # fmt: skip

    assert torch.autograd.gradcheck(run, (table.values, weights))


@pytest.mark.parametrize("namespace", ["varemb", "varemb_reference"])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_lookup_bag_opcheck(namespace, mode):
    table = make_table(dims_of("uniform", 40, 8), 8)
    ops, rows = getattr(torch.ops, namespace), table.rows
    indices, offsets = torch.tensor([3, 1, 3, 39]), torch.tensor([0, 2])
    where = (rows.num_rows, rows.width, rows.granule)
    weights = torch.rand(4, requires_grad=True) if mode == 0 else None
    bag = (rows.index, indices, offsets, weights, None, *where, mode)
    plain = (table.values.detach(), rows.index, indices, offsets, None, None, *where, mode)
    torch.library.opcheck(ops.lookup_bag.default, (*plain, -1, False))
    trained = (table.values, *[None] * 5, *bag, False, -1, 0, 0)
    torch.library.opcheck(ops.lookup_bag_trained.default, trained)
    grad = torch.randn(2, 8)
    torch.library.opcheck(
        ops.lookup_bag_weights_backward.default,
        (grad, table.values.detach(), rows.index, indices, offsets, None, *where[::2], -1, False),
    )  # fmt: skip
