import torch

from varemb import VarEmbedding
from varemb.models import FM, DeepFM, WideDeep

CARDINALITIES = [5, 3, 2]
IDS = torch.tensor([[4, 2, 1], [0, 0, 0], [1, 1, 1]])


def make_model():
    table = VarEmbedding.for_fields(CARDINALITIES, 4, dims=[4, 2, 1])
    model = DeepFM(CARDINALITIES, 4, table, hidden=(6,)).eval()
    torch.nn.init.normal_(model.wide.weight)
    return model


def test_it_is_an_fm_and_an_mlp_on_one_table():
    model = make_model()
    fm = FM(CARDINALITIES, 4, model.embedding)
    fm.load_state_dict({"bias": torch.zeros(1), **model.state_dict()}, strict=False)
    deep = model.deep(model.embedding(IDS).flatten(1)).squeeze(1)
    torch.testing.assert_close(model(IDS), fm(IDS) + deep)


def test_it_is_wide_and_deep_with_pairs():
    model = make_model()
    wide_deep = WideDeep(CARDINALITIES, 4, model.embedding, hidden=(6,)).eval()
    wide_deep.load_state_dict(model.state_dict())
    x = model.embedding(IDS)  # [B, 3, D]
    pairs = (x[:, 0] * x[:, 1] + x[:, 0] * x[:, 2] + x[:, 1] * x[:, 2]).sum(1)
    torch.testing.assert_close(model(IDS), wide_deep(IDS) + pairs)


def test_hidden_layers_of_the_paper_of_autodim():
    model = DeepFM(CARDINALITIES, 4, VarEmbedding.for_fields(CARDINALITIES, 4))
    shapes = [tuple(model.deep[i].weight.shape) for i in (0, 4, 8)]
    assert shapes == [(128, 12), (128, 128), (1, 128)]
    assert model.deep[3].p == model.deep[7].p == 0.2
