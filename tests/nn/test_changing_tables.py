"""VarEmbedding and VarEmbeddingBag whose rows change: lookups, training, matrices, files."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from varemb import VarEmbedding, VarEmbeddingBag, optim
from varemb.files import load_state, save_state
from varemb.testing import assert_agree

SIZES = (2, 4, 8)
ROOM = {False: {}, True: {"reserve_numbers": 4000}}  # a packed table grows within a reservation


def step(table, optimizer, rows, bag=False):
    call = (torch.as_tensor(rows)[None],) if bag else (torch.as_tensor(rows),)
    optimizer.zero_grad()
    table(*call).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("unify", ["pad", "linear", "chain"])
def test_a_resizable_table_is_the_packed_one_until_it_changes(unify):
    torch.manual_seed(0)
    dims = torch.tensor(SIZES * 4)
    packed = VarEmbedding(12, 8, dims=dims, unify=unify)
    table = packed.thaw()
    indices = torch.randint(0, 12, (5, 6))
    for _ in range(2):
        grad = torch.randn(5, 6, 8)
        results = []
        for module in (packed, table):
            module.zero_grad()
            out = module(indices)
            out.backward(grad)
            results.append((out, [p.grad for p in module.unify_parameters()]))
        assert_agree(results[1][0], results[0][0])
        for got, expected in zip(results[1][1], results[0][1], strict=True):
            assert_agree(got, expected)
        assert_agree(table.weight.grad.sort().values, packed.weight.grad.sort().values)
        table = table.freeze().thaw(reserve_rows=40)
    assert table.num_embeddings == 40 and table.num_present == 12


@pytest.mark.parametrize("new", [4, 8])
def test_a_chains_map_leaves_the_unified_vector_as_it_is(new):
    table = VarEmbedding(6, 8, dims=2, resizable=True, sizes=SIZES, unify="chain")
    optimizer = optim.Adam([table.weight])
    step(table, optimizer, range(6))
    before = table(torch.arange(6))
    table.resize([1, 4], new, init="map")
    assert table.dims.tolist() == [2, new, 2, 2, new, 2]
    assert_agree(table(torch.arange(6)), before)
    mean = optimizer.state[table.weight]["exp_avg"]
    of_row = {row: mean[slice(*span)] for row, span in spans(table).items()}
    assert not of_row[1].any() and not of_row[4].any()
    assert of_row[0].all() and of_row[5].all()
    if new == 4:
        table.resize([1, 0], [8, 4], init="map")
        assert_agree(table(torch.arange(6)), before)


def spans(table):
    rows = table.storage.present().nonzero()[:, 0].numpy()
    offset, dim = table.storage.spans(rows)
    return {r: (o, o + d) for r, o, d in zip(rows, offset, dim, strict=True)}


def test_chain_map_refuses_what_it_cannot_do():
    table = VarEmbedding(3, 8, dims=[8, 4, 2], resizable=True, sizes=SIZES, unify="chain")
    before = table.to_dense()
    with pytest.raises(ValueError, match="makes rows larger, got 4 to 2 at position 1"):
        table.resize([2, 1], [4, 2], init="map")
    with pytest.raises(ValueError, match="dims must be one of 2, 4, 8, got 5 at position 0"):
        table.resize([2], 5, init="map")
    linear = VarEmbedding(3, 8, dims=4, resizable=True, sizes=SIZES, unify="linear")
    for other in (linear, VarEmbedding(3, 8, resizable=True)):
        with pytest.raises(ValueError, match=r'init="map" needs a table with unify="chain"'):
            other.resize([0], 8, init="map")
    assert torch.equal(table.to_dense(), before)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_table_extended_between_forward_and_backward_refuses_the_gradient(sparse):
    table = VarEmbedding(10, 4, dims=2, resizable=not sparse, sparse=sparse, **ROOM[sparse])
    loss = table(torch.arange(10)).sum()
    table.extend(500, 4)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert table.weight.grad is None


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("resizable", [False, True])
def test_a_backward_from_before_the_index_was_replaced_is_refused(resizable, fused):
    """As many numbers at the same address, but of other rows."""
    table = VarEmbedding(10, 8, dims=3, resizable=resizable, reserve_numbers=4000)
    if fused:
        optim.SGD([table.weight], lr=1.0)
    loss = table(torch.tensor([3])).sum()
    table.extend(2000, 1)
    table.resize([0, 3], [1, 5])
    before = table.to_dense()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert torch.equal(table.to_dense(), before) and table.weight.grad is None


def test_freeze_refuses_sizes_that_packed_rows_are_rounded_from():
    sizes = (3, 300)
    table = VarEmbedding(4, 300, dims=3, resizable=True, sizes=sizes, unify="linear")
    with pytest.raises(ValueError, match=r"multiples of 2 at a width of 300, got \[3, 300\]"):
        table.freeze()


def test_a_weight_without_gradient_has_none_in_the_other_layout():
    table = VarEmbedding(4, 8, dims=2, resizable=True)
    table.weight.requires_grad_(False)
    packed = table.freeze()
    assert not packed.weight.requires_grad and not packed.thaw().weight.requires_grad


def test_every_size_has_its_matrix_from_the_start():
    for unify in ("linear", "chain"):
        table = VarEmbedding(0, 8, resizable=True, sizes=SIZES, unify=unify)
        parameters = list(table.unify_parameters())
        rows = table.extend(3, [2, 4, 8], std=1.0)
        out = table(rows)
        weight, bias = table.unify.matrices()
        first = 0
        for row, size in enumerate(SIZES):
            assert_agree(out[row], table.row(row) @ weight[first : first + size] + bias[row])
            first += size
        assert list(table.unify_parameters()) == parameters
        with pytest.raises(ValueError, match="with resizable=True needs sizes"):
            VarEmbedding(3, 8, resizable=True, unify=unify)


@pytest.mark.parametrize("cls", [optim.Adam, optim.RowWiseAdagrad])
@pytest.mark.parametrize("kind", [VarEmbedding, VarEmbeddingBag])
def test_training_goes_on_through_changes_as_in_a_table_with_masks(cls, kind):
    """Rows that grew with zeros train as rows of a full table whose gradient is masked."""
    table = kind(9, 6, dims=[1, 2, 3] * 3, resizable=True)
    full = kind(9, 6)
    dims = table.dims.clone()
    full.storage.copy_dense_(table.to_dense())
    optimizers = [cls([t.weight], lr=0.1) for t in (table, full)]
    is_bag = kind is VarEmbeddingBag
    generator = torch.Generator().manual_seed(0)
    for turn in range(6):
        rows = torch.randperm(9, generator=generator)[:6]
        for t, optimizer in zip((table, full), optimizers, strict=True):
            call = (rows[None],) if is_bag else (rows,)
            limit = None if t is table else dims[rows].view(call[0].shape)
            t(*call, limit=limit).sin().sum().backward()
            optimizer.step()
        assert_agree(table.to_dense(), full.to_dense())
        grown = torch.randperm(9, generator=generator)[:3]
        dims[grown] = torch.maximum(dims[grown], torch.tensor(1 + turn))
        table.resize(grown, dims[grown])


def test_the_padding_row_stays_zeros_and_cannot_be_removed():
    table = VarEmbedding(4, 6, padding_idx=-2, dims=2, resizable=True)
    table.resize([1, 2], 6, init="normal", std=1.0)
    assert not table.row(2).any() and table.row(1).all()
    table(torch.tensor([2, 1])).sum().backward()
    assert table.weight.grad.count_nonzero() == 6
    with pytest.raises(ValueError, match="row 2 is padding_idx and must stay"):
        table.remove(np.array([1, 2]))
    table.remove(np.array([1]))
    with pytest.raises(IndexError, match=r"absent|must be in"):
        table(torch.tensor([1]))


def test_saved_tables_are_loaded_whatever_rows_the_new_one_has(tmp_path):
    results = []
    table = VarEmbedding(5, 8, dims=2, resizable=True, sizes=SIZES, unify="chain")
    optimizer = optim.Adam([table.weight], lr=0.1)
    step(table, optimizer, range(5))
    table.extend(4, 4, std=1.0)
    table.resize([0, 7], 8, init="map")
    table.remove([2])
    step(table, optimizer, [0, 7, 8])
    save_state(tmp_path / "state", {"model": table.state_dict(), "adam": optimizer.state_dict()})
    other = VarEmbedding(1, 8, dims=8, resizable=True, sizes=SIZES, unify="chain")
    loaded = optim.Adam([other.weight], lr=0.5)
    state = load_state(tmp_path / "state")
    with pytest.raises(ValueError, match="saved exp_avg of parameter 0 has shape"):
        loaded.load_state_dict(state["adam"])
    other.load_state_dict(state["model"])
    loaded.load_state_dict(state["adam"])
    for t, o in ((table, optimizer), (other, loaded)):
        torch.manual_seed(5)
        step(t, o, [0, 1, 7, 8])
        rows = t.extend(3, 4)
        assert rows.tolist() == [2, 9, 10]
        step(t, o, [2, 10])
        t.compact()
        step(t, o, [3, 9])
        rows = torch.tensor([0, 1, 2, 3, 7, 8, 9, 10])
        results.append([t(rows), o.state[t.weight]["step"]])
    assert all(map(torch.equal, *results))


def test_copies_and_conversions_change_alone():
    table = VarEmbedding(5, 8, dims=[1, 2, 3, 4, 5], resizable=True)
    twin = copy.deepcopy(table)
    wide = copy.deepcopy(table).to(torch.float64)
    for other in (twin, wide):
        other.resize([0, 4], [8, 1])
        other.extend(2, 7)
    assert table.dims.tolist() == [1, 2, 3, 4, 5]
    assert wide(torch.tensor([6])).dtype == torch.float64
    kept = torch.minimum(table.dims, twin.dims[:5])[:, None] > torch.arange(8)
    assert torch.equal(twin.to_dense()[:5], table.to_dense() * kept)
    optim.Adam([table.weight])
    with pytest.raises(RuntimeError, match="before the fused optimizer"):
        table.to(torch.float64)


def test_packed_tables_are_rebuilt_inside_their_reservation():
    table = VarEmbedding(6, 8, dims=[1, 2, 3, 4, 5, 6], reserve_numbers=40, sparse=True)
    optimizer = optim.Adagrad([table.weight], fused=False)
    step(table, optimizer, range(6))
    address, before = table.weight.data_ptr(), table.to_dense()
    with pytest.raises(ValueError, match=r"weight.grad must be None \(zero_grad\)"):
        table.resize([0], 2)
    optimizer.zero_grad()
    table.resize([0, 5, 2], [8, 1, 8])
    assert table.extend(2, [6, 5]).tolist() == [6, 7]
    assert table.weight.data_ptr() == address and table.live_numbers == 39
    assert table.weight.untyped_storage().nbytes() == 40 * 4
    kept = torch.tensor([1, 2, 3, 4, 5, 1])[:, None] > torch.arange(8)
    assert torch.equal(table.to_dense()[:6], before * kept)
    dense = table.to_dense()
    for change in (lambda: table.resize([1], 4), lambda: table.extend(1, 2)):
        with pytest.raises(ValueError, match="fit into the reserved 40 numbers, they need 41"):
            change()
    assert torch.equal(table.to_dense(), dense) and table.num_embeddings == 8
    step(table, optimizer, range(8))


def test_refuses_what_cannot_change():
    packed = VarEmbedding(3, 8)
    for change in (lambda: packed.resize([0], 2), lambda: packed.extend(1, 2)):
        with pytest.raises(ValueError, match="with resizable=True or reserve_numbers"):
            change()
    for change in (lambda: packed.remove([0]), packed.compact, packed.freeze):
        with pytest.raises(ValueError, match="build the table with resizable=True"):
            change()
    with pytest.raises(ValueError, match="resizable already"):
        VarEmbedding(3, 8, resizable=True).thaw()
    with pytest.raises(ValueError, match="a table of fields cannot be resizable"):
        VarEmbedding.for_fields([2, 3], 4).thaw()
    with pytest.raises(ValueError, match=r"thaw: a resizable table has no sparse gradients"):
        VarEmbedding(3, 8, sparse=True).thaw()
    for options, message in (
        ({"resizable": True, "sparse": True}, "no sparse gradients"),
        ({"sizes": [2]}, "sizes needs resizable=True"),
        ({"resizable": True, "sizes": [2, 9]}, r"sizes must be in \[0, 8\], got \[2, 9\]"),
        ({"resizable": True, "sizes": []}, "sizes must be in"),
        ({"resizable": True, "sizes": [2, 4], "dims": [2, 4, 3]}, "dims must be of sizes"),
        ({"resizable": True, "reserve_rows": -1}, "reserve_rows must not be negative"),
        ({"reserve_numbers": 23}, "reserve_numbers must be at least the rows' 24 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            VarEmbedding(3, 8, **options)
    matrices = VarEmbedding(3, 8, dims=2, unify="linear", reserve_numbers=50)
    with pytest.raises(ValueError, match="with matrices must be built with resizable=True"):
        matrices.resize([0], 4)
    with pytest.raises(ValueError, match=r"a paged table|no sparse"):
        VarEmbeddingBag(3, 8, resizable=True, sparse=True)


@pytest.mark.parametrize("options", [{"resizable": True}, {"reserve_numbers": 200}])
def test_rows_that_come_in_inference_mode_can_be_trained(options):
    """Ids that an evaluation meets for the first time."""
    table = VarEmbedding(4, 8, dims=4, **options)
    with torch.inference_mode():
        table.extend(6, 5)
        table.resize([0], 8)
    table(torch.arange(10)).square().sum().backward()
    assert table.weight.grad.count_nonzero() == 4 + 12 + 30


def test_sparse_optimizers_of_torch_see_a_plain_parameter():
    """torch's own optimizers train a resizable table with dense gradients."""
    table = VarEmbedding(4, 3, dims=[1, 3, 2, 0], resizable=True)
    theirs = nn.Embedding.from_pretrained(table.to_dense(), freeze=False)
    mask = torch.arange(3) < table.dims[:, None]
    optimizers = [torch.optim.Adam(module.parameters(), lr=0.1) for module in (table, theirs)]
    for _ in range(3):
        for module, optimizer in zip((table, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            module(torch.tensor([1, 0, 1])).square().sum().backward()
            if module is theirs:
                theirs.weight.grad *= mask
            optimizer.step()
    assert_agree(table.to_dense(), theirs.weight.detach())
