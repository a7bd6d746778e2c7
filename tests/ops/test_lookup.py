"""lookup: every backend against the reference and against a dense table."""

import pytest
import torch
from ops.cases import CASES, LONG_RUNS, assert_sums_agree, combine, combine_dtypes

from varemb.ops import lookup
from varemb.storage import PackedStorage
from varemb.testing import DTYPES, assert_agree, dims_of, make_table, runnable_backends

BACKENDS = runnable_backends()


@pytest.mark.parametrize(
    ("backend", "name", "dtype", "index_dtype"),
    combine(BACKENDS, CASES, DTYPES, [torch.int32, torch.int64]),
    ids=str,
)
def test_lookup_is_the_dense_row(backend, name, dtype, index_dtype):
    dims, width, indices = CASES[name]
    table = make_table(dims, width, dtype)
    out = lookup(table.values, table.rows, indices.to(index_dtype), backend=backend)
    assert torch.equal(out, table.dense[indices])


@pytest.mark.parametrize(
    ("backend", "name", "dtype"), combine_dtypes(BACKENDS, ("odd_width", *LONG_RUNS)), ids=str
)
def test_lookup_backward_with_repeated_indices(backend, name, dtype):
    dims, width, indices = CASES[name]
    table = make_table(dims, width, dtype)
    grad = torch.randn(indices.numel(), width).to(dtype)
    expected = torch.zeros(dims.numel(), width, dtype=torch.float64)
    expected.index_add_(0, indices, grad.double())
    kept = torch.arange(width) < table.storage.dims[:, None]
    lookup(table.values, table.rows, indices, backend=backend).backward(grad)
    got = make_table(dims, width, dtype)
    with torch.no_grad():
        got.values.copy_(table.values.grad)
    block = lookup(got.values, got.rows, torch.arange(dims.numel()), backend="reference")
    assert_agree(block, torch.where(kept, expected, 0.0).to(dtype))


