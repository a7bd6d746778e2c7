"""Optimizers: fused in backward, from sparse gradients, and torch's where torch has the rule."""

import copy

import pytest
import torch
from torch import nn

import varemb
from varemb import VarEmbedding, VarEmbeddingBag, optim
from varemb.testing import assert_agree, dims_of, runnable_backends

OPTIMIZERS = {
    "sgd": (optim.SGD, {"lr": 0.1}),
    "adagrad": (optim.Adagrad, {"lr": 0.1}),
    "row_wise_adagrad": (optim.RowWiseAdagrad, {"lr": 0.1}),
    "adam": (optim.Adam, {"lr": 0.1, "betas": (0.8, 0.99)}),
}
DIMS = dims_of("uniform", 60, 9)


def train(table, optimizer, steps=6, seed=0, everywhere=False):
    """The table after some steps on skewed random rows."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        indices = (torch.rand(40, generator=generator) ** 2 * 60).long()
        if everywhere:
            indices = torch.cat([indices, torch.arange(60)])
        target = torch.randn(indices.numel(), 9, generator=generator)
        optimizer.zero_grad()
        (table(indices) - target).square().mean().backward()
        optimizer.step()
    return table.to_dense()


@pytest.mark.parametrize("backend", runnable_backends())
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lookups_of_a_step_are_applied_one_after_the_other(backend, name):
    """The two in one backward, and each in one of its own."""
    cls, options = OPTIMIZERS[name]
    tables = [VarEmbedding(60, 9, dims=DIMS, backend=backend) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    indices = torch.tensor([[3, 3, 9], [9, 40, 3]])
    for table, is_apart in zip(tables, (False, True), strict=True):
        cls(table.parameters(), **options)
        first, second = (table(rows).sum() for rows in indices)
        if is_apart:
            second.backward()
            first.backward()
        else:
            (first + second).backward()
    assert torch.equal(tables[0].weight, tables[1].weight)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_fused_sparse_and_reference_agree(name, weight_decay):
    cls, options = OPTIMIZERS[name]
    start = VarEmbedding(60, 9, dims=DIMS)
    results = []
    for backend in runnable_backends():
        for fused in (True, False):
            table = VarEmbedding(60, 9, dims=DIMS, sparse=True, backend=backend)
            table.load_state_dict(start.state_dict())
            optimizer = cls(table.parameters(), **options, weight_decay=weight_decay, fused=fused)
            results.append(train(table, optimizer))
            assert (table.weight.grad is None) == fused
    for result in results:
        assert_agree(result, results[-1])
    assert not torch.equal(results[0], start.to_dense())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (optim.SGD, torch.optim.SGD),
        (optim.Adagrad, torch.optim.Adagrad),
        (optim.Adam, torch.optim.Adam),
    ],
)
def test_torchs_rule_when_every_row_is_looked_up(ours, theirs):
    tables = [VarEmbedding(60, 9, dims=DIMS) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    options = {"lr": 0.05, "weight_decay": 0.01}
    results = [
        train(tables[0], ours(tables[0].parameters(), **options), everywhere=True),
        train(tables[1], theirs(tables[1].parameters(), **options), everywhere=True),
    ]
    assert_agree(*results)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_fused_bags_agree_with_sparse_ones(name, mode):
    cls, options = OPTIMIZERS[name]
    start, results = VarEmbeddingBag(60, 9, dims=DIMS, mode=mode), []
    for fused in (True, False):
        bag = VarEmbeddingBag(60, 9, dims=DIMS, mode=mode, sparse=True, padding_idx=2)
        bag.load_state_dict(start.state_dict())
        optimizer = cls(bag.parameters(), **options, fused=fused)
        torch.manual_seed(4)
        for _ in range(4):
            optimizer.zero_grad()
            bag(torch.randint(0, 60, (12, 5))).square().sum().backward()
            optimizer.step()
        results.append(bag.to_dense())
    assert_agree(*results)


def test_limit_leaves_numbers_beyond_it_and_their_state_alone():
    table = VarEmbedding(60, 9, dims=9)
    optimizer = optim.Adam(table.parameters(), lr=0.1)
    before = table.to_dense()
    table(torch.arange(60), limit=4).square().sum().backward()
    optimizer.step()
    after = table.to_dense()
    assert torch.equal(after[:, 4:], before[:, 4:])
    assert (after[:, :4] != before[:, :4]).all()
    state = optimizer.state[table.weight]["exp_avg_sq"].view(60, 9)
    assert (state[:, :4] > 0).all() and (state[:, 4:] == 0).all()


def test_linear_unify_trains_fused():
    table = VarEmbedding.for_fields([30, 30], 9, dims=[3, 9], unify="linear")
    other = copy.deepcopy(table)
    ids = torch.randint(0, 30, (50, 2))
    fused = optim.SGD([table.weight], lr=0.1)
    plain = torch.optim.SGD([other.weight], lr=0.1)
    for model, optimizer in ((table, fused), (other, plain)):
        model(ids).square().mean().backward()
        optimizer.step()
    assert_agree(table.to_dense(), other.to_dense())
    for ours, theirs in zip(table.unify_parameters(), other.unify_parameters(), strict=True):
        assert_agree(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_as_narrow_as_the_rows(name):
    cls, options = OPTIMIZERS[name]
    table = VarEmbedding(60, 9, dims=DIMS)
    report = varemb.memory_report(table, cls(table.parameters(), **options))
    numbers = {"sgd": 0, "adagrad": 1, "row_wise_adagrad": 60, "adam": 2}[name]
    expected = 4 * (numbers if name == "row_wise_adagrad" else numbers * int(DIMS.sum()))
    assert report.bytes["optimizer"] == expected


def test_a_scheduler_and_a_plain_assignment_change_the_next_backward():
    table = VarEmbedding(60, 9, dims=9)
    optimizer = optim.SGD(table.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)

    def moved():
        before = table.to_dense()
        table(torch.tensor([1])).sum().backward()
        optimizer.step()
        return (before - table.to_dense())[1, 0].item()

    assert moved() == pytest.approx(1.0)
    scheduler.step()
    assert moved() == pytest.approx(0.1)
    optimizer.param_groups[0]["lr"] = 0.5
    assert moved() == pytest.approx(0.5)


def test_a_lookup_from_before_a_step_and_a_new_rate_still_goes_backward():
    """Two losses, each with its step, as with torch's optimizers; the rate is that of backward."""
    table = VarEmbedding(60, 9, dims=9, dtype=torch.bfloat16)
    optimizer = optim.SGD(table.parameters(), lr=1.0, stochastic_rounding=True)
    first, second = (table(torch.tensor([row])).sum() for row in (1, 2))
    before = table.to_dense()
    first.backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5
    second.backward()
    moved = (before - table.to_dense()).float()
    torch.testing.assert_close(moved[1:3, 0], torch.tensor([1.0, 0.5]), rtol=0, atol=0.01)


