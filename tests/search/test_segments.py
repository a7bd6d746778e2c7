"""Segments: where they are cut, what they train and are tested on, what they may not know."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from varemb.search.segments import (
    FrameConfig,
    Part,
    Past,
    check_order,
    count_new,
    cut_segments,
    frame_from,
    frame_state,
    sample_reservoir,
    split_events,
)

CONFIG = FrameConfig()


def draw_events(seed, count, users=40, items=60):
    draw = np.random.default_rng(seed)
    return draw.integers(users, size=count) + 1000, draw.integers(items, size=count) + 5


def open_both(config=CONFIG, change=lambda users, items: None):
    """The frames of two segments; `change` may edit the raw events of the second."""
    past, generator = Past(), torch.Generator().manual_seed(0)
    first = past.open_segment(*draw_events(1, 200), config, generator)
    users, items = draw_events(2, 100)
    change(users, items)
    return first, past.open_segment(users, items, config, generator), past


def pairs_of(part):
    return list(zip(part.users.tolist(), part.items.tolist(), strict=True))


def test_count_new_counts_both_sides():
    assert count_new(np.array([1, 2, 1, 2]), np.array([7, 7, 8, 8])).tolist() == [2, 1, 1, 0]


def test_cut_segments_closes_with_the_event_that_passes_the_threshold():
    users, items = np.arange(20), np.arange(20)  # two new ids an event
    assert cut_segments(users, items, 7) == [4, 8, 12, 16, 20]
    assert cut_segments(users[:18], items[:18], 7) == [4, 8, 12, 16, 18]  # half a segment
    assert cut_segments(users[:17], items[:17], 7) == [4, 8, 12, 17]  # less joins the last one


def test_cut_segments_says_what_the_stream_has():
    with pytest.raises(
        ValueError, match=r"20 events bring 40 users and items.*threshold is 50 new"
    ):
        cut_segments(np.arange(20), np.arange(20), 50)


def test_reservoir_is_a_sample_of_the_users_past_in_order():
    past = Part(np.arange(100) % 10, np.arange(100))
    some = sample_reservoir(past, np.array([3, 4, 77]), 8, torch.Generator().manual_seed(0))
    assert len(some) == 8
    assert set(some.users.tolist()) <= {3, 4}
    assert (np.diff(some.items) > 0).all()
    everything = sample_reservoir(past, np.array([3]), 50, torch.Generator())
    assert everything.items.tolist() == list(range(3, 100, 10))


def test_reservoir_is_uniform():
    past = Part(np.zeros(10, np.int64), np.arange(10))
    generator = torch.Generator().manual_seed(1)
    drawn = [sample_reservoir(past, np.zeros(1), 3, generator).items for _ in range(2000)]
    shares = np.bincount(np.concatenate(drawn), minlength=10) / 2000
    assert np.abs(shares - 0.3).max() < 0.04


def test_a_frame_is_the_reservoir_and_four_fifths():
    first, second, past = open_both()
    assert len(first.fit) == 160 - 16  # no past yet: 80 % of 200, a tenth of it for validation
    assert len(second.fit) == 96 - 9  # 80 % of 20 old and 100 new
    assert 0 < len(second.valid) <= 9
    assert first.user_counts.sum() == first.item_counts.sum() == 160
    assert second.user_counts.sum() == second.item_counts.sum() == 96
    assert len(second.test) + second.unknown == 24
    assert len(past.events) == 200 + 76


def test_history_is_in_the_graph_but_not_in_the_pairs():
    first, second, _ = open_both()
    known = pairs_of(second.known)
    assert known[: len(first.fit)] == pairs_of(first.fit)
    assert len(known) == 200 + 76 - 9
    old = set(pairs_of(second.fit)[:20])
    assert old <= set(known[:200])


def test_nothing_depends_on_what_comes_later():
    split = split_events(20, 100, 0.8)

    def change_test(users, items):
        users[split:], items[split:] = 9_000 + np.arange(24), 8_000 + np.arange(24)

    _, plain, _ = open_both()
    _, other, past = open_both(change=change_test)
    for name in ("fit", "known"):
        assert pairs_of(getattr(plain, name)) == pairs_of(getattr(other, name))
    assert np.array_equal(plain.user_counts, other.user_counts)
    assert other.unknown == 24  # they have no rows yet
    assert len(past.users) == len(plain.user_counts)


def test_validation_and_test_are_not_in_the_graph():
    _, frame, past = open_both()
    later = pairs_of(past.events[len(past.events) - 9 :])
    known = pairs_of(frame.known)
    assert set(pairs_of(frame.valid)) <= set(later)
    assert pairs_of(past.events)[: len(known)] == known


def test_early_stop_by_test_trains_on_the_whole_train_part():
    _, frame, _ = open_both(FrameConfig(early_stop="test"))
    assert (len(frame.fit), len(frame.valid)) == (96, 0)


def test_ids_of_the_test_part_come_with_the_next_segment():
    past, generator = Past(), torch.Generator().manual_seed(0)
    users = np.array([1] * 8 + [50, 51])
    past.open_segment(users, np.arange(10), CONFIG, generator)
    assert past.users.ids().tolist() == [1]
    past.open_segment(np.array([1, 1]), np.array([3, 4]), CONFIG, generator)
    assert past.users.ids().tolist() == [1, 50, 51]


def test_too_many_rows_are_refused_before_they_are_learnt():
    past, generator = Past(), torch.Generator().manual_seed(0)
    users, items = draw_events(3, 50)
    with pytest.raises(ValueError, match=r"at least a number per row; .* the budget is 10 numbers"):
        past.open_segment(users, items, CONFIG, generator, most_rows=10)
    assert len(past.users) == len(past.items) == len(past.events) == 0


def test_a_segment_that_is_refused_again_and_again_adds_nothing():
    """The test part before it is learnt once."""
    past, generator = Past(), torch.Generator().manual_seed(0)
    past.open_segment(*draw_events(1, 100), CONFIG, generator)
    counts = []
    for _ in range(3):
        with pytest.raises(ValueError, match="at least a number per row"):
            past.open_segment(*draw_events(3, 50), CONFIG, generator, most_rows=1)
        counts.append(len(past.events))
    assert counts == [100] * 3


def test_past_and_frame_continue_from_their_state():
    _, frame, past = open_both()
    other = Past()
    other.load_state(past.state())
    frames = [
        each.open_segment(*draw_events(4, 90), CONFIG, torch.Generator().manual_seed(5))
        for each in (past, other)
    ]
    for one, two in (frames, (frame, frame_from(frame_state(frame)))):
        for name in ("fit", "valid", "test", "known"):
            assert pairs_of(getattr(one, name)) == pairs_of(getattr(two, name))
        assert np.array_equal(one.user_counts, two.user_counts)
        assert np.array_equal(one.item_counts, two.item_counts)
        assert one.unknown == two.unknown


def make_events(**changes):
    columns = {"users": np.arange(4), "items": np.arange(4), "times": np.array([1, 1, 3, 7])}
    return SimpleNamespace(**{**columns, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": np.array([1, 5, 3, 7])}, "in the order of time, got 3 after 5 at event 2"),
        ({"users": np.array([0, -7, 1, 2])}, r"user ids must be in \[0, 2\^63 - 1\], got -7 at"),
        ({"items": np.arange(3)}, "must be equally long"),
    ],
)
def test_check_order_names_the_first_bad_event(changes, message):
    assert check_order("SCALL", make_events())[0].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=message):
        check_order("SCALL", make_events(**changes))
