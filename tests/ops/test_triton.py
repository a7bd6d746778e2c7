"""What is Triton's own: runs in windows, classes of dims, tiles, compiling without a GPU."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ops.cases import CASES, need_interpreter
from ops.test_layouts import broken

from varemb.ops import reference
from varemb.testing import DTYPES, assert_agree, dims_of, make_table

need_interpreter()

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from varemb.ops import triton as kernels  # noqa: E402
from varemb.ops.triton import gradient, launch, terms, weight_gradient  # noqa: E402
from varemb.ops.triton.rows import look_up, places  # noqa: E402

PACKAGE = Path(kernels.__file__).parent
HYPER = torch.tensor([0.125, 0.0, 1e-8, 0.9, 0.999, 3.0], dtype=torch.float64)


def looked_up(table, indices, *, limit=None, padding_idx=-1, pooling=None, offsets=None):
    """Arguments of the gradient operations, with small whole numbers, whose sums are exact."""
    rows = table.rows
    sources = indices.numel() if offsets is None else offsets.numel()
    dtype = table.values.dtype
    grad = torch.randint(-3, 4, (sources, rows.width)).to(dtype)
    winners = None
    if pooling == 2:
        winners = torch.randint(0, indices.numel(), grad.shape, dtype=torch.int32)
    options = (rows.num_rows, rows.granule, pooling or 0, padding_idx, False)
    return grad, rows.index, indices, offsets, None, limit, winners, *options


def assert_forms_agree(table, call, algorithms=(0,)):
    """Dense, sparse and fused gradients are the reference's, bit for bit where sums are exact."""
    numbers = table.rows.numbers
    dense = kernels.coalesce_dense(*call, numbers)
    assert torch.equal(dense, reference.coalesce_dense(*call, numbers))
    positions, sums = kernels.coalesce(*call, numbers)
    expected = reference.coalesce(*call, numbers)
    assert torch.equal(positions, expected[0]) and torch.equal(sums, expected[1])
    for algorithm in algorithms:
        results = []
        for backend in (kernels, reference):
            torch.manual_seed(3)
            values = table.values.detach().clone()
            size = table.rows.num_rows if algorithm == 2 else numbers
            first = torch.rand(size) if algorithm else None
            second = torch.rand(numbers) if algorithm == 3 else None
            backend.coalesce_update_(values, first, second, HYPER, None, *call, algorithm)
            results.append([t for t in (values, first, second) if t is not None])
        for got, wanted in zip(*results, strict=True):
            assert_agree(got, wanted)
            assert algorithm or torch.equal(got, wanted)


def lookups_of(counts):
    """Each row as often as counts say, shuffled. [sum of counts]"""
    rows = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return rows[torch.randperm(rows.numel())]


