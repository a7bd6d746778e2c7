import math

import pytest
import torch
from torch import nn

from varemb import VarEmbedding
from varemb.models import AutoInt

CARDINALITIES = [5, 3, 2]
IDS = torch.tensor([[4, 2, 1], [0, 0, 0], [1, 1, 1]])


def make_model(**options):
    table = VarEmbedding.for_fields(CARDINALITIES, 4, dims=[4, 2, 3])
    model = AutoInt(CARDINALITIES, 4, table, **options).eval()
    nn.init.normal_(model.wide.weight)
    return model


def attend(layer, vectors, heads):
    """One row [F, A] through a layer of attention, number by number."""
    fields, width = vectors.shape
    size = width // heads
    maps = layer.inputs.weight.split(width), layer.inputs.bias.split(width)
    queries, keys, values = (vectors @ weight.T + bias for weight, bias in zip(*maps, strict=True))
    joined = torch.zeros(fields, width)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for field in range(fields):
            fits = [math.exp(queries[field, part] @ key / math.sqrt(size)) for key in keys[:, part]]
            for other in range(fields):
                joined[field, part] += fits[other] / sum(fits) * values[other, part]
    return joined @ layer.output.weight.T + layer.output.bias


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (3, 2), (2, 4)])
@torch.no_grad()
def test_formula_step_by_step(layers, heads):
    model = make_model(attention_width=8, layers=layers, heads=heads, hidden=(6,))
    vectors = model.embedding(IDS)
    for row, logit in enumerate(model(IDS)):
        x = vectors[row]  # [F, D]
        attended = x @ model.project.weight.T + model.project.bias
        for layer in model.attention:
            attended = attend(layer, attended, heads)
        mixed = (attended + x @ model.residual.weight.T + model.residual.bias).clamp_min(0)
        expected = (mixed.flatten() * model.score.weight[0]).sum()
        expected += model.wide.weight[IDS[row] + torch.tensor([0, 5, 8])].sum()
        expected += model.deep(x.flatten()[None])[0, 0]
        torch.testing.assert_close(logit, expected)


def test_a_layer_is_the_self_attention_of_torch():
    layer = make_model().attention[0]
    expected = nn.MultiheadAttention(64, 2, batch_first=True)
    expected.load_state_dict({
        "in_proj_weight": layer.inputs.weight, "in_proj_bias": layer.inputs.bias,
        "out_proj.weight": layer.output.weight, "out_proj.bias": layer.output.bias,
    })  # fmt: skip
    vectors = torch.randn(6, 3, 64)
    torch.testing.assert_close(layer(vectors), expected(vectors, vectors, vectors)[0])


def test_layers_by_default():
    model = make_model()
    assert len(model.attention) == 3
    assert {layer.heads for layer in model.attention} == {2}
    assert model.project.weight.shape == model.residual.weight.shape == (64, 4)
    assert model.score.weight.shape == (1, 3 * 64)
    shapes = [tuple(model.deep[i].weight.shape) for i in (0, 4, 8)]
    assert shapes == [(400, 12), (400, 400), (1, 400)]
    assert model.deep[3].p == model.deep[7].p == 0.0


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="AutoInt: heads must divide attention_width, 64, got 3"):
        make_model(heads=3)