@pytest.mark.parametrize("name", CASES)
def test_lookup_backward_is_the_references_bit_for_bit(name):
    dims, width, indices = CASES[name]
    grad = torch.randn(indices.numel(), width)
    grads = []
    for backend in BACKENDS:
        table = make_table(dims, width)
        lookup(table.values, table.rows, indices, backend=backend).backward(grad)
        grads.append(table.values.grad)
    for backend, grad in zip(BACKENDS, grads, strict=True):
        assert_sums_agree(backend, name, grad, grads[-1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_lookup", [False, True])
def test_lookup_limit_masks_reading_and_gradient(backend, per_lookup):
    dims, width, indices = CASES["odd_width"]
    table = make_table(dims, width)
    limit = torch.randint(0, width + 1, indices.shape) if per_lookup else 9
    each = limit[:, None] if per_lookup else limit
    mask = torch.arange(width) < each
    out = lookup(table.values, table.rows, indices, limit=limit, backend=backend)
    assert torch.equal(out, table.dense[indices] * mask)
    grad = torch.randn_like(out)
    out.backward(grad)
    masked = make_table(dims, width)
    lookup(masked.values, masked.rows, indices, backend="reference").backward(grad * mask)
    assert torch.equal(table.values.grad, masked.values.grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lookup_limit_above_every_width_is_none(backend):
    dims, width, indices = CASES["odd_width"]
    table = make_table(dims, width)
    for most in (2**31, torch.full(indices.shape, 2**63 - 1)):
        out = lookup(table.values, table.rows, indices, limit=most, backend=backend)
        assert torch.equal(out, table.dense[indices])


@pytest.mark.parametrize("backend", BACKENDS)
def test_lookup_padding_row_is_read_but_not_trained(backend):
    table = make_table(torch.tensor([3, 2, 3]), 3)
    indices = torch.tensor([1, 0, 1])
    out = lookup(table.values, table.rows, indices, padding_idx=1, backend=backend)
    assert torch.equal(out, table.dense[indices])
    out.sum().backward()
    assert table.values.grad.tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_lookup_takes_any_shape_and_strides(backend):
    table = make_table(dims_of("uniform", 30, 6), 6)
    indices = torch.randint(0, 30, (8, 5)).T[::2]
    assert not indices.is_contiguous()
    out = lookup(table.values, table.rows, indices, backend=backend)
    assert torch.equal(out, table.dense[indices])
    grad = torch.randn(6, *indices.shape).movedim(0, -1)
    assert not grad.is_contiguous()
    out.backward(grad)
    other = make_table(dims_of("uniform", 30, 6), 6)
    lookup(other.values, other.rows, indices.contiguous()).backward(grad.contiguous())
    assert torch.equal(table.values.grad, other.values.grad)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [-1, 40, 2**40, -(2**40)])
@pytest.mark.parametrize("position", [0, 1500, 2999])
def test_lookup_refuses_an_index_outside_the_table(backend, bad, position):
    table = make_table(dims_of("uniform", 40, 8), 8)
    indices = torch.randint(0, 40, (3000,))
    indices[position] = bad
    message = rf"lookup: indices must be in \[0, 40\), got {bad} at position {position}"
    with pytest.raises(IndexError, match=message):
        lookup(table.values, table.rows, indices, backend=backend)


def test_lookup_refuses_what_is_not_an_index():
    table = make_table(dims_of("uniform", 40, 8), 8)
    with pytest.raises(TypeError, match="lookup: indices must be int32 or int64, got float32"):
        lookup(table.values, table.rows, torch.zeros(3))
    with pytest.raises(TypeError, match="got bool"):
        lookup(table.values, table.rows, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"limit must be whole, got 2\.7"):
        lookup(table.values, table.rows, torch.zeros(3, dtype=torch.int64), limit=2.7)
    with pytest.raises(ValueError, match="limit must not be negative, got -1"):
        lookup(table.values, table.rows, torch.zeros(3, dtype=torch.int64), limit=-1)
    with pytest.raises(ValueError, match=r"limit must have the shape of indices \[3\], got \[2\]"):
        limit = torch.ones(2, dtype=torch.int32)
        lookup(table.values, table.rows, torch.zeros(3, dtype=torch.int64), limit=limit)
    with pytest.raises(ValueError, match="values must be flat"):
        lookup(table.values[1:], table.rows, torch.zeros(3, dtype=torch.int64))


def test_lookup_refuses_an_unknown_backend():
    table = make_table(dims_of("uniform", 4, 8), 8)
    with pytest.raises(ValueError, match=r"backend must be one of .* got 'gpu'"):
        lookup(table.values, table.rows, torch.zeros(3, dtype=torch.int64), backend="gpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_lookup_does_not_hide_nan(backend):
    table = make_table(torch.tensor([2, 3]), 3)
    with torch.no_grad():
        table.values[3] = float("nan")
    out = lookup(table.values, table.rows, torch.tensor([1, 0, 1]), backend=backend)
    assert out.isnan().nonzero().tolist() == [[0, 1], [2, 1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_lookup_gradcheck(backend):
    table = make_table(torch.tensor([2, 0, 4, 1]), 4, torch.float64)
    indices = torch.tensor([2, 0, 2, 3, 1])

    def run(values):
        return lookup(values, table.rows, indices, backend=backend)

    assert torch.autograd.gradcheck(run, (table.values,))


@pytest.mark.parametrize("namespace", ["varemb", "varemb_reference"])
def test_lookup_opcheck(namespace):
    table = make_table(dims_of("uniform", 40, 8), 8)
    ops, rows = getattr(torch.ops, namespace), table.rows
    indices = torch.tensor([3, 1, 3, 39])
    where = (rows.num_rows, rows.width, rows.granule)
    lookup_arguments = (rows.index, indices, torch.tensor([5], dtype=torch.int32), *where)
    torch.library.opcheck(ops.lookup.default, (table.values.detach(), *lookup_arguments))
    trained = (table.values, *[None] * 5, *lookup_arguments, -1, 0, 0)
    torch.library.opcheck(ops.lookup_trained.default, trained)


def test_native_lookup_checks_its_own_contract():
    table = make_table(dims_of("uniform", 40, 8), 8)
    rows, indices = table.rows, torch.tensor([1])
    values = table.values.detach()
    with pytest.raises(ValueError, match="too few for 49 rows"):
        torch.ops.varemb.lookup(values, rows.index, indices, None, 49, 8, 1)
    with pytest.raises(ValueError, match="the index describes"):
        torch.ops.varemb.lookup(values[:-1], rows.index, indices, None, 40, 8, 1)
    with pytest.raises(ValueError, match="int32 or int64"):
        torch.ops.varemb.lookup(values, rows.index, indices.float(), None, 40, 8, 1)


def test_results_do_not_depend_on_the_number_of_threads():
    dims, width, _ = CASES["skewed_dims"]
    indices = torch.randint(0, dims.numel(), (20000,))
    grad = torch.randn(20000, width)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        table = make_table(dims, width)
        out = lookup(table.values, table.rows, indices)
        out.backward(grad)
        results.append((out.detach(), table.values.grad))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(r, results[0], strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_lookup_past_2_to_31_numbers(backend):
    torch.utils.deterministic.fill_uninitialized_memory = False  # 4.3 GB, of which 3 rows are used
    rows = 2**31 // 2000 + 500
    storage = PackedStorage(torch.full((rows,), 2000), 2000, dtype=torch.bfloat16)
    assert storage.numbers > 2**31
    asked = torch.tensor([rows - 1, 0, rows - 2])
    with torch.no_grad():
        for row, value in zip(asked.tolist(), (3.0, 1.0, 2.0), strict=True):
            storage.row(row).fill_(value)
        out = lookup(storage.weight, storage.rows, asked, backend=backend)
    assert out.float().mean(1).tolist() == [3, 1, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_take_the_full_tables_numbers_with_other_dims_are_read_by_their_own(backend):
    # Above a width of 255 dims are even: 302 and 300 numbers are those of two rows 301 wide.
    table = make_table(torch.tensor([302, 300]), 301, torch.float32)
    assert table.rows.numbers == 2 * 301
    indices = torch.tensor([1, 0])
    assert torch.equal(
        lookup(table.values, table.rows, indices, backend=backend), table.dense[indices]
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", [-1, 40, 2**40])
def test_lookup_refuses_an_index_outside_a_table_of_full_width(backend, index):
    table = make_table(torch.full((40,), 8), 8, torch.float32)
    with pytest.raises(IndexError, match=rf"\[0, 40\), got {index} at position 1"):
        lookup(table.values, table.rows, torch.tensor([3, index]), backend=backend)
