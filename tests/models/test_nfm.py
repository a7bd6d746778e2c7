import torch

from varemb import VarEmbedding
from varemb.models import NFM

CARDINALITIES = [5, 3, 2]
IDS = torch.tensor([[4, 2, 1], [0, 0, 0], [1, 1, 1]])


def make_model(**options):
    table = VarEmbedding.for_fields(CARDINALITIES, 4, dims=[4, 2, 3])
    return NFM(CARDINALITIES, 4, table, **options)


def test_formula_by_hand():
    # vectors of ids 2, 0, 1: [1, 2], [3, 0], [4, 5]; products 3 + 4 + 12 and 0 + 10 + 0
    table = VarEmbedding.for_fields([3, 2, 2], 2, dims=[2, 1, 2])
    model = NFM([3, 2, 2], 2, table, hidden=()).eval()
    with torch.no_grad():
        table.weight.copy_(torch.tensor([0.0, 0, 0, 0, 1, 2, 3, 9, 9, 9, 4, 5]))
        model.wide.weight.copy_(torch.tensor([0.0, 0, 0.5, 0.25, 0, 0, 0.125]))
        norm, last = model.pairs[0], model.deep[0]
        norm.running_mean.copy_(torch.tensor([17.0, 7.0]))
        norm.eps, norm.bias[1] = 0.0, 1.0
        norm.running_var.copy_(torch.tensor([4.0, 9.0]))
        last.weight.copy_(torch.tensor([[10.0, 100.0]]))
        last.bias.fill_(1000.0)
    # (19 - 17) / 2 = 1 and (10 - 7) / 3 + 1 = 2
    assert model(torch.tensor([[2, 0, 1]])).tolist() == [0.875 + 10 + 200 + 1000]


def test_the_mlp_takes_the_normed_products():
    model = make_model().eval()
    torch.nn.init.normal_(model.pairs[0].running_mean)
    torch.nn.init.normal_(model.wide.weight)
    x = model.embedding(IDS)  # [B, 3, D]
    pairs = x[:, 0] * x[:, 1] + x[:, 0] * x[:, 2] + x[:, 1] * x[:, 2]  # [B, D]
    normed = (pairs - model.pairs[0].running_mean) / (1 + model.pairs[0].eps) ** 0.5
    wide = sum(model.wide(IDS)[:, field, 0] for field in range(3))
    torch.testing.assert_close(model(IDS), wide + model.deep(normed).squeeze(1))


def test_layers_and_their_dropout():
    model = make_model(dropout=0.3)
    assert [type(layer).__name__ for layer in model.pairs] == ["BatchNorm1d", "Dropout"]
    shapes = [tuple(model.deep[i].weight.shape) for i in (0, 4, 8)]
    assert shapes == [(128, 4), (128, 128), (1, 128)]
    assert model.pairs[1].p == model.deep[3].p == model.deep[7].p == 0.3
