"""Paged tables: every operation gives the bits that it gives on a packed table of the same rows.

The packed results have their own tests against the reference and against torch.
"""

import pytest
import torch
from ops.cases import CASES
from ops.test_lookup_bag import bags
from ops.test_lookup_linear import problem
from ops.test_update import HYPER, states

from varemb.ops import coalesce, lookup, lookup_bag, lookup_linear, move_, update_
from varemb.ops.backend import namespace
from varemb.ops.reference import DIM_BITS, SLOT_BITS
from varemb.ops.update import ALGORITHMS
from varemb.testing import (
    DTYPES,
    dense_of,
    dims_of,
    flat_of,
    make_table,
    runnable_backends,
)

BACKENDS = runnable_backends()
# Every case in float32; the other dtypes where rows straddle every alignment.
PAIRS = [(name, torch.float32) for name in CASES] + [
    ("odd_width", dtype) for dtype in DTYPES if dtype != torch.float32
]
ABSENT = "which is absent|the table has no row of this index"  # the reference's words, an assert's
on_pairs = pytest.mark.parametrize(("name", "dtype"), PAIRS, ids=str)
on_backends = pytest.mark.parametrize("backend", BACKENDS)


def both(name, dtype):
    """A packed table and a paged one that lacks half of the rows that are not looked up."""
    dims, width, indices = CASES[name]
    asked = torch.zeros(dims.numel(), dtype=torch.bool)
    asked[indices] = True
    asked[::2] = True
    packed = make_table(dims, width, dtype)
    present = torch.where(asked, packed.storage.dims, -1)  # as a granule has rounded them up
    return packed, make_table(present, width, dtype, layout="paged")


def assert_same_rows(tables, flats):
    """Both flat tensors, such as gradients, hold the same numbers for every row.

    Rows that are absent get no gradient, so there are zeros on both sides.
    """
    assert torch.equal(*(dense_of(flat, t.rows) for t, flat in zip(tables, flats, strict=True)))


def has_no_row(table):
    """The flat numbers that no row has. [E] bool"""
    return flat_of(torch.ones_like(table.dense), table.rows) == 0


def check_lookup(backend, tables, indices, limit=None):
    """Rows and gradients of both tables, which may be anywhere."""
    outs, grad = [], torch.randn(indices.numel(), tables[0].rows.width).to(tables[0].values)
    for table in tables:
        outs.append(
            lookup(table.values, table.rows, indices, limit=limit, padding_idx=0, backend=backend)
        )
        outs[-1].backward(grad)
    assert torch.equal(*outs)
    assert_same_rows(tables, [table.values.grad for table in tables])
    assert not tables[1].values.grad[has_no_row(tables[1])].any()


def check_lookup_bag(backend, tables, indices, mode):
    """Pooled rows, the gradients of both tables and of the weights."""
    outs, weights, offsets = [], [], bags(indices.numel()).to(indices)
    like, is_weighted = tables[0].values, mode == "weighted"
    factors = torch.randn(indices.numel()).to(like)
    grad = torch.randn(offsets.numel(), tables[0].rows.width).to(like)
    for table in tables:
        weights.append(factors.clone().requires_grad_() if is_weighted else None)
        outs.append(
            lookup_bag(
                table.values, table.rows, indices, offsets, padding_idx=3, backend=backend,
                mode="sum" if is_weighted else mode, per_sample_weights=weights[-1],
            )
        )  # fmt: skip
        outs[-1].backward(grad)
    assert torch.equal(*outs)
    assert_same_rows(tables, [table.values.grad for table in tables])
    assert not is_weighted or torch.equal(weights[0].grad, weights[1].grad)


def check_lookup_linear(backend, tables, indices, groups, weight, bias):
    """Projected rows, the gradients of both tables and of the matrices and biases."""
    outs, grads = [], []
    grad = torch.randn(*indices.shape, weight.shape[1]).to(weight)
    for table in tables:
        leaves = [t.detach().clone().requires_grad_() for t in (weight, bias)]
        outs.append(
            lookup_linear(table.values, table.rows, indices, groups, *leaves, backend=backend)
        )
        outs[-1].backward(grad)
        grads.append([leaf.grad for leaf in leaves])
    assert torch.equal(*outs)
    assert_same_rows(tables, [table.values.grad for table in tables])
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


