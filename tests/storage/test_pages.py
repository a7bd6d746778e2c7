"""Memory that moves: who else looks at it, and what graphs of earlier steps make of it."""

import sys

import pytest
import torch

from varemb import VarEmbedding
from varemb.optim import Adam
from varemb.storage.pages import give_memory, is_alone, moved, prefer_huge_pages

BIG = 20_000  # rows of 64 numbers: more than one page of 2 MiB


def hold_view(weight):
    return weight.detach()[5:]


def hold_array(weight):
    return weight.detach().numpy()


@pytest.mark.parametrize("hold", [hold_view, hold_array])
def test_memory_that_others_look_at_keeps_its_numbers(hold):
    buffer = prefer_huge_pages(torch.empty(BIG * 64)).fill_(3.0)
    held = hold(buffer)
    new = moved(buffer, BIG * 64, BIG * 65)
    assert bool((held == 3.0).all()) and bool((new[: BIG * 64] == 3.0).all())


def test_memory_of_others_keeps_its_numbers():
    array = torch.full((BIG * 64,), 3.0).numpy()
    moved(torch.from_numpy(array), BIG * 64, BIG * 65)
    assert bool((array == 3.0).all())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked for it")
def test_memory_of_a_tensor_alone_is_given_back():
    buffer = prefer_huge_pages(torch.empty(BIG * 64)).fill_(3.0)
    assert is_alone(buffer)
    new = moved(buffer, BIG * 64, BIG * 65)
    assert bool((new[: BIG * 64] == 3.0).all())
    assert bool((buffer == 0).any())  # Linux gives empty pages for those given back


def test_a_state_dict_from_before_a_growth_is_whole():
    table = VarEmbedding(BIG, 64, resizable=True)
    optimizer = Adam(table.parameters(), lr=0.1)
    table(torch.arange(BIG)).square().mean().backward()
    dense, saved, state = table.to_dense(), table.state_dict(), optimizer.state_dict()
    mean = state["state"][0]["exp_avg"].clone()
    table.extend(BIG // 4, 64)
    table.load_state_dict(saved)
    assert torch.equal(table.to_dense()[:BIG], dense)
    assert torch.equal(state["state"][0]["exp_avg"], mean)


def extend(table):
    table.extend(50, 4)


def compact(table):
    rows = torch.arange(100)[torch.from_numpy(table.storage.has(torch.arange(100)))]
    table.remove(rows[-20:])
    table.compact()


def resize(table):
    table.resize(torch.arange(10), int(table.dims[0]) + 1)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"resizable": True}, extend),
        ({"resizable": True}, compact),
        ({"resizable": True, "reserve_numbers": 400}, resize),
        ({"reserve_numbers": 2000}, extend),
    ],
)
def test_a_loss_of_the_last_step_may_be_alive_when_the_table_changes(options, change):
    """As in a plain loop, where the name `loss` keeps it."""
    table = VarEmbedding(100, 8, dims=4, **options)
    optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
    for _ in range(4):
        optimizer.zero_grad()
        loss = table(torch.arange(30)).square().sum() / 2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert not table.to_dense()[:30].any()  # w - lr w
        table.storage.copy_dense_(torch.randn(table.num_embeddings, 8))
        change(table)


def test_hooks_of_a_parameter_stay_when_its_memory_changes():
    weight = torch.nn.Parameter(torch.ones(3))
    seen = []
    weight.register_hook(lambda grad: seen.append(grad.shape))
    weight.register_post_accumulate_grad_hook(lambda w: seen.append(w.grad.shape))
    loss = weight.sum()
    give_memory(weight, torch.ones(5))
    weight.sum().backward()
    assert seen == [(5,), (5,)] and weight.dtype == torch.float32 and loss == 3


def test_the_gradient_of_a_row_does_not_stay_where_the_row_was():
    """It would count in `clip_grad_norm_`."""
    table = VarEmbedding(4, 16, dims=4, resizable=True)
    table(torch.tensor([0, 1])).sum().backward()
    table.resize([0], 8)
    assert table.weight.grad.square().sum() == 8
    table.remove([1])
    assert table.weight.grad.square().sum() == 4
    table.compact()
    assert table.weight.grad.square().sum() == 4
