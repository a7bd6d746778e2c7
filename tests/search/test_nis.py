import dataclasses
from types import SimpleNamespace

import pytest
import torch

from varemb.data import planted_clicks
from varemb.models import WideDeep
from varemb.search import TrainConfig, nis, train_plan
from varemb.search.nis import NIS, BlockTable, NISConfig, cut_rows, find_sizes

IDS, WIDTH = 30, 8
CONFIG = NISConfig(
    width=WIDTH, row_shares=(0.2, 0.5, 1.0), column_blocks=4, search_epochs=2, batch_size=200,
    lr=5e-3, weight_decay=1e-4,
)  # fmt: skip


def make_parts(rows=4000):
    return planted_clicks(rows, dims={"user": 4, "city": 2}, ids_per_field=IDS, scale=3.0).split(0)


def make_model(embedding):
    return WideDeep((IDS, IDS, 16), WIDTH, embedding, hidden=(16,))


def search(config=CONFIG, parts=None, **options):
    parts = make_parts() if parts is None else parts
    return NIS(config).fit(make_model, parts[0], parts[1], progress=False, **options)


def make_table(config=CONFIG):
    return BlockTable([torch.tensor([1, 9, 3, 3, 0]), torch.tensor([2, 2])], config)


def test_rows_are_cut_at_the_quantiles_of_frequency():
    shares = (0.01, 0.05, 0.2, 0.5, 1.0)
    counts = torch.arange(100)
    blocks = cut_rows(counts, shares)
    assert torch.bincount(blocks).tolist() == [1, 4, 15, 30, 50]
    assert (blocks[1:] <= blocks[:-1]).all()  # more frequent, earlier block
    assert cut_rows(torch.tensor([4, 4]), shares).tolist() == [0, 4]


def test_sizes_by_hand():
    # r = 1, 3, 0, 2 over columns 2, 2, 2, 2: three blocks in the first row block, two, one.
    drawn = torch.tensor([[1, 3, 0, 2], [0, 0, 0, 0], [3, 3, 3, 3]])
    assert find_sizes(drawn, 8, 3).tolist() == [[6, 4, 2], [0, 0, 0], [8, 8, 8]]
    assert find_sizes(torch.tensor([[3, 0, 0, 0]]), 10, 3).tolist() == [[3, 3, 3]]  # 3 + 3 + 2 + 2


def test_rows_are_cut_by_their_block_and_projected():
    table = make_table()
    table.sizes = torch.tensor([[8, 3, 0], [5, 4, 2]])
    ids = torch.tensor([[1, 0], [2, 1], [4, 1]])  # blocks 0, 1, 2 and 0, 2, 2
    limits = torch.tensor([[8, 5], [3, 2], [0, 2]])
    rows = table.table.to_dense()[ids + torch.tensor([0, 5])]
    cut = rows * (torch.arange(8) < limits[..., None])
    expected = torch.stack([cut[:, f] @ table.matrix[f] for f in range(2)], 1)
    torch.testing.assert_close(table(ids), expected)
    assert table.numbers() == 8 + 2 * 3 + 2 * 0 + 5 + 2