def check_fused_update(backend, tables, indices, algorithm):
    """Numbers and state after a step, in bags of mean pooling; what no row has stays as it is."""
    offsets, after = bags(indices.numel()).to(indices), []
    like, width = tables[0].values, tables[0].rows.width
    grad = torch.randn(offsets.numel() - 1, width).to(like)
    is_row_wise = algorithm == "row_wise_adagrad"
    own = [None if s is None else s.to(like.device) for s in states(tables[0], algorithm)]
    for table in tables:
        state = [
            s if s is None else s.clone() if is_row_wise
            else flat_of(dense_of(s, tables[0].rows), table.rows, 7.0)
            for s in own
        ]  # fmt: skip
        values, unused = table.values.detach(), has_no_row(table)
        before = values[unused].view(torch.uint8).clone()
        options = (table.rows.num_rows, table.rows.granule, 1, 2, True, ALGORITHMS[algorithm])
        looked_up = (grad, table.rows.index, indices, offsets, None, None, None)
        hyper = HYPER.to(like.device)
        namespace(backend).coalesce_update_(values, *state, hyper, None, *looked_up, *options)
        assert torch.equal(values[unused].view(torch.uint8), before)
        if not is_row_wise:
            assert all(bool((s[unused] == 7.0).all()) for s in state if s is not None)
        after.append([values, *(s for s in state if s is not None)])
    asked = indices.unique()
    for number, flats in enumerate(zip(*after, strict=True)):
        if not is_row_wise or number == 0:
            flats = [dense_of(flat, t.rows)[asked] for flat, t in zip(flats, tables, strict=True)]
        assert torch.equal(*flats)


@on_backends
@on_pairs
def test_lookup_and_gradient_of_a_paged_table(backend, name, dtype):
    check_lookup(backend, both(name, dtype), CASES[name].indices)


@on_backends
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_lookup_limits_of_a_paged_table(backend, index_dtype):
    _, width, indices = CASES["odd_width"]
    limit = torch.randint(0, width + 1, indices.shape)
    check_lookup(backend, both("odd_width", torch.float32), indices.to(index_dtype), limit)


@on_backends
@pytest.mark.parametrize("mode", ["sum", "mean", "max", "weighted"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("odd_width", torch.float32), ("odd_width", torch.bfloat16), ("widest", torch.float64)],
    ids=str,
)
def test_lookup_bag_and_gradients_of_a_paged_table(backend, mode, name, dtype):
    # Interpreted, a long bag takes seconds.
    check_lookup_bag(backend, both(name, dtype), CASES[name].indices[:60], mode)


@on_backends
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lookup_linear_and_gradients_of_a_paged_table(backend, dtype):
    packed, groups, weight, bias, indices = problem(dtype, 16)
    tables = packed, make_table(packed.storage.dims, 9, dtype, layout="paged")
    check_lookup_linear(backend, tables, indices, groups, weight, bias)


@on_backends
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("odd_width", torch.float32), ("odd_width", torch.bfloat16), ("repeats", torch.float64)],
    ids=str,
)
def test_fused_update_of_a_paged_table(backend, algorithm, name, dtype):
    check_fused_update(backend, both(name, dtype), CASES[name].indices, algorithm)


def broken(table, how):
    """The table with row 5 absent in one of the ways that there are."""
    index, chunks = table.rows.index, table.rows.index.shape[0] - 20
    index = torch.cat([index, index.new_zeros(1)])[:-1]  # a word behind it, of a chunk of dim 0
    handles = index[:20].view(torch.int32)
    if how == "removed":
        handles[5] = -1
    elif how == "chunk_outside":
        handles[5] = chunks << SLOT_BITS
    else:  # the row's last number is the first that is not there
        index[-1] = (table.rows.numbers - 7) << DIM_BITS | 8
        handles[5] = (chunks - 1) << SLOT_BITS
    return table.rows._replace(index=index)


