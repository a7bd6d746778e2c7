"""Tables made without memory, given some, and filled anew."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from varemb import SizePlan, VarEmbedding, VarEmbeddingBag, convert

DIMS = [4, 0, 1, 2, 4, 2, 1]
IDS = torch.tensor([[0, 2], [3, 1], [0, 0]])  # of rows, and of two fields
MAKERS = {
    "packed": lambda **place: VarEmbedding(7, 4, 4, dims=DIMS, **place),
    "wide": lambda **place: VarEmbedding(7, 300, dims=[d * 70 for d in DIMS], **place),
    "bag": lambda **place: VarEmbeddingBag(7, 4, dims=DIMS, padding_idx=0, **place),
    "reserved": lambda **place: VarEmbedding(7, 4, dims=DIMS, reserve_numbers=99, **place),
    "resizable": lambda **place: VarEmbedding(
        7, 4, 4, dims=DIMS, resizable=True, reserve_numbers=99, **place
    ),
    "linear": lambda **place: VarEmbedding(7, 4, dims=DIMS, unify="linear", **place),
    "chain": lambda **place: VarEmbedding(7, 4, dims=DIMS, unify="chain", **place),
    "full chain": lambda **place: VarEmbedding(7, 4, dims=4, unify="chain", **place),
    "growing chain": lambda **place: VarEmbedding(
        7, 4, dims=DIMS, unify="chain", resizable=True, sizes=[0, 1, 2, 4], **place
    ),
    "fields": lambda **place: VarEmbedding.for_fields([4, 3], 4, [4, 1], unify="linear", **place),
}


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


@pytest.mark.parametrize("in_context", [False, True])
def test_a_table_made_on_meta_is_that_of_the_state_dict_it_loads(make, in_context):
    real = make()
    if in_context:
        with torch.device("meta"):
            table = make()
    else:
        table = make(device="meta")
    assert all(p.is_meta for p in table.parameters())
    assert table.dims.tolist() == real.dims.tolist()
    table.to_empty(device="cpu")
    table.load_state_dict(real.state_dict())
    assert torch.equal(table.to_dense(), real.to_dense())
    assert torch.equal(table(IDS), real(IDS))


def test_forward_on_meta_has_the_shape_and_no_numbers():
    for name in ("packed", "bag", "resizable", "linear", "fields"):
        table = MAKERS[name](device="meta")
        out = table(IDS.to("meta"))
        assert out.is_meta and out.shape == MAKERS[name]()(IDS).shape


def test_a_chain_has_a_forward_on_meta():
    table = VarEmbedding(4, 8, dims=[2, 4, 8, 8], unify="chain", device="meta")
    assert table(torch.zeros(3, dtype=torch.int64, device="meta")).shape == (3, 8)


@pytest.mark.parametrize("resizable", [False, True])
def test_the_index_follows_numbers_that_were_moved_alone(resizable):
    """As sharding and replicas move them: parameters and buffers one by one."""
    storage = VarEmbedding(4, 8, dims=2, resizable=resizable).storage
    index = storage.index
    assert storage.beside("index", storage.weight) is index
    elsewhere = SimpleNamespace(device=torch.device("meta"), is_meta=False)
    assert storage.beside("index", elsewhere).is_meta and storage.index.is_meta


def test_to_empty_keeps_where_rows_are(make):
    """The index says it, which no state dict has: only the numbers are made anew."""
    table, real = make(), make()
    nn.Sequential(table).to_empty(device="cpu")
    assert table.weight.isnan().all()  # as the tests fill new memory
    table.load_state_dict(real.state_dict())
    assert torch.equal(table(IDS), real(IDS))
    double, wide = table.double(), real.double()(IDS)
    assert wide.dtype == torch.float64 and torch.equal(double(IDS), wide)


def test_reset_parameters_gives_first_numbers(make):
    table = make().to_empty(device="cpu")
    table.weight.requires_grad_(False)
    torch.manual_seed(3)
    table.reset_parameters()
    row = table.padding_idx
    padding = 0 if row is None else int(table.dims[row])
    numbers = table.weight[: table.live_numbers]
    assert numbers.count_nonzero() == table.live_numbers - padding
    assert not table.weight[table.live_numbers :].any()
    assert row is None or not table.row(row).any()
    assert table(IDS).isfinite().all() and not table.weight.requires_grad
    torch.manual_seed(3)
    expected = torch.empty(table.live_numbers).normal_()
    assert torch.equal(numbers[numbers != 0], expected[numbers != 0])


def test_reset_parameters_leaves_gaps_between_rows_zero():
    table = VarEmbedding(7, 4, 4, dims=DIMS, resizable=True)
    table.remove([3])
    table.resize([0, 2], [1, 3])
    before = table.to_dense()
    table.reset_parameters()
    assert table.fragmentation > 1 and table.storage.used_numbers > table.live_numbers
    assert table.weight.count_nonzero() == table.live_numbers - 4
    after, dims = table.to_dense(), table.dims.clone()
    dims[4] = 0  # the padding row's numbers are zeros
    assert torch.equal(after != 0, torch.arange(4) < dims[:, None])
    assert not torch.equal(after[6], before[6])


def test_convert_of_a_model_on_meta():
    model = nn.Sequential(nn.Embedding(7, 4, padding_idx=4, device="meta"))
    convert(model, SizePlan({"0": DIMS}, 4)).to_empty(device="cpu")
    real = nn.Sequential(MAKERS["packed"]())
    model.load_state_dict(real.state_dict())
    assert torch.equal(model(IDS), real(IDS))
