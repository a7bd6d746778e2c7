import dataclasses
from types import SimpleNamespace

import pytest
import torch

from varemb.data import planted_clicks
from varemb.models import WideDeep
from varemb.search import TrainConfig, optembed, train_plan
from varemb.search.optembed import (
    LongTailedStep,
    MaskedTable,
    OptEmbed,
    OptEmbedConfig,
    cross,
    mutate,
)

IDS, WIDTH = 30, 8
CONFIG = OptEmbedConfig(
    width=WIDTH, t_lr=0.5, epochs=3, population=6, parents=3, generations=3, batch_size=200,
    lr=5e-3, weight_decay=1e-3,
)  # fmt: skip


def make_parts(rows=4000):
    return planted_clicks(rows, dims={"user": 4, "city": 2}, ids_per_field=IDS, scale=3.0).split(0)


def make_model(embedding):
    return WideDeep((IDS, IDS, 16), WIDTH, embedding, hidden=(16,))


def search(config=CONFIG, parts=None, **options):
    parts = make_parts() if parts is None else parts
    return OptEmbed(config).fit(make_model, parts[0], parts[1], progress=False, **options)


def test_the_surrogate_gradient_by_hand():
    x = torch.tensor([-1.5, -1.0, -0.7, -0.4, -0.1, 0.0, 0.2, 0.3, 0.4, 0.41, 1.0, 1.01])
    x.requires_grad_()
    y = LongTailedStep.apply(x)
    assert y.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    (y * 3).sum().backward()
    slopes = [0, 0.4, 0.4, 0.4, 1.6, 2.0, 1.2, 0.8, 0.4, 0.4, 0.4, 0]
    torch.testing.assert_close(x.grad, 3 * torch.tensor(slopes))


def make_table():
    table = MaskedTable([2, 1], 3, 0.0, 0.01).eval()
    with torch.no_grad():
        table.table.weight.copy_(torch.tensor([0.1, -0.2, 0.1, 1.0, 1.0, -1.0, 0.5, 0.1, 0.1]))
        table.t.copy_(torch.tensor([0.5, 0.6]))
    return table


def test_small_rows_are_dropped_and_rows_are_cut():
    table, ids = make_table(), torch.tensor([[0, 0], [1, 0]])
    whole = [[[0, 0, 0], [0.5, 0.1, 0.1]], [[1, 1, -1], [0.5, 0.1, 0.1]]]
    torch.testing.assert_close(table(ids), torch.tensor(whole))
    table.dims = torch.tensor([2, 1])
    cut = [[[0, 0, 0], [0.5, 0, 0]], [[1, 1, 0], [0.5, 0, 0]]]
    torch.testing.assert_close(table(ids), torch.tensor(cut))
    assert [kept.tolist() for kept in table.kept_rows()] == [[False, True], [True]]


def test_thresholds_and_rows_get_the_surrogates_gradient():
    table = make_table()
    (table(torch.tensor([[0, 0]])) * torch.tensor([2.0, 1.0, 1.0])).sum().backward()
    # x = |e|_1 - t = -0.1 and 0.1: slope 1.6; the gradient of the mask is <e, (2, 1, 1)>.
    torch.testing.assert_close(table.t.grad, torch.tensor([-1.6 * 0.1, -1.6 * 1.2]))
    dropped = 1.6 * 0.1 * torch.tensor([1.0, -1.0, 1.0])
    kept = torch.tensor([2.0, 1.0, 1.0]) + 1.6 * 1.2
    expected = torch.cat([dropped, torch.zeros(3), kept])
    torch.testing.assert_close(table.table.weight.grad, expected)


def test_in_training_each_example_and_field_has_its_own_prefix():
    table = make_table().train()
    with torch.no_grad():
        table.table.weight.fill_(1.0)
    torch.manual_seed(0)
    out = table(torch.zeros(3000, 2, dtype=torch.int64))
    lengths = out.sum(2)
    assert torch.equal(out, (torch.arange(3) < lengths[..., None]).float())
    for dim in (1, 2, 3):
        shares = (lengths == dim).float().mean(0)
        torch.testing.assert_close(shares, torch.full((2,), 1 / 3), rtol=0, atol=0.03)
    assert (lengths[:, 0] != lengths[:, 1]).float().mean() > 0.6


