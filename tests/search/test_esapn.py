"""ESAPN: rows that grow, policies that learn, and what a prediction may know."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.search.test_esapn_stream import SMALL, make_stream
from varemb import SizePlan
from varemb.search import ESAPN, ESAPNConfig
from varemb.search.esapn import Decision

SIZES = (2, 4, 8)


def make(**settings):
    return ESAPN(ESAPNConfig(**{**SMALL, "sizes": SIZES, **settings}))


def sizes_by_count(stream, last):
    """Places of the sizes if every row grew whenever it could."""
    places = []
    for ids in (stream.users, stream.items):
        batches = [np.unique(ids[s : s + 50]) for s in range(0, len(ids), 50)]
        seen = {}
        for each in batches:
            for one in each.tolist():
                seen[one] = seen.get(one, 0) + 1
        places.append(sorted(min(count, last) for count in seen.values()))
    return places


def test_a_row_that_grows_keeps_its_vector():
    method = make(policy="random", chance=0.0)
    stream = make_stream(100)
    for events in stream.batches(50):
        method.partial_fit(events)
    side = method.learner.sides[0]
    rows = torch.arange(len(side))
    for _ in range(2):
        before = side.table(rows).detach().clone()
        method.learner._grow(side, rows.numpy()[::2])
        torch.testing.assert_close(side.table(rows).detach(), before)
        side.check()
    assert side.dims()[::2].tolist() == [8] * len(rows[::2])
    assert side.dims()[1::2].tolist() == [2] * len(rows[1::2])


def test_always_grows_once_per_batch_and_never_shrinks():
    stream = make_stream(1000)
    result = make(policy="always").fit(stream, progress=False)
    expected = sizes_by_count(stream, 2)
    for name, places in zip(("user", "item"), expected, strict=True):
        assert sorted(result.plan[name]) == [SIZES[place] for place in places]
    live = [record["live_numbers"] for record in result.history]
    assert live == sorted(live) and live[-1] == result.params == result.plan.num_params


def test_bytes_of_the_maps_are_their_own():
    result = make().fit(make_stream(100), progress=False)
    numbers = (2 * 4 + 4) + (4 * 8 + 8) + 8 * 8  # two maps, the identity
    places = 9 * 2  # of sizes 0 to 8, 8 bytes each
    assert result.bytes["unify"] == 2 * (4 * numbers + 8 * places)


def test_random_with_chance_0_never_grows_and_between_grows_some():
    stream = make_stream(500)
    never, some, always = (
        make(**settings).fit(stream, progress=False)
        for settings in (
            {"policy": "random", "chance": 0.0},
            {"policy": "random", "chance": 0.1},
            {"policy": "always"},
        )
    )
    assert set(never.plan["user"]) == set(never.plan["item"]) == {2}
    assert never.params < some.params < always.params


@pytest.mark.parametrize("reward", ["immediate", "delayed"])
def test_a_price_above_all_losses_teaches_rows_not_to_grow(reward):
    numbers = {}
    for price in (0.0, 5.0):
        method = make(policy_lr=0.01, hidden=32, reward=reward, price=price)
        live = [method.partial_fit(b)["live_numbers"] for b in make_stream(2500).batches(50)]
        numbers[price] = live[-1]
    assert numbers[5.0] < numbers[0.0]
    assert live[-1] < 1.05 * live[-15]  # by then the policy knows


def test_a_prediction_does_not_see_its_label():
    stream = make_stream(300)
    batches = list(stream.batches(50))
    flipped = dataclasses.replace(batches[-1], ratings=6 - batches[-1].ratings)
    accuracies = []
    for last in (batches[-1], flipped):
        method = make()
        for events in batches[:-1]:
            method.partial_fit(events)
        accuracies.append(method.partial_fit(last)["accuracy"])
    assert accuracies[0] == pytest.approx(1 - accuracies[1])


def with_two_rows(monkeypatch, **settings):
    """A learner with two rows a side that have had losses, and the rewards that it then learns."""
    learner, learnt = make(past_losses=3, **settings).learner, []
    for side in learner.sides:
        side.leave(side.enter(np.array([7, 9, 7, 7]), learner.generator))
        side.column("losses")[:2] = [[0.5, 0.7, 0.0], [0.1, 0.2, 0.6]]
        side.column("pushes")[:2] = [2, 7]  # means of 0.6 and 0.3
    monkeypatch.setattr(learner, "_ascend", lambda decisions, rewards: learnt.append(rewards))
    return learner, learnt


def test_the_reward_is_what_a_row_lost_of_late_less_what_it_loses_now(monkeypatch):
    learner, learnt = with_two_rows(monkeypatch)
    monkeypatch.setattr(learner, "_predict", lambda *_, track: torch.zeros(2, 1))  # losses of 0.25
    learner._improve_policies(torch.tensor([[0, 1], [1, 0]]), torch.tensor([0.0, 1.0]))
    users, items = learnt[0]
    torch.testing.assert_close(users, torch.tensor([0.35, 0.05]))
    torch.testing.assert_close(items, torch.tensor([0.05, 0.35]))


def test_the_delayed_reward_is_that_of_the_last_decision_less_the_mean(monkeypatch):
    learner, learnt = with_two_rows(monkeypatch, reward="delayed")
    seen = tuple(side.enter(np.array([7, 9, 7]), learner.generator) for side in learner.sides)
    for side in learner.sides:
        side.column("decided")[:2] = [[3, 0, 1], [1, 1, 0]]
    decided = (np.array([0]), Decision(torch.empty(0), torch.tensor([1]), torch.tensor([1])))
    learner._reward_decisions(seen, [decided] * 2, torch.tensor([0.9, 0.1, 0.2]))
    for side, rewards in zip(learner.sides, learnt[0], strict=True):
        # 0.6 - 0.2 of the row's last event, and 0.3 - 0.1
        torch.testing.assert_close(rewards, torch.tensor([0.1, -0.1]))
        assert side.column("decided")[:2].tolist() == [[5, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("reward", ["immediate", "delayed"])
def test_a_decision_counts_the_events_of_its_own_batch(monkeypatch, reward):
    learner, _ = with_two_rows(monkeypatch, reward=reward)
    seen, asked = learner.sides[0].enter(np.array([7, 9, 11, 7]), learner.generator), []

    def logits(number, frequency, sizes):
        asked.append(frequency.tolist())
        return torch.zeros(len(sizes), 2)

    monkeypatch.setattr(learner, "_logits", logits)
    learner._decide(0, seen)
    assert asked == [[5, 2, 1]]


def test_ascent_makes_what_was_rewarded_likelier_after_the_price_of_growing():
    learner = make(price=0.8, sizes=(2, 3, 8)).learner  # growing costs 0.1 from 2, 0.5 from 3
    logits = torch.zeros(3, 2, requires_grad=True)
    decision = Decision(logits, torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0]))
    learner._ascend([decision], [torch.ones(3)])
    slopes = torch.tensor([[0.45, -0.45], [0.25, -0.25], [-0.5, 0.5]])
    torch.testing.assert_close(logits.grad, slopes)


def test_shared_normalisation_makes_actions_invisible_to_the_reward():
    losses = {}
    for norm in ("shared", "per_size"):
        method = make(norm=norm, policy="random", chance=0.0)
        for events in make_stream(500).batches(50):
            method.partial_fit(events)
        learner = method.learner
        rows = torch.stack([torch.arange(20), torch.arange(20)])
        size = torch.zeros(2, 20, dtype=torch.int64)
        grown = size + (torch.arange(20) < 10)
        losses[norm] = [
            learner._predict(rows, size, each, track=False).detach() for each in (size, grown)
        ]
    assert torch.equal(*losses["shared"])
    assert not torch.allclose(*losses["per_size"])


def test_scoring_changes_no_table_and_no_statistics():
    method = make()
    for events in make_stream(200).batches(50):
        method.partial_fit(events)
    learner = method.learner
    before = {name: value.clone() for name, value in learner.modules["model"].state_dict().items()}
    tables = [side.table.to_dense() for side in learner.sides]
    learner._improve_policies(*learner.history.draw(50))
    after = learner.modules["model"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(
        torch.equal(a, s.table.to_dense()) for a, s in zip(tables, learner.sides, strict=True)
    )


@pytest.mark.parametrize(
    ("histogram", "total", "full", "ratio"),
    [
        ((1041, 10854, 18146, 30836, 22830, 54786), 9157770, 17727104, 51.66),
        ((17032, 216, 380, 623, 2237, 6790), 1060224, 3491584, 30.37),
        ((62808, 83190, 31450, 22778, 31613, 51389), 9675448, 36253184, 26.69),
        ((45430, 2089, 2006, 1678, 1545, 5350), 925792, 7436544, 12.45),
    ],
)
def test_histograms_of_the_paper_give_its_table_2(histogram, total, full, ratio):
    dims = np.repeat(ESAPNConfig().sizes, histogram)
    plan = SizePlan({"side": dims}, 128)
    assert (plan.num_params, plan.num_params_full) == (total, full)
    assert round(100 * plan.num_params / plan.num_params_full, 2) == ratio


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": (4, 2)}, "sizes must be positive and increasing"),
        ({"policy": "best"}, "policy must be one of learned, always, random, got 'best'"),
        ({"norm": "row"}, "norm must be one of"),
        ({"validation": "future"}, "validation must be one of"),
        ({"reward": "late"}, "reward must be one of"),
        ({"chance": 1.5}, r"chance must be in \[0, 1\], got 1.5"),
        ({"price": -1.0}, "price must not be negative"),
        ({"past_losses": 0}, "past_losses must be at least 1"),
        ({"task": "ranking"}, "task must be one of binary, multiclass"),
        ({"task": "multiclass", "highest": 10.0}, "the 5 classes need ratings within"),
        ({"reported": 0.0}, r"reported must be in \(0, 1\]"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"compact_above": 0.5}, "compact_above must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings).fit(make_stream(100), progress=False)
