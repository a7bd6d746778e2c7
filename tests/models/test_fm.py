import torch

from varemb import VarEmbedding
from varemb.models import FM

CARDINALITIES = [3, 2, 2]


def test_formula_by_hand():
    # vectors of ids 2, 0, 1: [1, 2], [3, 0], [4, 0]
    table = VarEmbedding.for_fields(CARDINALITIES, 2, dims=[2, 1, 1])
    model = FM(CARDINALITIES, 2, table)
    with torch.no_grad():
        table.weight.copy_(torch.tensor([0.0, 0, 0, 0, 1, 2, 3, 9, 9, 4]))
        model.wide.weight.copy_(torch.tensor([0.0, 0, 0.5, 0.25, 0, 0, 0.125]))
        model.bias.fill_(10)
    # 10 + (0.5 + 0.25 + 0.125) + (1*3 + 1*4 + 3*4)
    assert model(torch.tensor([[2, 0, 1]])).tolist() == [29.875]


def test_pairs_against_a_loop_over_pairs():
    cardinalities = [7] * 5
    table = VarEmbedding.for_fields(cardinalities, 6, dims=[6, 0, 1, 4, 3])
    model, ids = FM(cardinalities, 6, table), torch.randint(7, (20, 5))
    vectors, expected = table(ids), torch.zeros(20)
    for row in range(20):
        for first in range(5):
            for second in range(first + 1, 5):
                expected[row] += vectors[row, first] @ vectors[row, second]
    torch.testing.assert_close(model(ids), expected)


def test_a_new_model_has_only_the_pairs():
    model = FM(CARDINALITIES, 2, VarEmbedding.for_fields(CARDINALITIES, 2, dims=0))
    assert model(torch.tensor([[2, 0, 1], [0, 0, 0]])).tolist() == [0.0, 0.0]