def test_mutation_leaves_the_parents_and_redraws_some_fields():
    parents = [[5] * 4000]
    torch.manual_seed(0)
    child = mutate(parents, CONFIG)
    assert parents == [[5] * 4000]
    changed = sum(dim != 5 for dim in child) / 4000
    assert abs(changed - 0.1 * 7 / 8) < 0.02
    assert set(child) == set(range(1, WIDTH + 1))


def test_a_crossover_cuts_between_two_fields():
    torch.manual_seed(0)
    children = {tuple(cross([[1, 1, 1], [2, 2, 2]])) for _ in range(100)}
    assert children == {(1, 1, 1), (2, 2, 2), (1, 1, 2), (1, 2, 2), (2, 1, 1), (2, 2, 1)}
    assert cross([[4]]) == [4]


def test_evolution_finds_the_fittest_dims_with_frozen_weights(monkeypatch):
    table = MaskedTable([3, 3, 3], WIDTH, 0.0, 0.01)
    goal = torch.tensor([2, 7, 4])

    def judge(model, data):
        return {"auc": 1 - float((table.dims - goal).abs().sum()) / 30}

    monkeypatch.setattr(optembed, "evaluate", judge)
    run = SimpleNamespace(model=None, kept={})
    config = dataclasses.replace(CONFIG, population=20, parents=15)
    torch.manual_seed(0)
    before = table.table.weight.clone()
    records = [optembed._evolve(run, table, config, None, g) for g in range(1, 31)]
    scores = [record["valid"]["auc"] for record in records]
    assert scores == sorted(scores) and scores[-1] > scores[0]
    assert records[-1]["dims"] == goal.tolist()
    assert torch.equal(table.table.weight, before) and table.dims is None


def test_a_search_gives_a_plan_that_trains():
    parts, found = make_parts(), search()
    tables = list(found.plan.tables.values())
    assert found.unify == "pad" and found.plan.widths["user"] == WIDTH
    for dims, best in zip(tables, found.history[-1]["dims"], strict=True):
        assert set(dims.tolist()) <= {0, best}
    assert found.score == found.history[-1]["valid"]["auc"] > 0.6
    config = TrainConfig(batch_size=200, lr=5e-3, weight_decay=1e-5, max_epochs=2)
    _, measures = train_plan(
        make_model, found.plan, *parts, config, unify=found.unify, progress=False
    )
    assert measures["params"] == found.plan.num_params


def test_rows_below_the_threshold_have_no_numbers():
    found = search(dataclasses.replace(CONFIG, t_init=0.3, alpha=0.0, t_lr=1e-9))
    kept = found.history[CONFIG.epochs - 1]["kept_rows"]
    stored = [int((dims > 0).sum()) for dims in found.plan.tables.values()]
    assert stored == kept
    assert 0 < sum(stored) < 2 * IDS + 16


def test_a_larger_alpha_raises_the_thresholds():
    low, high = (
        search(dataclasses.replace(CONFIG, alpha=alpha, generations=1)).history[2]["thresholds"]
        for alpha in (0.0, 0.01)
    )
    assert all(a < b for a, b in zip(low, high, strict=True))


class KilledError(Exception):
    pass


@pytest.mark.parametrize("step, epochs_before", [("_train", 2), ("_evolve", 4)])
def test_a_search_killed_between_epochs_resumes_bit_for_bit(
    tmp_path, monkeypatch, step, epochs_before
):
    parts = make_parts(2000)
    whole = search(parts=parts)
    original = getattr(optembed, step)

    def killed(run, *arguments, **options):
        if len(run.history) == epochs_before:
            raise KilledError
        return original(run, *arguments, **options)

    monkeypatch.setattr(optembed, step, killed)
    with pytest.raises(KilledError):
        search(parts=parts, checkpoint_dir=tmp_path)
    monkeypatch.setattr(optembed, step, original)
    resumed = search(parts=parts, checkpoint_dir=tmp_path, resume=True)
    assert resumed.history == whole.history and resumed.plan == whole.plan
    assert resumed.score == whole.score


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"mutation": 1.5}, r"mutation must be in \[0, 1\], got 1.5"),
        ({"parents": 0}, "parents must be at least 1, got 0"),
        ({"width": 257}, "a width of 257 must be a multiple of 2"),
        ({"generations": 0}, "generations must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        search(dataclasses.replace(CONFIG, **changed), make_parts(1000))


def test_every_setting_explains_itself():
    assert all(field.metadata["help"] for field in dataclasses.fields(OptEmbedConfig))