def but_parameters(tensor):
    return tensor if isinstance(tensor, nn.Parameter) else tensor.clone()


@pytest.mark.parametrize("copies", [torch.clone, but_parameters])
@pytest.mark.parametrize("unify", ["pad", "linear", "bag"])
def test_a_fused_update_of_a_copy_is_refused(unify, copies):
    """It would be lost: the hook of activation offloading gives back other memory."""
    bag = VarEmbeddingBag(6, 4, mode="sum")
    table = bag if unify == "bag" else VarEmbedding(6, 4, unify=unify)
    optim.Adam([table.weight], lr=1.0)
    rows = torch.tensor([[0, 5]])
    with torch.autograd.graph.saved_tensors_hooks(copies, lambda tensor: tensor):
        loss = table(rows).sum()
    with pytest.raises(RuntimeError, match="needs the table and its state themselves, got copies"):
        loss.backward()
    with torch.autograd.graph.save_on_cpu():  # on the CPU the same memory
        loss = table(rows).sum()
    before = table.to_dense()
    loss.backward()
    assert not torch.equal(table.to_dense(), before)


@pytest.mark.parametrize("fused", [True, False])
def test_state_dict_resumes_bit_for_bit(fused):
    def fresh():
        torch.manual_seed(0)
        table = VarEmbedding(60, 9, dims=DIMS, sparse=True)
        return table, optim.Adam(table.parameters(), lr=0.1, fused=fused)

    table, optimizer = fresh()
    train(table, optimizer, seed=1)
    saved = copy.deepcopy((table.state_dict(), optimizer.state_dict()))
    expected = train(table, optimizer, seed=2)
    table, optimizer = fresh()
    table.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert torch.equal(train(table, optimizer, seed=2), expected)
    other = VarEmbedding(60, 9, dims=3, sparse=True)
    with pytest.raises(ValueError, match="saved exp_avg of parameter 0 has shape"):
        optim.Adam(other.parameters(), fused=fused).load_state_dict(saved[1])


