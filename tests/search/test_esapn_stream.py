"""What all methods on streams share: batches, resume, bad events, results."""

import copy
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from varemb.search import (
    ESAPN,
    ESAPNConfig,
    StreamAutoEmb,
    StreamAutoEmbConfig,
    StreamDARTS,
    StreamDARTSConfig,
    StreamFixed,
    StreamFixedConfig,
)
from varemb.search.stream_events import losses
from varemb.search.stream_history import History
from varemb.search.stream_recorder import Recorder, Scored
from varemb.search.stream_side import Side
from varemb.storage import tensors_of

SMALL = {"hidden": 16, "batch_size": 50, "window": 200, "checkpoint_every": 2}
SIZES = (2, 4, 8)
METHODS = {
    "esapn": lambda **more: ESAPN(ESAPNConfig(**{**SMALL, "sizes": SIZES, **more})),
    "delayed": lambda **more: ESAPN(
        ESAPNConfig(**{**SMALL, "sizes": SIZES, "reward": "delayed", "price": 0.01, **more})
    ),
    "fixed": lambda **more: StreamFixed(StreamFixedConfig(**{**SMALL, "dim": 8, **more})),
    "darts": lambda **more: StreamDARTS(StreamDARTSConfig(**{**SMALL, "sizes": SIZES, **more})),
    "autoemb": lambda **more: StreamAutoEmb(
        StreamAutoEmbConfig(**{**SMALL, "sizes": SIZES, **more})
    ),
}


@dataclasses.dataclass(frozen=True)
class Stream:
    """Events in memory."""

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray
    times: None = None
    name: str = "planted"

    def batches(self, size):
        for start in range(0, len(self.users), size):
            part = slice(start, start + size)
            yield Stream(self.users[part], self.items[part], self.ratings[part])


def make_stream(events, seed=0, ids=(60, 40)):
    """Ratings whose sign is that of the product of a user's and an item's hidden sign."""
    draw = np.random.default_rng(seed)
    users = (ids[0] * draw.random(events) ** 2).astype(np.int64)
    items = (ids[1] * draw.random(events) ** 2).astype(np.int64)
    is_good = (users % 2) == (items % 2)
    # Raw ids are large and have gaps.
    return Stream(users * 10**12, 2**63 - 1 - items, np.where(is_good, 5, 1).astype(np.float32))


@pytest.fixture(params=METHODS)
def make(request):
    return METHODS[request.param]


def test_a_planted_problem_is_learnt(make):
    stream = make_stream(3000, ids=(10, 8))
    result = make(lr=0.01, table_lr=0.02, hidden=32).fit(stream, progress=False)
    assert result.metrics["accuracy"] > 0.9
    assert result.metrics["accuracy_all"] < result.metrics["accuracy"]


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(make):
    stream = make_stream(500)
    first, again = (make().fit(stream, progress=False) for _ in range(2))
    assert first.metrics == again.metrics and first.history == again.history
    assert first.tables == again.tables
    assert make(seed=1).fit(stream, progress=False).metrics != first.metrics


class KilledError(Exception):
    """Stands for the end of the process."""


def interrupted(stream, events):
    class Stops(type(stream)):
        def batches(self, size):
            for number, batch in enumerate(super().batches(size)):
                if number * size >= events:
                    raise KilledError
                yield batch

    return Stops(**dataclasses.asdict(stream))