@pytest.mark.parametrize(
    "counts",
    [[17], [16, 17, 32], [16, 64, 0, 48], [5, 31, 2, 100, 3, 17, 16]],
    ids=str,
)
@pytest.mark.parametrize("kind", ["rows", "limits", "mean", "max", "padding"])
def test_long_runs_are_added_across_windows(monkeypatch, counts, kind):
    """Runs that begin and end before, at and after the edges of windows of 16."""
    monkeypatch.setattr(gradient, "WINDOW", 16)
    table, indices = make_table(dims_of("uniform", len(counts), 21), 21), lookups_of(counts)
    count = indices.numel()
    options = {}
    if kind == "limits":
        options["limit"] = torch.randint(0, 22, (count,), dtype=torch.int32)
    if kind in ("mean", "max"):
        options = {"pooling": 1 if kind == "mean" else 2, "offsets": torch.arange(0, count, 4)}
    if kind == "mean":  # four to a bag, so that the mean of whole numbers is exact
        indices = indices[: count // 4 * 4]
        options["offsets"] = torch.arange(0, indices.numel(), 4)
    if kind == "padding":
        options["padding_idx"] = len(counts) - 1
    algorithms = range(4) if kind == "limits" else (0,)
    assert_forms_agree(table, looked_up(table, indices, **options), algorithms)


@pytest.mark.parametrize("padding_idx", [-1, 0])
def test_classes_times_rows_may_pass_2_to_the_31(monkeypatch, padding_idx):
    """A table of 800 million rows, of which the first six are looked up, some in long runs."""
    monkeypatch.setattr(gradient, "BUCKETED_LOOKUPS", 1)
    monkeypatch.setattr(gradient, "WINDOW", 16)
    monkeypatch.setattr(terms, "check_rows", lambda *given: None)  # the index of six rows will do
    table = make_table(torch.tensor([3, 9, 64, 17, 33, 8]), 64)
    call = looked_up(table, lookups_of([40, 2, 50, 1, 17, 3]), padding_idx=padding_idx)
    many = (*call[:7], 800_000_000, *call[8:])
    numbers = table.rows.numbers
    assert torch.equal(
        kernels.coalesce_dense(*many, numbers), reference.coalesce_dense(*call, numbers)
    )


def test_a_long_run_of_the_real_window():
    table, indices = make_table(torch.tensor([3, 9, 5]), 9), lookups_of([256, 600, 257])
    assert_forms_agree(table, looked_up(table, indices))


def test_an_index_on_another_device_is_refused():
    """A kernel would read another GPU's memory."""
    table = make_table(torch.tensor([3, 9, 5]), 9)
    rows, indices = table.rows, torch.tensor([0, 2])
    with pytest.raises(ValueError, match="index must be on the device of indices cpu, got meta"):
        kernels.lookup(table.values, rows.index.to("meta"), indices, None, 3, 9, rows.granule)


def test_class_widths_begin_at_the_threshold():
    threshold = gradient.BUCKETED_LOOKUPS
    assert gradient.class_widths(64, threshold - 1) == [64]
    assert gradient.class_widths(64, threshold) == [8, 32, 64]
    assert gradient.class_widths(2048, threshold) == [8, 32, 128, 512, 2048]
    assert gradient.class_widths(100, threshold) == [8, 32, 128]
    assert gradient.class_widths(8, threshold) == [8]
    assert gradient.class_widths(1, threshold) == [1]


@pytest.mark.parametrize("width", [8, 9, 33, 130])
def test_rows_routed_by_their_dim_agree(monkeypatch, width):
    monkeypatch.setattr(gradient, "BUCKETED_LOOKUPS", 1)
    monkeypatch.setattr(gradient, "WINDOW", 32)
    table = make_table(dims_of("uniform", 60, width), width)
    indices = torch.cat([torch.randint(0, 60, (150,)), lookups_of([20, 0, 40])])
    limit = torch.randint(0, width + 1, indices.shape, dtype=torch.int32)
    assert_forms_agree(table, looked_up(table, indices, limit=limit, padding_idx=7), range(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tiles_of_a_gpu_agree(monkeypatch, dtype):
    """The tiles and the few programs that a GPU gets, interpreted."""
    monkeypatch.setattr(launch, "is_interpreted", lambda tensor: False)
    monkeypatch.setattr(launch, "programs_limit", lambda tensor: 3)
    monkeypatch.setattr(gradient, "programs_limit", lambda tensor: 3)
    dims, width, indices = CASES["odd_width"]
    indices = indices[:200]
    table, where = make_table(dims, width, dtype), (dims.numel(), width, 1)
    values, index = table.values.detach(), table.rows.index
    lookups = (values, index, indices, None, *where)
    assert torch.equal(kernels.lookup(*lookups), reference.lookup(*lookups))
    offsets = torch.tensor([0, 0, 9, 60, 61, 150])
    for pooling in range(3):
        call = (values, index, indices, offsets, None, None, *where, pooling, 3, False)
        (got, winners), (expected, first) = kernels.lookup_bag(*call), reference.lookup_bag(*call)
        assert_agree(got, expected)
        assert torch.equal(winners, first)
    call = looked_up(table, indices)
    assert_agree(
        kernels.coalesce_dense(*call, values.numel()),
        reference.coalesce_dense(*call, values.numel()),
    )


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matrices_that_share_rows_and_biases(monkeypatch, splits, dtype):
    """Three dims whose matrices overlap, two of them with one bias, in partial sums."""
    monkeypatch.setattr(weight_gradient, "weight_splits", lambda lookups: splits)
    width, outputs = 40, 70
    dims = torch.tensor([3, 20, 40] * 20)
    table, indices = make_table(dims, width, dtype), torch.randint(0, 60, (300,))
    groups = torch.full((1, width + 1, 2), -1)
    groups[0, 3], groups[0, 20], groups[0, 40] = torch.tensor([[30, 0], [0, 1], [10, 0]])
    weight, bias = torch.randn(50, outputs).to(dtype), torch.randn(2, outputs).to(dtype)
    linear = (table.values.detach(), table.rows.index, indices, groups, weight, bias, 60, width, 1)
    assert_agree(kernels.lookup_linear(*linear), reference.lookup_linear(*linear))
    grad = torch.randn(300, outputs).to(dtype)
    got = kernels.lookup_linear_backward(grad, *linear)
    expected = reference.lookup_linear_backward(grad, *linear)
    for ours, theirs in zip(got, expected, strict=True):
        assert_agree(ours, theirs)


def test_weight_splits_begin_with_many_lookups():
    assert [weight_gradient.weight_splits(n) for n in (1, 16383, 16384)] == [1, 1, 16]


@pytest.mark.parametrize("bad", [-1, 40, 2**40])
def test_a_kernel_reads_nothing_for_an_index_outside_the_table(monkeypatch, bad):
    """Without the host's check, as on a GPU before its assert; the interpreter has no asserts."""
    module = sys.modules["varemb.ops.triton.lookup"]  # the package's `lookup` is the function
    monkeypatch.setattr(module, "check_indices", lambda *arguments: None)
    table = make_table(dims_of("equal", 40, 8), 8)
    indices = torch.tensor([3, bad, 5])
    out = kernels.lookup(table.values.detach(), table.rows.index, indices, None, 40, 8, 1)
    assert torch.equal(out, table.dense[[3, 0, 5]] * torch.tensor([[1.0], [0.0], [1.0]]))


@triton.jit
def is_row_kernel(
    out_ptr, index_ptr, indices_ptr, num_rows, width, granule, chunks, numbers,
    ROWS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    lookup = tl.arange(0, ROWS)
    _, _, _, is_row = look_up(
        index_ptr, indices_ptr, None, lookup, lookup >= 0, num_rows, width, granule, chunks,
        numbers, 0,
    )  # fmt: skip
    tl.store(out_ptr + lookup, is_row.to(tl.int32))


@pytest.mark.parametrize("how", ["removed", "chunk_outside", "numbers_outside"])
def test_a_kernel_reads_nothing_for_a_row_that_a_paged_table_lacks(monkeypatch, how):
    module = sys.modules["varemb.ops.triton.lookup"]
    monkeypatch.setattr(module, "check_indices", lambda *arguments: None)
    table = make_table(dims_of("equal", 40, 8), 8, layout="paged")
    rows, indices = broken(table, how), torch.tensor([3, 5, 7, 0])
    out = kernels.lookup(table.values.detach(), rows.index, indices, None, 40, 8, 1)
    assert torch.equal(out, table.dense[indices] * torch.tensor([1.0, 0, 1, 1])[:, None])
    asserted = torch.empty(4, dtype=torch.int32)
    where = places(rows.index, 40, 8, 1, rows.numbers)
    is_row_kernel[(1,)](out_ptr=asserted, indices_ptr=indices, **where, ROWS=4)
    assert asserted.tolist() == [1, 0, 1, 1]


def test_operations_check_their_own_contract():
    table = make_table(dims_of("uniform", 40, 8), 8)
    values, index, indices = table.values.detach(), table.rows.index, torch.tensor([1])
    with pytest.raises(ValueError, match="too few for 49 rows"):
        kernels.lookup(values, index, indices, None, 49, 8, 1)
    with pytest.raises(ValueError, match="int32 or int64, got float32"):
        kernels.lookup(values, index, indices.float(), None, 40, 8, 1)
    with pytest.raises(ValueError, match="limit must have one element or one per index"):
        limit = torch.ones(2, dtype=torch.int32)
        kernels.lookup(values, index, torch.tensor([1, 2, 3]), limit, 40, 8, 1)
    with pytest.raises(ValueError, match="winners belong to max, and only to max"):
        call = (torch.zeros(1, 8), index, indices, torch.tensor([0]), None, None, None, 40, 1, 2)
        kernels.coalesce_dense(*call, -1, False, values.numel())
    with pytest.raises(ValueError, match="state1 is missing"):
        call = looked_up(table, indices)
        kernels.coalesce_update_(values, None, None, HYPER, None, *call, 1)


def kernel_names():
    """Every function of the package that is launched."""
    for path in PACKAGE.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                yield node.name


@pytest.mark.parametrize("target", ["80:bfloat16", "90:float32"])
def test_every_kernel_compiles_to_machine_code(tmp_path, target):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    program = Path(__file__).parent / "compile_kernels.py"
    run = subprocess.run(
        [sys.executable, str(program), target], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [line.split() for line in run.stdout.splitlines()]
    assert {line[1] for line in lines} == set(kernel_names())
    assert all(int(line[2]) > 1000 for line in lines)
    asserting = {line[1] for line in lines if line[3] == "True"}
    reading = {"lookup_kernel", "lookup_bag_kernel", "lookup_keys_kernel", "lookup_cells_kernel"}
    assert reading <= asserting
    # Each warp reads a row's state, and one of them writes it: a race that no interpreter shows.
    row_wise = [line for line in lines
                if line[1] == "finish_windows_kernel" and "ALGORITHM=2" in line]  # fmt: skip
    assert row_wise and all(line[4] == "True" for line in row_wise)