def test_draws_follow_the_policy_or_none():
    torch.manual_seed(0)
    table = make_table()
    with torch.no_grad():
        table.policy[0, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    for is_uniform, expected in ((False, [0.1, 0.2, 0.3, 0.4]), (True, [0.25] * 4)):
        drawn = torch.stack([table.draw(is_uniform=is_uniform)[0, 0] for _ in range(2000)])
        shares = torch.bincount(drawn, minlength=4) / 2000
        torch.testing.assert_close(shares, torch.tensor(expected), rtol=0, atol=0.04)


def make_run(table, optimizer):
    run = SimpleNamespace(model=None, kept={}, optimizers=[None, optimizer])
    run.next_rows = lambda data, size: torch.arange(2)
    return run


VALID = SimpleNamespace(
    ids=torch.zeros(2, 2),
    labels=torch.tensor([0.0, 1.0]),
    field_names=("a", "b"),
    cardinalities=(5, 2),
)


def test_a_policy_step_by_its_formula(monkeypatch):
    monkeypatch.setattr(nis, "evaluate", lambda model, data: {"auc": 0.7})
    config = dataclasses.replace(CONFIG, budget=0.25, cost_weight=0.5)
    table = make_table(config)
    run = make_run(table, torch.optim.SGD([table.policy], 1.0))
    run.kept["average"] = 0.4
    torch.manual_seed(3)
    drawn = table.draw(is_uniform=False)
    numbers = table.numbers()
    torch.manual_seed(3)
    reward = nis._update_policy(run, table, config, VALID)
    assert numbers > 14
    assert reward == pytest.approx(0.7 - 0.5 * (numbers / (0.25 * 56) - 1))
    # d log p / d logits = onehot - softmax, and the softmax is uniform over four.
    onehot = torch.nn.functional.one_hot(drawn, 4).float()
    torch.testing.assert_close(table.policy.detach(), (reward - 0.4) * (onehot - 0.25))
    assert run.kept["average"] == pytest.approx(0.9 * 0.4 + 0.1 * reward)


def test_numbers_within_the_budget_cost_nothing(monkeypatch):
    monkeypatch.setattr(nis, "evaluate", lambda model, data: {"auc": 0.7})
    config = dataclasses.replace(CONFIG, budget=1.0)
    table = make_table(config)
    run = make_run(table, torch.optim.SGD([table.policy], 1.0))
    assert nis._update_policy(run, table, config, VALID) == 0.7


def test_a_validation_batch_of_one_class_moves_no_policy():
    table = make_table()
    run = make_run(table, torch.optim.SGD([table.policy], 1.0))
    before = table.policy.detach().clone()
    for labels in (torch.zeros(2), torch.ones(2)):
        valid = SimpleNamespace(**{**vars(VALID), "labels": labels})
        assert nis._update_policy(run, table, CONFIG, valid) is None
    assert torch.equal(table.policy, before) and run.kept == {}


@pytest.mark.parametrize("budget", [0.25, 0.6])
def test_the_price_brings_the_policy_into_the_budget(monkeypatch, budget):
    """More numbers are better, up to the price of exceeding the budget."""
    config = dataclasses.replace(CONFIG, budget=budget)
    table = make_table(config)
    full = table.table.weight.numel()
    monkeypatch.setattr(nis, "evaluate", lambda model, data: {"auc": 0.2 * table.numbers() / full})
    run = make_run(table, torch.optim.Adam([table.policy], 0.05))
    torch.manual_seed(0)
    for _ in range(1500):
        nis._update_policy(run, table, config, VALID)
    nis._choose_best(table)
    assert 0.5 * budget * full < table.numbers() <= budget * full


def test_the_policy_moves_once_in_f_batches(monkeypatch):
    trained, moved = [], []
    monkeypatch.setattr(nis, "gradient_step", lambda *arguments: trained.append(1) or 0.5)
    monkeypatch.setattr(nis, "_update_policy", lambda *arguments: moved.append(len(trained)))
    config = dataclasses.replace(CONFIG, f=3, batch_size=50, warmup_epochs=1, search_epochs=1)
    search(config, make_parts(500))
    assert len(trained) == 16 and moved == [8, 11, 14]


def test_a_search_gives_a_plan_that_trains():
    parts, found = make_parts(), search()
    sizes = found.history[-1]["sizes"]
    counts = torch.bincount(parts[0].ids[:, 0].long(), minlength=IDS)
    blocks = cut_rows(counts, CONFIG.row_shares)
    assert found.plan["user"].tolist() == torch.tensor(sizes["user"])[blocks].tolist()
    for field in sizes.values():
        assert sorted(field, reverse=True) == field  # never more numbers for rarer rows
    assert found.history[-1]["params"] == found.plan.num_params
    assert found.score == found.history[-1]["valid"]["auc"] > 0.55
    assert found.history[0]["reward"] is None and found.history[1]["reward"] < 1
    assert found.history[0]["params"] == (2 * IDS + 16) * WIDTH  # nothing is chosen yet
    config = TrainConfig(batch_size=200, lr=5e-3, weight_decay=1e-5, max_epochs=2)
    _, measures = train_plan(
        make_model, found.plan, *parts, config, unify=found.unify, progress=False
    )
    assert measures["params"] == found.plan.num_params
    again = search(parts=parts)
    assert again.history == found.history and again.plan == found.plan


class KilledError(Exception):
    pass


@pytest.mark.parametrize("epochs_before", [1, 2])
def test_a_search_killed_between_epochs_resumes_bit_for_bit(tmp_path, monkeypatch, epochs_before):
    config, parts = dataclasses.replace(CONFIG, f=3), make_parts(2000)
    whole = search(config, parts)
    original = nis._search

    def killed(run, *arguments, **options):
        if len(run.history) == epochs_before:
            raise KilledError
        return original(run, *arguments, **options)

    monkeypatch.setattr(nis, "_search", killed)
    with pytest.raises(KilledError):
        search(config, parts, checkpoint_dir=tmp_path)
    monkeypatch.setattr(nis, "_search", original)
    for _ in range(2):
        resumed = search(config, parts, checkpoint_dir=tmp_path, resume=True)
        assert resumed.history == whole.history and resumed.plan == whole.plan


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"row_shares": (0.5, 0.2, 1.0)}, "row_shares must increase from above 0 to 1"),
        ({"row_shares": (0.5,)}, "row_shares must increase"),
        ({"row_shares": ()}, "row_shares must increase"),
        ({"column_blocks": 9}, "column_blocks must be at most the width 8, got 9"),
        ({"budget": 0.0}, r"budget must be in \(0, 1\], got 0.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        search(dataclasses.replace(CONFIG, **changed), make_parts(500))


def test_every_setting_explains_itself():
    assert all(field.metadata["help"] for field in dataclasses.fields(NISConfig))
