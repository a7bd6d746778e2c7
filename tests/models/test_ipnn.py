import pytest
import torch

from varemb import VarEmbedding
from varemb.models import IPNN


def test_formula_by_hand():
    # vectors of ids 2, 0, 1: [1, 2], [3, 0], [4, 5]
    table = VarEmbedding.for_fields([3, 2, 2], 2, dims=[2, 1, 2])
    model = IPNN([3, 2, 2], 2, table, hidden=()).eval()
    with torch.no_grad():
        table.weight.copy_(torch.tensor([0.0, 0, 0, 0, 1, 2, 3, 9, 9, 9, 4, 5]))
        model.deep[0].weight.copy_(torch.tensor([[1.0] * 6 + [10, 100, 1000]]))
        model.deep[0].bias.fill_(0.5)
    # 1*3 + 2*0, 1*4 + 2*5, 3*4 + 0*5 after 1 + 2 + 3 + 0 + 4 + 5
    assert model(torch.tensor([[2, 0, 1]])).tolist() == [0.5 + 15 + 10 * 3 + 100 * 14 + 1000 * 12]


@pytest.mark.parametrize("fields", [1, 2, 3, 6])
def test_the_mlp_takes_vectors_and_all_pairs(fields):
    cardinalities = [4] * fields
    table = VarEmbedding.for_fields(cardinalities, 5, dims=[5, 1, 0, 3, 2, 4][:fields])
    model, ids = IPNN(cardinalities, 5, table).eval(), torch.randint(4, (7, fields))
    x = table(ids)  # [B, F, D]
    pairs = [(x[:, i] * x[:, j]).sum(1) for i in range(fields) for j in range(i + 1, fields)]
    inputs = torch.cat([x.flatten(1), *(pair[:, None] for pair in pairs)], 1)
    assert len(pairs) == fields * (fields - 1) // 2
    assert model.deep[0].in_features == inputs.shape[1] == fields * 5 + len(pairs)
    torch.testing.assert_close(model(ids), model.deep(inputs).squeeze(1))


def test_hidden_layers_and_what_is_saved():
    model = IPNN([3, 2], 4, VarEmbedding.for_fields([3, 2], 4))
    shapes = [tuple(model.deep[i].weight.shape) for i in (0, 4, 8)]
    assert shapes == [(128, 9), (128, 128), (1, 128)]
    assert model.deep[3].p == model.deep[7].p == 0.2
    assert {name.split(".")[0] for name in model.state_dict()} == {"embedding", "deep"}