def test_a_resumed_run_ends_like_one_that_was_not_interrupted(make, tmp_path):
    stream = make_stream(730)
    whole = make().fit(stream, progress=False)
    for events in (250, 600):
        with pytest.raises(KilledError):
            make().fit(
                interrupted(stream, events), progress=False, checkpoint_dir=tmp_path,
                resume=events > 250,
            )  # fmt: skip
    method = make()
    resumed = method.fit(stream, progress=False, checkpoint_dir=tmp_path, resume=True)
    assert resumed.metrics == whole.metrics and resumed.tables == whole.tables
    assert resumed.params == whole.params
    with pytest.raises(ValueError, match="written with seed = 0, got 1"):
        make(seed=1).fit(stream, progress=False, checkpoint_dir=tmp_path, resume=True)
    other = make_stream(730, seed=1)
    with pytest.raises(ValueError, match="written with content"):
        make().fit(other, progress=False, checkpoint_dir=tmp_path, resume=True)
    other = dataclasses.replace(stream, ratings=6 - stream.ratings)
    with pytest.raises(ValueError, match="was written with content = "):
        make().fit(other, progress=False, checkpoint_dir=tmp_path, resume=True)


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from tests.search.test_esapn_stream import METHODS, make_stream
from varemb.search.stream_method import StreamMethod
if len(sys.argv) > 2:
    learn, left = StreamMethod.partial_fit, [int(sys.argv[2])]
    def partial_fit(self, events):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return learn(self, events)
    StreamMethod.partial_fit = partial_fit
