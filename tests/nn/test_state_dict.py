"""What a table's state dict holds and which it takes; averages of models."""

import io

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from varemb import VarEmbedding
from varemb.testing import dims_of

DIMS = dims_of("uniform", 50, 8)


def test_state_dict_holds_the_numbers_and_the_dims_alone():
    table = VarEmbedding(50, 8, dims=DIMS)
    state = table.state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == {
        "storage.weight": (int(DIMS.sum()),),
        "storage.dims": (50,),
    }
    other = VarEmbedding(50, 8, dims=DIMS)
    other.load_state_dict(state)
    assert torch.equal(other.to_dense(), table.to_dense())
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))


def test_state_dict_of_another_table_is_refused():
    state = VarEmbedding(50, 8, dims=DIMS).state_dict()
    other = DIMS.clone()
    other[7], other[9] = DIMS[9] + (DIMS[9] == DIMS[7]).long(), DIMS[7]
    before = VarEmbedding(50, 8, dims=other.clamp(max=8))
    kept = before.weight.detach().clone()
    with pytest.raises(RuntimeError, match="rows have other dims, first row 7"):
        before.load_state_dict(state)
    assert torch.equal(before.weight, kept)
    with pytest.raises(RuntimeError, match="saved for 50 rows, this table has 51"):
        VarEmbedding(51, 8).load_state_dict(state)
    del state["storage.dims"]
    with pytest.raises(RuntimeError, match=r"Missing key.*storage\.dims"):
        VarEmbedding(50, 8, dims=DIMS).load_state_dict(state)


def test_state_dict_of_a_table_of_other_fields_is_refused():
    state = VarEmbedding.for_fields([5, 2], 4, dims=2).state_dict()
    VarEmbedding.for_fields([5, 2], 4, dims=2).load_state_dict(state)
    other = VarEmbedding.for_fields([4, 3], 4, dims=2)
    with pytest.raises(RuntimeError, match=r"saved \[0, 5, 7\], this table \[0, 4, 7\]"):
        other.load_state_dict(state)
    del state["field_starts"]
    with pytest.raises(RuntimeError, match=r"Missing key.*field_starts"):
        other.load_state_dict(state)


@pytest.mark.parametrize("multi", [None, get_ema_multi_avg_fn(0.99)])
@pytest.mark.parametrize("options", [{}, {"resizable": True}, {"unify": "linear"}], ids=str)
def test_an_average_of_buffers_leaves_the_index_alone(options, multi):
    table = VarEmbedding(50, 8, dims=DIMS, **options)
    average = AveragedModel(table, multi_avg_fn=multi, use_buffers=True)
    for _ in range(3):
        average.update_parameters(table)
    rows = torch.arange(50)
    assert torch.equal(average.module.dims, table.dims)
    torch.testing.assert_close(average(rows), table(rows))