def test_a_copy_is_trained_on_its_own():
    table = VarEmbedding(60, 9, dims=DIMS)
    optim.SGD(table.parameters(), lr=0.1)
    copied = copy.deepcopy(table)
    assert copied.weight.requires_grad and copied.storage.attached is None
    optim.SGD(copied.parameters(), lr=0.1)


def test_refuses_what_it_cannot_train():
    table = VarEmbedding(60, 9, dims=DIMS)
    with pytest.raises(TypeError, match=r"parameter 1 of shape \[2, 3\] is not; give it to torch"):
        optim.Adam([table.weight, nn.Parameter(torch.zeros(2, 3))])
    other = VarEmbedding(60, 9, dims=DIMS)
    with pytest.raises(ValueError, match="lr must not be negative, got -1"):
        optim.SGD(other.parameters(), lr=-1)
    with pytest.raises(ValueError, match=r"betas must be in \[0, 1\)"):
        optim.Adam(other.parameters(), betas=(1.0, 0.9))
    optim.SGD(other.parameters())
    with pytest.raises(ValueError, match="has a fused optimizer"):
        optim.Adam([other.weight])
    for change in (other.half, lambda: other.to("meta")):
        with pytest.raises(RuntimeError, match="move the table before the fused optimizer is made"):
            change()
    assert other.weight.dtype == torch.float32 and other.weight.device.type == "cpu"
    dense = VarEmbedding(60, 9, dims=DIMS)
    optimizer = optim.Adam(dense.parameters(), fused=False)
    dense(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="grad must be sparse"):
        optimizer.step()


