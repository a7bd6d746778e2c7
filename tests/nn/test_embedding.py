"""VarEmbedding: torch's module with equal dims, a dense table times a mask with others."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from varemb import SizePlan, VarEmbedding, VarEmbeddingBag
from varemb.nn import filling
from varemb.testing import assert_agree, dims_of, runnable_backends

DIMS = dims_of("uniform", 50, 8)


def test_equal_dims_are_nn_embedding():
    theirs = nn.Embedding(50, 8, padding_idx=3)
    ours = VarEmbedding.from_pretrained(theirs, freeze=False, padding_idx=3)
    indices = torch.randint(0, 50, (4, 9))
    assert torch.equal(ours(indices), theirs(indices))
    grad = torch.randn(4, 9, 8)
    ours(indices).backward(grad)
    theirs(indices).backward(grad)
    assert_agree(ours.weight.grad.view(50, 8), theirs.weight.grad)


def test_from_pretrained_keeps_each_rows_first_numbers():
    dense = torch.randn(50, 8)
    ours = VarEmbedding.from_pretrained(dense, dims=DIMS)
    assert torch.equal(ours.to_dense(), dense * (torch.arange(8) < DIMS[:, None]))
    assert torch.equal(ours.dims, DIMS)
    assert not ours.weight.requires_grad
    assert all(torch.equal(ours.row(r), dense[r, : DIMS[r]]) for r in range(50))


@pytest.mark.parametrize("width", [255, 256, 300, 510, 511, 1021, 2047, 2048])
def test_wide_tables_store_dims_in_granules(width):
    dims = torch.tensor([0, 1, 7, width - 1, width])
    ours = VarEmbedding(5, width, dims=dims)
    granule = ours.storage.granule
    assert granule == {255: 1, 256: 2, 300: 2, 510: 2, 511: 4, 1021: 8, 2047: 16, 2048: 16}[width]
    stored = ((dims + granule - 1) // granule * granule).clamp(max=width)
    assert torch.equal(ours.dims, stored)
    dense = torch.randn(5, width)
    ours.storage.copy_dense_(dense)
    assert torch.equal(ours.to_dense(), dense * (torch.arange(width) < stored[:, None]))


def test_for_fields_reads_every_field_from_its_own_rows():
    fields = VarEmbedding.for_fields([5, 1, 3], 4, dims=[4, 0, 2])
    assert fields.dims.tolist() == [4] * 5 + [0] + [2] * 3
    ids = torch.tensor([[4, 0, 2], [0, 0, 0]])
    assert torch.equal(fields(ids), fields.to_dense()[torch.tensor([[4, 5, 8], [0, 5, 6]])])
    plan = SizePlan.for_fields({"a": 5, "b": 1, "c": 3}, 4, {"a": 4, "b": 0, "c": 2})
    assert torch.equal(VarEmbedding.for_fields([5, 1, 3], 4, dims=plan).dims, fields.dims)


@pytest.mark.parametrize("make", [tuple, np.array, torch.tensor, iter, np.uint8])
def test_for_fields_takes_cardinalities_of_any_kind(make):
    fields = VarEmbedding.for_fields(make([5, 1, 3]), 4, dims=np.array([4, 0, 2]))
    assert fields.dims.tolist() == [4] * 5 + [0] + [2] * 3
    assert fields(torch.tensor([[4, 0, 2]])).shape == (1, 3, 4)


def test_for_fields_refuses_what_are_no_cardinalities_and_a_plan_of_another_width():
    message = r"^VarEmbedding\.for_fields: cardinalities must be whole numbers, one per field, got"
    for cardinalities in (5, [2.0, 3.0], torch.tensor([2.5]), ["a"], None):
        with pytest.raises(TypeError, match=message):
            VarEmbedding.for_fields(cardinalities, 4)
    for cardinalities in ([], torch.tensor([3, 0])):
        with pytest.raises(ValueError, match="cardinalities must be at least 1, got"):
            VarEmbedding.for_fields(cardinalities, 4)
    plan = SizePlan.for_fields({"a": 5, "b": 1}, {"a": 8, "b": 4}, {"a": 4, "b": 0})
    with pytest.raises(ValueError, match=r"plan's tables must be 4 wide, got {'a': 8, 'b': 4}"):
        VarEmbedding.for_fields([5, 1], 4, dims=plan)


@pytest.mark.parametrize("dim", [np.int64(4), np.uint8(4), torch.tensor(4), np.array(4), 4.0])
def test_one_dim_for_all_rows_may_be_of_any_kind(dim):
    assert VarEmbedding(5, 8, dims=dim).dims.tolist() == [4] * 5
    assert VarEmbedding.for_fields([2, 3], 8, dims=dim).dims.tolist() == [4] * 5
    assert VarEmbeddingBag(5, 8, dims=dim).dims.tolist() == [4] * 5


def test_a_whole_plan_is_refused_with_what_to_pass_instead():
    plan = SizePlan({"item": [1, 2], "user": [2]}, 4)
    for module in (VarEmbedding, VarEmbeddingBag):
        with pytest.raises(TypeError, match=r"pass plan\['item'\]; got .* tables 'item', 'user'$"):
            module(2, 4, dims=plan)


def test_for_fields_refuses_an_id_of_another_field():
    fields = VarEmbedding.for_fields([5, 1, 3], 4)
    with pytest.raises(IndexError, match=r"ids of field 1 must be in \[0, 1\), got 1"):
        fields(torch.tensor([[0, 1, 0]]))
    with pytest.raises(IndexError, match=r"field 0 .* got -1"):
        fields(torch.tensor([[-1, 0, 0]]))
    with pytest.raises(ValueError, match="must have 3 fields"):
        fields(torch.tensor([[0, 0]]))
    with pytest.raises(TypeError, match="ids must be int32 or int64, got float32"):
        fields(torch.zeros(1, 3))
    plan = SizePlan.for_fields({"a": 5, "b": 2, "c": 3}, 4, {"a": 4, "b": 0, "c": 2})
    with pytest.raises(ValueError, match="one table per field"):
        VarEmbedding.for_fields([5, 1, 3], 4, dims=plan)


@pytest.mark.parametrize("unify", ["linear", "chain"])
def test_unify_is_a_map_per_field_and_size(unify):
    fields = VarEmbedding.for_fields([5, 4], 6, dims=[2, 6], unify=unify)
    ids = torch.tensor([[4, 3], [0, 1]])
    weight, bias = fields.unify.matrices()
    dense = fields.to_dense()
    for column, (first, size, start) in enumerate([(0, 2, 0), (2, 6, 5)]):
        rows = dense[ids[:, column] + start, :size]
        expected = rows @ weight[first : first + size] + bias[column]
        assert_agree(fields(ids)[:, column], expected)
    assert sum(p.numel() for p in fields.unify_parameters()) > 0
    with pytest.raises(ValueError, match="limit needs unify='pad'"):
        fields(ids, limit=2)


def test_chain_is_consecutive_maps_and_identity_at_full_width():
    table = VarEmbedding(6, 8, dims=[2, 4, 8, 2, 4, 8], unify="chain")
    maps = table.unify.maps[0]
    out = table(torch.arange(6))
    assert_agree(out[2], table.row(2))
    assert_agree(out[1], maps[1](table.row(1)))
    assert_agree(out[0], maps[1](maps[0](table.row(0))))


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ([-1] + [2] * 4, r"dims must be in \[0, 8\], got -1 for row 0"),
        ([2] * 4 + [9], r"dims must be in \[0, 8\], got 9 for row 4"),
        ([2] * 4, r"one number per row, 5, got shape \[4\]"),
        ([2, 2, 2.5, 2, 2], "dims must be whole, got 2.5 for row 2"),
        ([2, 2, float("nan"), 2, 2], "dims must be whole, got nan for row 2"),
        (9, "got 9"),
        (torch.tensor([0, 8, 300, -1, 0]), r"in \[0, 8\], got 300 for row 2"),
        (np.array([9, 1, 1, 1, 2**63], np.uint64), "got 9 for row 0"),
        (list("abcde"), "dims must be whole numbers, got <U1"),
        (4.5, "dims must be whole, got 4.5 for row 0"),
        ({3: 4}, "dims must be whole numbers, got object"),
    ],
)
def test_refuses_dims_that_do_not_fit(dims, message):
    with pytest.raises(ValueError, match=message):
        VarEmbedding(5, 8, dims=dims)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float16, np.float64])
def test_dims_may_be_of_any_dtype_and_read_only(dtype):
    dims = np.array([8, 0, 3, 1, 2]).astype(dtype)
    dims.flags.writeable = False
    assert VarEmbedding(5, 8, dims=dims).dims.tolist() == [8, 0, 3, 1, 2]
    low = torch.tensor([8.0, 0, 3, 1, 2], dtype=torch.bfloat16)
    assert VarEmbedding(5, 8, dims=low).dims.tolist() == [8, 0, 3, 1, 2]


def test_a_table_does_not_hang_on_the_dims_it_was_given():
    dims = torch.tensor([8, 0, 3, 1, 2], dtype=torch.int16)
    for resizable in (False, True):
        table = VarEmbedding(5, 8, dims=dims, resizable=resizable)
        dims.add_(1)
        assert table.dims.tolist() == [8, 0, 3, 1, 2]
        dims.sub_(1)


def test_refuses_options_by_name():
    with pytest.raises(ValueError, match=r"embedding_dim must be in \[1, 2048\], got 2049"):
        VarEmbedding(5, 2049)
    with pytest.raises(ValueError, match="max_norm"):
        VarEmbedding(5, 8, max_norm=1.0)
    with pytest.raises(ValueError, match="scale_grad_by_freq"):
        VarEmbedding(5, 8, scale_grad_by_freq=True)
    with pytest.raises(ValueError, match="padding_idx must be within"):
        VarEmbedding(5, 8, padding_idx=5)
    with pytest.raises(ValueError, match="unify must be pad, linear or chain, got 'zip'"):
        VarEmbedding(5, 8, unify="zip")
    with pytest.raises(TypeError, match="max_nrom"):
        VarEmbedding(5, 8, max_nrom=1.0)


@pytest.mark.parametrize("indices", [[0, 1], np.array([0, 1]), 1, None], ids=lambda i: str(type(i)))
def test_refuses_indices_that_are_no_tensor(indices):
    found = type(indices).__name__
    tables = [
        ("lookup: indices", VarEmbedding(5, 8)),
        ("lookup_linear: indices", VarEmbedding(5, 8, unify="linear")),
        ("field_rows: ids", VarEmbedding.for_fields([3, 2], 8)),
        ("lookup_bag: indices", VarEmbeddingBag(5, 8)),
    ]
    for what, table in tables:
        with pytest.raises(TypeError, match=rf"^{what} must be a Tensor, got {found}$"):
            table(indices)
    bag, rows = VarEmbeddingBag(5, 8, mode="sum"), torch.tensor([0, 1])
    with pytest.raises(TypeError, match=r"^lookup_bag: offsets must be a Tensor, got list$"):
        bag(rows, [0])
    with pytest.raises(TypeError, match=r"^lookup_bag: per_sample_weights must be a Tensor, got l"):
        bag(rows, torch.tensor([0]), [1.0, 2.0])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.bool, torch.float8_e5m2])
def test_refuses_dtypes_that_it_cannot_look_up(dtype):
    message = rf"dtype must be float32, .* or bfloat16, got {str(dtype)[6:]}$"
    for module in (VarEmbedding, VarEmbeddingBag):
        for resizable in (False, True):
            with pytest.raises(TypeError, match=f"^{module.__name__}: {message}"):
                module(5, 8, dtype=dtype, resizable=resizable)
        with pytest.raises(TypeError, match=message):
            module.from_pretrained(torch.zeros(5, 8).to(dtype))


def test_deepcopy_and_dtype_conversion():
    table = VarEmbedding(50, 8, dims=DIMS)
    indices = torch.randint(0, 50, (20,))
    copied = copy.deepcopy(table)
    with torch.no_grad():
        copied.weight.add_(1)
    assert not torch.equal(copied(indices), table(indices))
    half = copy.deepcopy(table).to(torch.bfloat16)
    assert half(indices).dtype == torch.bfloat16
    assert torch.equal(half(indices), table(indices).to(torch.bfloat16))
    assert half.storage.index.dtype == torch.int64


def test_autocast_leaves_lookups_and_casts_what_follows():
    table, linear = VarEmbedding(50, 8, dims=DIMS), nn.Linear(8, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = table(torch.randint(0, 50, (20,)))
        out = linear(rows)
    assert rows.dtype == torch.float32 and out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert table.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("unify", ["pad", "linear", "chain"])
def test_compile_fullgraph(sparse, unify):
    torch._dynamo.reset()
    model = nn.Sequential(
        VarEmbedding.for_fields([30, 20], 8, dims=[8, 3], unify=unify, sparse=sparse),
        nn.Flatten(),
        nn.Linear(16, 1),
    )
    ids = torch.stack([torch.randint(0, 30, (40,)), torch.randint(0, 20, (40,))], 1)
    expected = model(ids)
    expected.sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    out = torch.compile(model, fullgraph=True, backend="aot_eager")(ids)
    out.sum().backward()
    assert_agree(out, expected)
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert p.grad.is_sparse == grad.is_sparse
        assert_agree(p.grad.to_dense(), grad.to_dense())


@pytest.mark.parametrize("backend", runnable_backends())
def test_sparse_gradient_trains_under_torch_optimizers(backend):
    """SparseAdam on the sparse gradient touches only looked-up rows."""
    table = VarEmbedding(50, 8, dims=DIMS, sparse=True, backend=backend)
    before = table.to_dense()
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.1)
    indices = torch.tensor([1, 2, 2, 40])
    table(indices).square().sum().backward()
    assert table.weight.grad.is_sparse
    optimizer.step()
    changed = (table.to_dense() != before).any(1).nonzero()[:, 0]
    expected = [r for r in (1, 2, 40) if DIMS[r] > 0]
    assert changed.tolist() == expected


@pytest.mark.parametrize("backend", runnable_backends())
def test_training_equals_a_dense_table_times_a_mask(backend):
    """200 Adam steps, identical losses; numbers outside the mask never change."""
    torch.manual_seed(1)
    rows, width = 128, 16
    dims = torch.randint(0, width + 1, (rows,))
    dims[0] += (-int(dims.sum())) % 16 if dims[0] + (-int(dims.sum())) % 16 <= width else 0
    dense = torch.randn(rows, width)
    mask = (torch.arange(width) < dims[:, None]).float()
    torch.manual_seed(2)
    heads = [nn.Linear(width, 1), nn.Linear(width, 1)]
    heads[1].load_state_dict(heads[0].state_dict())
    jagged = VarEmbedding.from_pretrained(dense, freeze=False, dims=dims, backend=backend)
    masked = nn.Parameter(dense.clone())
    options = {"lr": 0.01, "foreach": False}
    optimizers = [
        torch.optim.Adam([jagged.weight, *heads[0].parameters()], **options),
        torch.optim.Adam([masked, *heads[1].parameters()], **options),
    ]
    losses = []
    for _ in range(200):
        indices, target = torch.randint(0, rows, (64,)), torch.randn(64, 1)
        looked_up = [jagged(indices), nn.functional.embedding(indices, masked * mask)]
        step = []
        for block, head, optimizer in zip(looked_up, heads, optimizers, strict=True):
            loss = nn.functional.mse_loss(head(block).tanh(), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.append(loss.item())
        losses.append(step)
    ours, theirs = torch.tensor(losses).unbind(1)
    if backend == "reference":
        assert torch.equal(ours, theirs)
    assert (ours - theirs).abs().max() <= 1e-6
    outside = mask == 0
    assert torch.equal(masked[outside], dense[outside])


def first_numbers(threads: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        return VarEmbedding(1000, 8, dims=7, dtype=dtype).weight.detach()
    finally:
        torch.set_num_threads(before)


def test_first_numbers_of_a_small_table_are_those_of_torch():
    numbers = first_numbers(1)
    torch.manual_seed(0)
    assert torch.equal(numbers, torch.empty(7000).normal_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_first_numbers_of_a_large_table_are_normal_and_the_same_on_any_threads(monkeypatch, dtype):
    monkeypatch.setattr(filling, "_FILLED_AT_A_TIME", 1024)
    numbers = first_numbers(1, dtype)
    assert torch.equal(numbers, first_numbers(2, dtype))
    assert abs(numbers.double().mean()) < 0.06 and abs(numbers.double().std() - 1) < 0.04
    parts = numbers.split(1024)  # the last one is shorter
    assert len({part[0].item() for part in parts}) == len(parts)


def test_first_numbers_of_a_large_table_leave_the_padding_row_zero(monkeypatch):
    monkeypatch.setattr(filling, "_FILLED_AT_A_TIME", 16)
    table = VarEmbedding(50, 8, padding_idx=3, dims=7)
    assert not table.row(3).any() and table.row(4).all()
