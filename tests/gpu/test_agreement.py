"""On the GPU every operation gives what the reference gives on the CPU, output and gradient."""

import pytest
import torch
from gpu.where import BACKENDS, moved, there
from ops.cases import CASES

from varemb.ops import coalesce, lookup, lookup_bag, lookup_linear, repack, update_
from varemb.ops.backend import namespace
from varemb.ops.update import ALGORITHMS
from varemb.storage import PackedStorage
from varemb.testing import DTYPES, assert_agree, dims_of, make_table

pytestmark = pytest.mark.gpu

# All cases in float32; the other dtypes where rows straddle every alignment.
OTHERS = [dtype for dtype in DTYPES if dtype != torch.float32]
PAIRS = [(name, torch.float32) for name in CASES] + [
    (name, dtype) for name in ("odd_width", "wide") for dtype in OTHERS
]
HYPER = torch.tensor([0.1, 0.01, 1e-8, 0.9, 0.999, 3.0], dtype=torch.float64)
ROUNDING = torch.tensor([(3 << 33) + 11, (5 << 34) + 2])
on_pairs = pytest.mark.parametrize(("name", "dtype"), PAIRS, ids=str)
on_backends = pytest.mark.parametrize("backend", BACKENDS)


def bags(lookups):
    """Offsets with empty bags at the start, in the middle and at the end, and long ones."""
    cuts = torch.randint(0, lookups + 1, (6,)).sort().values
    return torch.cat([torch.tensor([0, 0]), cuts, cuts[-1:], torch.tensor([lookups])])


def agree(got, expected):
    assert_agree(got.cpu(), expected)


@on_backends
@on_pairs
@pytest.mark.parametrize("form", ["dense", "sparse", "limited"])
def test_lookup_on_the_gpu(backend, name, dtype, form):
    dims, width, indices = CASES[name]
    here = make_table(dims, width, dtype)
    away = moved(here)
    limit = torch.randint(0, width + 1, indices.shape) if form == "limited" else None
    options = {"padding_idx": 0, "sparse": form == "sparse"}
    expected = lookup(here.values, here.rows, indices, limit=limit, backend="reference", **options)
    out = lookup(
        away.values, away.rows, there(indices), limit=there(limit), backend=backend, **options
    )
    assert torch.equal(out.cpu(), expected)
    grad = torch.randn(out.shape).to(dtype)
    expected.backward(grad)
    out.backward(there(grad))
    if form == "sparse":
        got, wanted = away.values.grad.coalesce().cpu(), here.values.grad.coalesce()
        assert torch.equal(got.indices(), wanted.indices())
        agree(got.values(), wanted.values())
    else:
        agree(away.values.grad, here.values.grad)


@on_backends
@on_pairs
@pytest.mark.parametrize("mode", ["sum", "mean", "max", "weighted"])
def test_lookup_bag_on_the_gpu(backend, name, dtype, mode):
    dims, width, indices = CASES[name]
    here = make_table(dims, width, dtype)
    away = moved(here)
    weights = [None, None]
    if mode == "weighted":
        own = torch.randn(indices.numel()).to(dtype)
        weights = [own.requires_grad_(), there(own).requires_grad_()]
    offsets = bags(indices.numel())
    options = {"mode": "sum" if mode == "weighted" else mode, "padding_idx": 3}
    calls = [
        (here, indices, offsets, weights[0], "reference"),
        (away, there(indices), there(offsets), weights[1], backend),
    ]
    expected, out = (
        lookup_bag(
            t.values, t.rows, i, o, per_sample_weights=w, limit=width - 1, backend=b, **options
        )
        for t, i, o, w, b in calls
    )
    agree(out, expected)
    grad = torch.randn(out.shape).to(dtype)
    expected.backward(grad)
    out.backward(there(grad))
    agree(away.values.grad, here.values.grad)
    if mode == "weighted":
        agree(weights[1].grad, weights[0].grad)