def test_compile_fullgraph_with_the_update_in_backward():
    torch._dynamo.reset()
    table = VarEmbedding(60, 9, dims=DIMS)
    other = copy.deepcopy(table)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    expected = train(table, optim.Adam(table.parameters(), lr=0.1))
    optimizer = optim.Adam(other.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        indices = (torch.rand(40, generator=generator) ** 2 * 60).long()
        target = torch.randn(40, 9, generator=generator)
        optimizer.zero_grad()
        (compiled(indices) - target).square().mean().backward()
        optimizer.step()
    assert_agree(other.to_dense(), expected)


def test_float16_and_bfloat16_rows_keep_float32_state():
    for dtype in (torch.float16, torch.bfloat16):
        table = VarEmbedding(60, 9, dims=DIMS, dtype=dtype)
        optimizer = optim.Adam(table.parameters(), lr=0.1)
        table(torch.arange(60)).float().square().sum().backward()
        optimizer.step()
        assert optimizer.state[table.weight]["exp_avg"].dtype == torch.float32
        assert table.weight.dtype == dtype and not table.weight.isnan().any()


@pytest.mark.parametrize("backend", runnable_backends())
@pytest.mark.parametrize("fused", [True, False])
def test_stochastic_rounding_keeps_steps_that_bfloat16_loses(backend, fused):
    """Numbers at 1 in bfloat16 stand 2^-8 apart below it; 8 steps of 2^-12 move half of that."""
    means = []
    for is_random in (False, True):
        table = VarEmbedding(64, 64, dims=64, dtype=torch.bfloat16, sparse=True, backend=backend)
        with torch.no_grad():
            table.weight.fill_(1.0)
        optimizer = optim.SGD(
            table.parameters(), lr=2**-12, fused=fused, stochastic_rounding=is_random, seed=5
        )
        for _ in range(8):
            optimizer.zero_grad()
            table(torch.arange(64)).sum().backward()
            optimizer.step()
        means.append(1 - table.weight.double().mean().item())
    assert means[0] == 0
    gap, chance = 2**-8, 2**-4
    sigma = gap * (8 * chance * (1 - chance) / 64**2) ** 0.5
    assert means[1] == pytest.approx(8 * 2**-12, abs=5 * sigma)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("fused", [True, False])
def test_stochastic_rounding_resumes_bit_for_bit(name, fused):
    cls, options = OPTIMIZERS[name]

    def fresh(seed=7, stochastic_rounding=True):
        torch.manual_seed(0)
        table = VarEmbedding(60, 9, dims=DIMS, dtype=torch.bfloat16, sparse=True)
        rounding = {"stochastic_rounding": stochastic_rounding, "seed": seed}
        return table, cls(table.parameters(), **options, **rounding, fused=fused)

    table, optimizer = fresh()
    train(table, optimizer, seed=1)
    saved = copy.deepcopy((table.state_dict(), optimizer.state_dict()))
    assert optimizer.state_dict()["state"][0]["rounding"].tolist() == [7, 6]
    expected = train(table, optimizer, seed=2)
    for seed in (7, 8):  # the saved seed holds
        table, optimizer = fresh(seed)
        table.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        assert torch.equal(train(table, optimizer, seed=2), expected)
    _, plain = fresh(stochastic_rounding=False)
    with pytest.raises(ValueError, match=r"saved state of parameter 0 has step, .*rounding"):
        plain.load_state_dict(saved[1])


def test_tables_seeds_and_steps_round_differently():
    def moved(seed):
        tables = [VarEmbedding(60, 9, dims=9, dtype=torch.float16) for _ in range(2)]
        optimizer = optim.SGD(
            [table.weight for table in tables], lr=2**-12, stochastic_rounding=True, seed=seed
        )
        steps = []
        for _ in range(2):
            for table in tables:
                with torch.no_grad():
                    table.weight.fill_(1.0)
                table(torch.arange(60)).sum().backward()
                steps.append(table.to_dense())
            optimizer.step()
        return steps

    first = moved(0)
    assert all(torch.equal(a, b) for a, b in zip(first, moved(0), strict=True))
    draws = [*first, moved(1)[0]]
    for i, draw in enumerate(draws):
        assert all(not torch.equal(draw, other) for other in draws[:i])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stochastic_rounding_refuses_rows_of_more_than_16_bits(name):
    cls, options = OPTIMIZERS[name]
    for dtype, shown in ((torch.float32, "float32"), (torch.float64, "float64")):
        table = VarEmbedding(60, 9, dims=DIMS, dtype=dtype)
        with pytest.raises(ValueError, match=f"{cls.__name__}: stochastic_rounding.*{shown}"):
            cls(table.parameters(), **options, stochastic_rounding=True)
    table = VarEmbedding(60, 9, dims=DIMS, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\^32\), got -1"):
        cls(table.parameters(), **options, stochastic_rounding=True, seed=-1)


@pytest.mark.parametrize("cls", [optim.Adam, optim.RowWiseAdagrad])
def test_state_of_a_table_that_grows_is_saved_without_its_free_end(cls):
    table = VarEmbedding(6, 9, dims=4, resizable=True, reserve_rows=50, reserve_numbers=500)
    optimizer = cls(table.parameters())
    table(torch.arange(6)).sum().backward()
    optimizer.step()
    table.resize([0], 9)
    saved = optimizer.state_dict()
    name = cls.state_names[0]
    used = 6 if cls is optim.RowWiseAdagrad else table.storage.used_numbers
    assert saved["state"][0][name].numel() == used < 100
    other = VarEmbedding(0, 9, resizable=True)
    twin = cls(other.parameters())
    with pytest.raises(ValueError, match=f"saved {name} of parameter 0 has shape"):
        twin.load_state_dict(saved)
    other.load_state_dict(table.state_dict())
    twin.load_state_dict(saved)
    assert torch.equal(twin.state[other.weight][name], saved["state"][0][name])
