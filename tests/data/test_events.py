"""Streams of events in memory and live: order, batches, and what is refused."""

import numpy as np
import pytest

from varemb.data import EventStream, live_batches

MOST = 2**63 - 1


def make(users=(1, 2, 1), items=(5, 5, 6), ratings=(1.0, 2.0, 3.0), times=(10, 10, 12)):
    return EventStream(users, items, ratings, times, "clicks")


def test_columns_get_their_types():
    stream = make(users=np.array([1, MOST, 0], np.uint64), ratings=np.array([1, 2, 3], np.int8))
    assert stream.users.dtype == stream.items.dtype == stream.times.dtype == np.int64
    assert stream.users.tolist() == [1, MOST, 0]
    assert stream.ratings.dtype == np.float32
    assert len(stream) == 3


def test_dates_are_times_in_their_own_unit():
    times = np.array(["2001-02-03", "2001-02-03", "2001-02-04"], "datetime64[D]")
    assert np.diff(make(times=times).times).tolist() == [0, 1]


def test_no_events():
    stream = EventStream([], [], [])
    assert len(stream) == 0 and stream.users.dtype == np.int64
    assert list(stream.batches(2)) == []


def test_the_last_batch_is_shorter():
    batches = list(make().batches(2))
    assert [batch.items.tolist() for batch in batches] == [[5, 5], [6]]
    assert [batch.times.tolist() for batch in batches] == [[10, 10], [12]]
    assert batches[1].name == "clicks"
    with pytest.raises(ValueError, match="clicks: a batch must have at least 1 event, got 0"):
        next(make().batches(0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"users": [1, -4, 1]}, r"event 1, column users: must be a whole number .*, got -4"),
        ({"items": np.array([5, 5, 2**63], np.uint64)}, r"event 2, column items: .*2\^63 - 1"),
        ({"users": [1.0, 2.0, 3.0]}, r"event 0, column users: must be a whole number"),
        (
            {"users": [["a"]]},
            r"column users: must be one of a column \[R\], got the shape \[1, 1\]",
        ),
        ({"ratings": [1, float("nan"), 3]}, r"event 1, column ratings: .* finite .*, got nan"),
        ({"ratings": [1, 2, 1e300]}, r"event 2, column ratings: .*got 1e\+300"),
        ({"times": [10, 12, 11]}, r"event 2, column times: must not be before .*: 11 after 12"),
        ({"times": np.array([1, "NaT", 2], "datetime64[s]")}, r"event 1, column times: .*NaT"),
        (
            {"times": [1, 2]},
            r"equally long, got {'users': 3, 'items': 3, 'ratings': 3, 'times': 2}",
        ),
    ],
)
def test_bad_events_are_named(changed, message):
    with pytest.raises(ValueError, match=r"^clicks: .*" + message):
        make(**changed)


def test_live_batches_are_gathered_to_a_size():
    source = [{"users": [u] * n, "items": [n] * n} for u, n in enumerate((1, 0, 4, 2))]
    batches = list(live_batches(iter(source), 3))
    assert [batch.users.tolist() for batch in batches] == [[0, 2, 2], [2, 2, 3], [3]]
    assert batches[0].ratings.tolist() == [1, 1, 1] and batches[0].times is None
    kept = list(live_batches(source))
    assert [len(batch) for batch in kept] == [1, 4, 2]


def test_live_batches_are_delivered_as_they_come():
    def source():
        yield {"users": [1, 2], "items": [1, 2]}
        raise AssertionError("asked for more than was needed")

    assert next(live_batches(source(), 2)).users.tolist() == [1, 2]


def test_live_times_must_not_fall_over_batches():
    first, second = make(), make(times=(11, 13, 13))
    batches = live_batches([first, second], order="time", name="live")
    assert next(batches).times.tolist() == [10, 10, 12]
    with pytest.raises(ValueError, match=r"live: event 3, column times: .*: 11 after 12"):
        next(batches)
    # As they come, times are not looked at.
    assert [batch.times for batch in live_batches([first, second])] == [None, None]


@pytest.mark.parametrize(
    ("batch", "order", "message"),
    [
        ({"users": [1, -1], "items": [1, 1]}, "file", "s: event 1,001, column users: .* got -1"),
        ({"users": [1]}, "file", "s: event 1,000: the column items is missing"),
        ({"users": [1], "items": [1]}, "time", "s: event 1,000: the column times is missing"),
        ({"users": [1], "items": [1], "price": [1]}, "file", "unknown column price, there are"),
        ({"users": [1], "items": [1, 2]}, "file", "equally long"),
    ],
)
def test_bad_live_events_are_counted_from_the_beginning(batch, order, message):
    good = {"users": range(1000), "items": range(1000), "times": range(1000)}
    batches = live_batches([good, batch], order=order, name="s")
    assert len(next(batches)) == 1000
    with pytest.raises(ValueError, match=message):
        next(batches)


def test_live_batches_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="order must be time or file, got 'shuffle'"):
        next(live_batches([], order="shuffle"))
    with pytest.raises(ValueError, match="at least 1 event, got 0"):
        next(live_batches([], 0))