stream = make_stream(400)
folder = sys.argv[1]
print(METHODS["esapn"]().fit(stream, progress=False, checkpoint_dir=folder, resume=True).metrics)
print(METHODS["esapn"]().fit(stream, progress=False).metrics)
"""


def test_a_killed_process_is_resumed_to_the_same_metrics(tmp_path):
    code = SCRIPT.format(root=str(Path(__file__).parents[2]))

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), *arguments],
            capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "0"},
        )  # fmt: skip

    killed = run("5")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "esapn.safetensors").exists()
    resumed = run()
    assert resumed.returncode == 0, resumed.stderr
    after_kill, whole = resumed.stdout.splitlines()
    assert after_kill == whole and "accuracy" in whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": [3, -1, 4]}, r"user ids must be in \[0, 2\^63 - 1\], got -1 at event 1"),
        ({"items": np.array([1, 2, 2**63], np.uint64)}, "item ids .* got 9223372036854775808 at"),
        ({"items": [1.5, 2.0, 3.0]}, "item ids must be a vector of whole numbers, got float64"),
        ({"ratings": [1.0, 5.5, 3.0]}, r"ratings must be within \[0.5, 5.0\], got 5.5 at event 1"),
        ({"ratings": [1.0, 2.0, np.nan]}, "ratings .* got nan at event 2"),
        ({"ratings": ["a", "b", "c"]}, "ratings must be numbers"),
        ({"ratings": [1.0, 2.0]}, "users, items and ratings must be equally long"),
    ],
)
def test_bad_events_are_refused_and_change_nothing(change, message):
    method = METHODS["esapn"]()
    for events in make_stream(200).batches(50):
        method.partial_fit(events)
    before = method.state()
    good = {"users": [1, 2, 3], "items": [1, 2, 3], "ratings": [1.0, 2.0, 3.0], "times": None}
    events = Stream(**{k: v if v is None else np.asarray(v) for k, v in {**good, **change}.items()})
    with pytest.raises(ValueError, match=message):
        method.partial_fit(events)
    assert_same_state(before, method.state())


def assert_same_state(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        # Room that no row has yet is NaN in these tests.
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_state(one[key], other[key])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_same_state(a, b)
    else:
        assert one == other


def test_a_loss_that_is_not_finite_leaves_the_weights(make):
    method = make()
    stream = make_stream(100)
    for events in stream.batches(50):
        method.partial_fit(events)
    with torch.no_grad():
        method.learner.inference.out.bias.fill_(torch.nan)

    def vectors():  # rows may grow, but keep their vectors
        return [side.table(torch.arange(len(side))).detach() for side in method.learner.sides]

    before = vectors()
    with pytest.raises(FloatingPointError, match="the loss of a batch is nan"):
        method.partial_fit(next(stream.batches(50)))
    torch.testing.assert_close(vectors(), before)


def test_batches_of_any_size(make):
    method = make()
    stream = make_stream(120)
    assert method.partial_fit(next(stream.batches(1)))["events"] == 1
    assert method.partial_fit(Stream(*(np.zeros(0, np.int64),) * 3))["events"] == 0
    for events in stream.batches(7):
        measured = method.partial_fit(events)
        assert np.isfinite(measured["mse"])
    assert method._recorder.events == 121


def test_a_stream_may_end_in_the_middle_of_a_batch(make):
    result = make().fit(make_stream(173), progress=False)
    assert result.history[-1]["events"] == 173
    reported = sum(
        record["events"]
        for record in result.tables["quality_by_frequency"]
        if record["side"] == "user"
    )
    assert reported == 44  # a quarter, rounded up
    with pytest.raises(ValueError, match="the stream must have events, got none"):
        make().fit(make_stream(0), progress=False)


def test_five_classes(make):
    stream = make_stream(300)
    stars = dataclasses.replace(stream, ratings=(np.arange(300) % 10 + 1).astype(np.float32) / 2)
    metrics = make(task="multiclass").fit(stars, progress=False).metrics
    assert set(metrics) == {
        f"{name}{part}" for name in ("accuracy", "cross_entropy") for part in ("", "_all")
    }
    labels = np.floor(np.arange(1, 11) / 2 - 0.5)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_losses_of_both_tasks():
    lost = losses(torch.tensor([[0.0], [2.0]]), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(lost, torch.tensor([0.25, torch.tensor(2.0).sigmoid().item() ** 2]))
    lost = losses(torch.zeros(1, 5), torch.tensor([3]))
    torch.testing.assert_close(lost, torch.tensor([5.0]).log())


def test_results_say_what_the_tables_hold(make):
    method = make()
    stream = make_stream(400)
    result = method.fit(stream, progress=False)
    for name, ids in (("user", stream.users), ("item", stream.items)):
        assert len(result.plan[name]) == len(np.unique(ids))
        rows = [r["rows"] for r in result.tables["widths"] if r["side"] == name]
        assert sum(rows) == len(result.plan[name])
    sides = method.learner.sides
    assert result.params == result.plan.num_params == sum(s.table.live_numbers for s in sides)
    assert result.bytes["weights"] >= 4 * result.params
    assert all(value >= 0 for value in result.bytes.values())
    first = sides[0].ids.ids()[0]
    assert first == stream.users[0]


@pytest.mark.parametrize("name", ["fixed", "esapn", "darts", "autoemb"])
def test_unify_counts_what_brings_served_rows_to_the_width(name):
    method = METHODS[name]()
    result = method.fit(make_stream(400), progress=False)
    learner, rows = method.learner, sum(len(dims) for dims in result.plan.tables.values())
    chain = 2 * 4 * (2 * 4 + 4 + 4 * 8 + 8)  # two sides, maps 2 to 4 and 4 to 8 with biases
    maps = 2 * 4 * (14 * 8 + 3 * 8)
    extra = result.bytes["unify"] - {"fixed": 0, "esapn": chain}.get(name, maps)
    if name == "darts":
        logits = 4 * 3 * rows
        index = sum(table.storage.index.nbytes for table in learner.logits)
        assert logits + index <= extra <= 2 * logits + index  # with room to grow
    elif name == "autoemb":
        last = sum(side.column("p").nbytes for side in learner.sides)
        controllers = sum(t.nbytes for t in tensors_of(learner.modules["chooser"]))
        assert extra == last + controllers and last >= 4 * 3 * rows
        assert result.bytes["ids"] == sum(side.nbytes for side in learner.sides) - last
    else:
        kept = (
            sum(t.nbytes for side in learner.sides for t in side.table.unify.kept())
            if (name == "esapn")
            else 0
        )
        assert extra == kept


@pytest.mark.parametrize("name", ["darts", "autoemb"])
def test_soft_methods_hold_222_numbers_per_id(name):
    stream = make_stream(200)
    result = METHODS[name](sizes=(2, 4, 8, 16, 64, 128)).fit(stream, progress=False)
    ids = len(np.unique(stream.users)) + len(np.unique(stream.items))
    assert result.params == 222 * ids
    assert set(result.plan["user"]) == {222}


def test_wide_tables_are_compacted_and_stay_the_same():
    loose, tight = (METHODS["esapn"](policy="always", compact_above=x) for x in (100.0, 1.0))
    stream = make_stream(600)
    for method in (loose, tight):
        for events in stream.batches(50):
            method.partial_fit(events)
    for a, b in zip(loose.learner.sides, tight.learner.sides, strict=True):
        assert torch.equal(a.table.to_dense(), b.table.to_dense())
        assert b.table.fragmentation <= a.table.fragmentation


def test_occurrences_of_repeated_ids():
    side, draws = METHODS["fixed"]().learner.sides[0], torch.Generator()
    seen = side.enter(np.array([7, 9, 7, 7]), draws)
    assert seen.rows.tolist() == [0, 1, 0, 0]
    assert (seen.distinct.tolist(), seen.counts.tolist()) == ([0, 1], [3, 1])
    assert seen.last.tolist() == [3, 1]
    assert seen.frequency.tolist() == [1, 1, 2, 3] and seen.final.tolist() == [3, 1, 3, 3]
    side.leave(seen)
    again = side.enter(np.array([9, 11, 7]), draws)
    assert again.rows.tolist() == [1, 2, 0] and again.frequency.tolist() == [2, 1, 4]


def test_the_reported_part_may_begin_inside_a_batch():
    recorder = Recorder(start=3)
    ones = np.ones((2, 2), np.int64)
    for right in (True, False, True):
        recorder.add(Scored(np.float32([0.0, 1.0]), np.array([right, right]), ones, ones))
    metrics = recorder.metrics("mse")
    assert metrics["accuracy"] == pytest.approx(2 / 3) and metrics["mse"] == pytest.approx(2 / 3)
    assert metrics["accuracy_all"] == pytest.approx(4 / 6)
    assert recorder.tables("mse")["quality_by_frequency"][0]["events"] == 3


def test_history_is_a_uniform_sample_of_the_past():
    past = History("uniform", 50, torch.Generator().manual_seed(0))
    for start in range(0, 1000, 40):
        number = torch.arange(start, start + 40)
        past.add(torch.stack([number, -number]), number.float())
    assert len(past) == 50 and torch.equal(past.rows[0], -past.rows[1])
    assert torch.equal(past.rows[0].float(), past.labels)
    kept = []
    for seed in range(200):
        past = History("uniform", 50, torch.Generator().manual_seed(seed))
        for start in range(0, 400, 30):
            number = torch.arange(start, min(start + 30, 400))
            past.add(torch.stack([number, number]), number.float())
        kept.append(past.rows[0])
    counts = torch.bincount(torch.cat(kept), minlength=400).view(8, 50).sum(1)
    # 200 * 50 draws over 8 equal parts of the past: 1250 each, with a deviation of about 31.
    assert counts.sub(1250).abs().max() < 130


def test_history_goes_on_as_it_stood():
    past, other = (History("uniform", 5, torch.Generator().manual_seed(0)) for _ in range(2))
    number = torch.arange(40).expand(2, 40)
    past.add(number, number[0].float())
    other.load_state(copy.deepcopy(past.state()))
    other.generator.set_state(past.generator.get_state())
    for each in (past, other):
        each.add(number + 40, number[0].float() + 40)
    assert torch.equal(past.rows, other.rows) and torch.equal(past.labels, other.labels)


def test_rows_that_appear_do_not_depend_on_a_failed_growth():
    side = Side(METHODS["fixed"]().learner.sides[0].table, 8)
    extend, draws = side.table.extend, torch.Generator()

    def fails(*args, **options):
        raise MemoryError

    side.table.extend = fails
    with pytest.raises(MemoryError):
        side.enter(np.array([1, 2]), draws)
    assert len(side) == 0
    side.table.extend = extend
    assert side.enter(np.array([5, 2]), draws).rows.tolist() == [0, 1]
