"""State dicts go to torch's optimizers of the same rule and come from them."""

import copy

import pytest
import torch

from varemb import VarEmbedding, optim
from varemb.testing import assert_agree

PAIRS = {
    "sgd": (optim.SGD, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.02}),
    "adagrad": (optim.Adagrad, torch.optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.3}),
    "adam": (optim.Adam, torch.optim.Adam, {"lr": 0.1, "betas": (0.7, 0.9)}),
}
DIMS = {"equal": 5, "mixed": [1, 5, 0, 3, 2, 5, 4]}


def train(table, optimizer, steps, seed):
    """The table after some steps, each on all rows."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        target = torch.randn(7, 5, generator=generator)
        optimizer.zero_grad()
        (table(torch.arange(7)) - target).square().mean().backward()
        optimizer.step()
    return table.to_dense()


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("is_ours_first", [True, False])
def test_an_optimizer_goes_on_where_torchs_stopped_and_back(name, dims, steps, is_ours_first):
    classes = PAIRS[name][:2]
    first, second = classes if is_ours_first else classes[::-1]
    table, twin = (VarEmbedding(7, 5, dims=DIMS[dims]) for _ in range(2))
    optimizer = first(table.parameters(), **PAIRS[name][2])
    other = second(twin.parameters(), lr=7.0)
    train(table, optimizer, steps, seed=1)
    train(twin, other, 2, seed=3)  # what is loaded takes the place of these steps
    twin.load_state_dict(copy.deepcopy(table.state_dict()))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["lr"] == 0.1
    assert_agree(train(twin, other, 3, seed=2), train(table, optimizer, 3, seed=2))


def test_steps_are_counted_as_torch_counts_them():
    table = VarEmbedding(7, 5, dims=3)
    optimizer = optim.Adam(table.parameters())
    assert optimizer.state[table.weight]["step"] == 0
    train(table, optimizer, 2, seed=1)
    saved = optimizer.state_dict()
    assert saved["state"][0]["step"] == optimizer.state[table.weight]["step"] == 2
    train(table, optimizer, 1, seed=1)
    assert saved["state"][0]["step"] == 2
    optimizer.load_state_dict(saved)
    assert optimizer.state[table.weight]["step"] == 2


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ("adam", lambda w: torch.optim.Adam(w, amsgrad=True), "Adam: saved amsgrad must be False"),
        ("adam", torch.optim.AdamW, "Adam: saved decoupled_weight_decay must be False, got True"),
        ("adam", torch.optim.SGD, "Adam: a saved group must have .*, got none of betas, eps"),
        ("sgd", lambda w: torch.optim.SGD(w, momentum=0.9), "SGD: saved momentum must be 0, got"),
        ("adagrad", lambda w: torch.optim.Adagrad(w, lr_decay=0.1), "saved lr_decay must be 0"),
        ("adagrad", torch.optim.RMSprop, "Adagrad: saved state of parameter 0 has step, square_a"),
    ],
)
def test_state_of_another_rule_is_refused_and_changes_nothing(ours, theirs, message):
    table = VarEmbedding(7, 5, dims=3)
    other = theirs(table.parameters())
    train(table, other, 1, seed=1)
    optimizer = PAIRS[ours][0](table.parameters(), lr=0.3)
    table.zero_grad()
    train(table, optimizer, 1, seed=1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(other.state_dict())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for part, value in before["state"][0].items():
        assert torch.equal(after["state"][0][part], value)


def test_state_of_a_table_with_two_axes_is_refused():
    dense = torch.nn.Embedding(7, 5)
    other = torch.optim.Adam(dense.parameters())
    dense(torch.arange(7)).sum().backward()
    other.step()
    table = VarEmbedding(7, 5)
    optimizer = optim.Adam(table.parameters())
    with pytest.raises(ValueError, match=r"exp_avg of parameter 0 has shape \[7, 5\], .* \[35\]"):
        optimizer.load_state_dict(other.state_dict())


def test_a_table_without_saved_state_begins_anew():
    def fresh():
        torch.manual_seed(0)
        table = VarEmbedding(7, 5, dims=3, dtype=torch.bfloat16)
        return table, optim.Adam(table.parameters(), lr=0.1, stochastic_rounding=True, seed=4)

    table, optimizer = fresh()
    saved = copy.deepcopy((table.state_dict(), torch.optim.Adam([table.weight], lr=0.1)))
    train(table, optimizer, 3, seed=1)
    table.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1].state_dict())
    assert torch.equal(train(table, optimizer, 3, seed=2), train(*fresh(), 3, seed=2))