@on_backends
@pytest.mark.parametrize("how", ["removed", "chunk_outside", "numbers_outside"])
def test_every_operation_refuses_an_absent_row(backend, how):
    table = make_table(dims_of("equal", 40, 8), 8, layout="paged")
    rows, values = broken(table, how), table.values.detach()
    before, ops = values.view(torch.int32).clone(), namespace(backend)
    indices, offsets = torch.arange(40).repeat(5), torch.arange(0, 200, 7)
    groups = torch.zeros(1, 9, 2, dtype=torch.int64)
    weight, bias, where = torch.zeros(8, 3), torch.zeros(1, 3), (40, 1, 0, -1, False)
    looked_up = (torch.ones(200, 8), rows.index, indices, *[None] * 4, *where)
    calls = [
        lambda: lookup(values, rows, indices, backend=backend),
        lambda: lookup_bag(values, rows, indices, offsets, mode="sum", backend=backend),
        lambda: lookup_bag(values, rows, indices, offsets, mode="max", backend=backend),
        lambda: ops.lookup_bag_weights_backward(
            torch.ones(offsets.numel(), 8), values, rows.index, indices, offsets, None, 40, 1, -1,
            False,
        ),
        lambda: lookup_linear(values, rows, indices, groups, weight, bias, backend=backend),
        lambda: ops.coalesce_dense(*looked_up, values.numel()),
        lambda: ops.coalesce_update_(values.clone(), None, None, HYPER, None, *looked_up, 0),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(IndexError, match=ABSENT):
            call()
    assert torch.equal(values.view(torch.int32), before)
    present = indices[indices != 5]
    assert torch.equal(lookup(values, rows, present, backend=backend), table.dense[present])


@on_backends
def test_an_absent_row_is_refused_before_any_row_is_changed(backend):
    table = make_table(dims_of("equal", 40, 8), 8, layout="paged")
    rows, values = broken(table, "removed"), table.values.detach()
    before = values.view(torch.int32).clone()
    looked_up = (torch.ones(40, 8), rows.index, torch.arange(40), *[None] * 4, 40, 1, 0, -1, False)
    message = "got 5 at position 5, which is absent"
    with pytest.raises(IndexError, match=message):
        namespace(backend).coalesce_update_(values, None, None, HYPER, None, *looked_up, 0)
    assert torch.equal(values.view(torch.int32), before)


@on_backends
def test_sparse_gradients_of_a_paged_table_are_refused(backend):
    table = make_table(dims_of("uniform", 40, 8), 8, layout="paged")
    values, rows, indices = table.values, table.rows, torch.tensor([1, 2])
    grad = torch.sparse_coo_tensor([[7]], torch.ones(1), (rows.numbers,))
    groups, where = torch.zeros(1, 9, 2, dtype=torch.int64), (40, 8, 1)
    weight, bias, options = torch.zeros(8, 3), torch.zeros(1, 3), {"backend": backend}
    looked_up = (torch.ones(2, 8), rows.index, indices, *[None] * 4, 40, 1, 0, -1, False)
    jagged, ops = (torch.tensor([7]), torch.ones(1)), namespace(backend)
    calls = [
        lambda: lookup(values, rows, indices, sparse=True, **options),
        lambda: lookup_bag(values, rows, indices, indices - 1, sparse=True, **options),
        lambda: lookup_linear(values, rows, indices, groups, weight, bias, sparse=True, **options),
        lambda: coalesce(torch.zeros(2, 8), rows, indices, **options),
        lambda: update_(
            values.detach(), None, None, HYPER, None, rows, grad, algorithm=0, **options
        ),
        lambda: ops.coalesce(*looked_up, rows.numbers),
        lambda: ops.update_(
            values.detach(), None, None, HYPER, None, rows.index, *jagged, *where, 0
        ),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="a paged table has no sparse gradients: use a fused"):
            call()


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_a_paged_index_that_does_not_fit_is_refused(backend):
    table = make_table(dims_of("uniform", 40, 8), 8, layout="paged")
    values, index, indices = table.values.detach(), table.rows.index, torch.tensor([1])
    for wrong, rows, granule, message in (
        (index, 2 * index.numel() + 1, 1, f"too few for .*{2 * index.numel() + 1} rows"),
        (index, 40, 2, "granule must be"),
        (index.int(), 40, 1, "must be a contiguous int64 tensor"),
        (index.repeat(2)[::2], 40, 1, "must be a contiguous int64 tensor"),
        (index[None, None], 40, 1, "must be a contiguous int64 tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            namespace(backend).lookup(values, wrong, indices, None, rows, 8, granule)


@on_backends
def test_move_moves_every_tensor_by_one_plan(backend):
    tensors = [torch.arange(10.0), torch.arange(10).bfloat16(), torch.arange(10) > 4]
    outs = [torch.ones_like(t) for t in tensors]
    move_(outs, tensors, torch.tensor([[6, 1, 2, 4]]), backend=backend)
    assert outs[0].tolist() == [1, 6, 7, 0, 0, 1, 1, 1, 1, 1]
    assert outs[1].tolist() == outs[0].tolist()
    assert outs[2].tolist() == [bool(x) for x in outs[0].tolist()]
    move_(tensors, tensors, torch.tensor([[0, 5, 1, 1]]), backend=backend)
    assert tensors[0].tolist() == [0, 1, 2, 3, 4, 0, 6, 7, 8, 9]


def test_move_refuses_what_does_not_fit():
    moves = torch.tensor([[0, 0, 1, 1]])
    with pytest.raises(ValueError, match="2 tensors need as many outs, got 1"):
        move_([torch.ones(2)], [torch.ones(2)] * 2, moves)
    for dtype in (torch.float64, torch.int32, torch.complex128):
        with pytest.raises(ValueError, match="one dtype of 1, 2, 4 or 8 bytes, got"):
            move_([torch.ones(2, dtype=dtype)], [torch.ones(2)], moves)
    with pytest.raises(ValueError, match="one dtype of 1, 2, 4 or 8 bytes, got"):
        wide = torch.ones(2, dtype=torch.complex128)
        move_([wide], [wide], moves)
