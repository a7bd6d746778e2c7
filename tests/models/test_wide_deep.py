import pytest
import torch

from varemb import VarEmbedding
from varemb.models import WideDeep

CARDINALITIES = [5, 3, 2]


def make_model(dims=(4, 2, 1)):
    torch.manual_seed(0)
    table = VarEmbedding.for_fields(CARDINALITIES, 4, dims=list(dims))
    return WideDeep(CARDINALITIES, 4, table)


def test_one_logit_per_row():
    ids = torch.tensor([[4, 2, 1], [0, 0, 0], [4, 2, 1]])
    logits = make_model().eval()(ids)
    assert logits.shape == (3,)
    assert logits[0] == logits[2] != logits[1]


def test_the_wide_part_adds_the_weights_of_the_ids():
    model, ids = make_model().eval(), torch.tensor([[4, 2, 1]])
    before = model(ids)
    with torch.no_grad():
        model.wide.weight.copy_(torch.arange(10.0))
    # Rows 4, 5 + 2 and 8 + 1 of the table of all fields.
    torch.testing.assert_close(model(ids) - before, torch.tensor([4.0 + 7 + 9]))


def test_layers_are_those_of_the_paper():
    kinds = [type(layer).__name__ for layer in make_model().deep]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Dropout"] * 2 + ["Linear"]
    shapes = [
        tuple(layer.weight.shape) for layer in make_model().deep if hasattr(layer, "in_features")
    ]
    assert shapes == [(128, 12), (128, 128), (1, 128)]


def test_every_parameter_is_trained():
    model = make_model()
    model(torch.tensor([[4, 2, 1], [0, 0, 0]])).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


def test_an_id_outside_its_field_is_refused():
    with pytest.raises(IndexError):
        make_model()(torch.tensor([[0, 3, 0]]))


def test_one_seed_gives_the_same_numbers_in_every_release():
    # Saved results stay comparable: parameters are drawn in the order table, wide, deep.
    torch.manual_seed(0)
    table = VarEmbedding.for_fields(CARDINALITIES, 4, dims=[4, 2, 1], unify="linear")
    model = WideDeep(CARDINALITIES, 4, table, hidden=(3, 2))
    first, last = model.deep[0], model.deep[8]
    assert first.weight[0, :2].tolist() == [0.20665432512760162, 0.10793884843587875]
    assert last.weight.tolist() == [[0.44960638880729675, 0.6698042154312134]]
    assert last.bias.tolist() == [0.4490523338317871]
    assert torch.rand(1).tolist() == [0.974706768989563]


def test_parameters_are_those_of_saved_models():
    shapes = {name: tuple(value.shape) for name, value in make_model().named_parameters()}
    assert list(shapes) == [
        "embedding.storage.weight", "wide.storage.weight",
        "deep.0.weight", "deep.0.bias", "deep.1.weight", "deep.1.bias",
        "deep.4.weight", "deep.4.bias", "deep.5.weight", "deep.5.bias",
        "deep.8.weight", "deep.8.bias",
    ]  # fmt: skip
    assert shapes["wide.storage.weight"] == (10,)