@on_backends
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("outputs", [1, 16, 100])
def test_lookup_linear_on_the_gpu(backend, dtype, outputs):
    """Two fields of rows of dims 0, 3 and 9."""
    sizes = [0, 3, 9]
    dims = torch.tensor(sizes).repeat(20)
    groups = torch.full((2, 10, 2), -1)
    for field in range(2):
        for group, size in enumerate(sizes):
            groups[field, size] = torch.tensor([12 * field + sum(sizes[:group]), 3 * field + group])
    here = make_table(dims, 9, dtype)
    away = moved(here)
    indices = torch.randint(0, 60, (70, 2))
    own = [torch.randn(24, outputs).to(dtype), torch.randn(6, outputs).to(dtype)]
    others = there(*own)
    for parameter in (*own, *others):
        parameter.requires_grad_()
    expected = lookup_linear(here.values, here.rows, indices, groups, *own, backend="reference")
    out = lookup_linear(
        away.values, away.rows, there(indices), there(groups), *others, backend=backend
    )
    agree(out, expected)
    grad = torch.randn(out.shape).to(dtype)
    expected.backward(grad)
    out.backward(there(grad))
    agree(away.values.grad, here.values.grad)
    for got, wanted in zip(others, own, strict=True):
        agree(got.grad, wanted.grad)


@on_backends
@on_pairs
def test_coalesce_on_the_gpu(backend, name, dtype):
    dims, width, indices = CASES[name]
    here = make_table(dims, width, dtype)
    away = moved(here)
    grad = torch.randn(indices.numel(), width).to(dtype)
    expected = coalesce(grad, here.rows, indices, padding_idx=2, backend="reference")
    got = coalesce(there(grad), away.rows, there(indices), padding_idx=2, backend=backend)
    assert torch.equal(got[0].cpu(), expected[0])
    agree(got[1], expected[1])


def states(table, algorithm):
    wide = torch.float64 if table.values.dtype == torch.float64 else torch.float32
    size = table.rows.num_rows if algorithm == "row_wise_adagrad" else table.rows.numbers
    first = None if algorithm == "sgd" else torch.rand(size, dtype=wide)
    second = torch.rand(table.rows.numbers, dtype=wide) if algorithm == "adam" else None
    return first, second


@on_backends
@on_pairs
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_update_on_the_gpu(backend, name, dtype, algorithm):
    dims, width, indices = CASES[name]
    here = make_table(dims, width, dtype)
    away, own = moved(here), states(here, algorithm)
    others = there(*own)
    grad = torch.randn(indices.numel(), width).to(dtype)
    jagged = coalesce(grad, here.rows, indices, backend="reference")
    calls = [(here, own, HYPER, jagged, "reference")]
    calls.append((away, others, there(HYPER), there(*jagged), backend))
    for table, state, hyper, (positions, numbers), chosen in calls:
        sparse = torch.sparse_coo_tensor(
            positions[None], numbers, (table.rows.numbers,), is_coalesced=True
        )
        with torch.no_grad():
            update_(
                table.values, *state, hyper, None, table.rows, sparse,
                algorithm=ALGORITHMS[algorithm], backend=chosen,
            )  # fmt: skip
    agree(away.values.detach(), here.values.detach())
    for got, wanted in zip(others, own, strict=True):
        if wanted is not None:
            assert_agree(got.cpu(), wanted, dtype=dtype)


def fused_step(table, backend, algorithm, state, hyper, rounding, grad, indices, offsets):
    """coalesce_update_ with bags of mean pooling."""
    looked_up = (grad, table.rows.index, indices, offsets, None, None, None)
    options = (table.rows.num_rows, table.rows.granule, 1, 2, True, ALGORITHMS[algorithm])
    with torch.no_grad():
        namespace(backend).coalesce_update_(
            table.values, *state, hyper, rounding, *looked_up, *options
        )


