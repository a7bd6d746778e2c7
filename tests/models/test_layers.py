import pytest
import torch

from varemb.models.layers import Dropout, make_id_weights, make_mlp, multiply_pairs


def test_make_id_weights_gives_zeros_of_width_one():
    table = make_id_weights([5, 3])
    assert table.weight.tolist() == [0.0] * 8
    assert table(torch.tensor([[4, 2]])).shape == (1, 2, 1)


@pytest.mark.parametrize(
    ("hidden", "shapes"),
    [([3, 2], [(3, 7), (2, 3), (1, 2)]), ([4], [(4, 7), (1, 4)]), ([], [(1, 7)])],
)
def test_make_mlp_stacks_the_hidden_layers(hidden, shapes):
    mlp = make_mlp(7, hidden, 0.25)
    kinds = [type(layer).__name__ for layer in mlp]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Dropout"] * len(hidden) + ["Linear"]
    assert [tuple(mlp[i].weight.shape) for i in range(0, len(mlp), 4)] == shapes
    assert all(layer.p == 0.25 for layer in mlp if isinstance(layer, torch.nn.Dropout))


def test_multiply_pairs_by_hand():
    vectors = torch.tensor([[[1.0, 2.0], [3.0, -4.0], [5.0, 6.0]]])
    # 1*3 + 1*5 + 3*5 and 2*-4 + 2*6 + -4*6
    assert multiply_pairs(vectors).tolist() == [[23.0, -20.0]]


def test_multiply_pairs_against_a_loop_over_pairs():
    vectors = torch.randn(3, 5, 4, dtype=torch.float64)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for first in range(5):
        for second in range(first + 1, 5):
            expected += vectors[:, first] * vectors[:, second]
    torch.testing.assert_close(multiply_pairs(vectors), expected)


def test_multiply_pairs_of_one_field_is_zero():
    assert not multiply_pairs(torch.randn(2, 1, 3)).any()


def test_dropout_drops_its_share_and_scales_what_it_keeps():
    torch.manual_seed(0)
    values = torch.full((400, 500), 3.0, requires_grad=True)
    layer = Dropout(0.2)
    out = layer(values)
    dropped = out == 0
    assert abs(dropped.double().mean().item() - 0.2) < 0.004  # 4.5 deviations
    torch.testing.assert_close(out[~dropped], torch.full_like(out[~dropped], 3.75))
    out.sum().backward()
    torch.testing.assert_close(values.grad, out.detach() / 3)
    assert not torch.equal(layer(values), out)


def test_dropout_keeps_everything_in_evaluation_and_at_share_zero():
    values = torch.randn(50, 3)
    assert torch.equal(Dropout(0.9).eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)


def test_dropout_in_half_precision_has_the_same_share():
    torch.manual_seed(0)
    out = Dropout(0.1)(torch.ones(400, 500, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert abs((out == 0).double().mean().item() - 0.1) < 0.003


@pytest.mark.parametrize("p", [1.0, -0.1, 1.5])
def test_dropout_refuses_what_is_no_share(p):
    with pytest.raises(ValueError, match="ropout"):
        Dropout(p)