@on_backends
@on_pairs
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_fused_update_on_the_gpu(backend, name, dtype, algorithm):
    dims, width, indices = CASES[name]
    here = make_table(dims, width, dtype)
    away, own, offsets = moved(here), states(here, algorithm), bags(indices.numel())
    others = there(*own)
    grad = torch.randn(offsets.numel() - 1, width).to(dtype)
    fused_step(here, "reference", algorithm, own, HYPER, None, grad, indices, offsets)
    fused_step(away, backend, algorithm, others, there(HYPER), None, *there(grad, indices, offsets))
    agree(away.values.detach(), here.values.detach())
    for got, wanted in zip(others, own, strict=True):
        if wanted is not None:
            assert_agree(got.cpu(), wanted, dtype=dtype)


@on_backends
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["odd_width", "skewed_dims", "wide"])
def test_stochastic_rounding_on_the_gpu_bit_for_bit(backend, dtype, name):
    """Gradients are small whole numbers and lr a power of two: only the last rounding is not exact.

    One bag for each lookup, so that mean pooling changes nothing.
    """
    dims, width, indices = CASES[name]
    here = make_table(dims, width, dtype)
    away, nearest = moved(here), moved(here)
    hyper = torch.tensor([2.0**-12, 0, 0, 0, 0, 1], dtype=torch.float64)
    grad = torch.randint(-1, 2, (indices.numel(), width)).to(dtype)
    offsets = torch.arange(indices.numel() + 1)
    none = (None, None)
    fused_step(here, "reference", "sgd", none, hyper, ROUNDING, grad, indices, offsets)
    on_gpu = there(grad, indices, offsets)
    fused_step(away, backend, "sgd", none, there(hyper), there(ROUNDING), *on_gpu)
    fused_step(nearest, backend, "sgd", none, there(hyper), None, *on_gpu)
    assert torch.equal(away.values.cpu(), here.values)
    assert not torch.equal(nearest.values.cpu(), here.values)


@on_backends
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_repack_on_the_gpu_bit_for_bit(backend, dtype):
    old, new = (PackedStorage(dims_of("uniform", 777, 300, seed), 300) for seed in (1, 2))
    bits = torch.randint(0, 256, (old.numbers * dtype.itemsize,), dtype=torch.uint8)
    numbers = bits.view(dtype)
    expected = repack([numbers], old.rows, new.rows, backend="reference")[0]
    rows = [s.rows._replace(index=there(s.index)) for s in (old, new)]
    got = repack([there(numbers)], *rows, backend=backend)[0]
    assert torch.equal(got.cpu().view(torch.uint8), expected.view(torch.uint8))


@on_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_long_runs_of_one_row_give_the_same_bits_every_time(backend, dtype):
    """Runs of 1, of 50 and of tens of thousands of lookups of one row."""
    table = moved(make_table(dims_of("uniform", 5000, 100), 100, dtype))
    indices = torch.cat([torch.arange(5000), torch.randint(0, 100, (5000,))])
    indices = torch.cat([indices, torch.full((40_000,), 17), torch.full((70_001,), 4999)])
    indices = there(indices[torch.randperm(indices.numel())])
    grad = torch.randn(indices.numel(), 100, device=indices.device).to(dtype)
    results = [coalesce(grad, table.rows, indices, backend=backend) for _ in range(3)]
    for positions, numbers in results[1:]:
        assert torch.equal(positions, results[0][0]) and torch.equal(numbers, results[0][1])
    exact = torch.zeros(5000, 100, dtype=torch.float64, device=indices.device)
    exact.index_add_(0, indices, grad.double())
    kept = torch.arange(100, device=indices.device) < table.storage.dims[:, None]
    # Added one by one in float32, 70,001 numbers may be off by as many roundings of the sum.
    allowed = 70_001 * torch.finfo(torch.float32).eps * exact.abs().max()
    rounding = torch.finfo(dtype).eps * exact.abs()[kept] if dtype == torch.bfloat16 else 0
    assert bool(((results[0][1].double() - exact[kept]).abs() <= allowed + rounding).all())
