"""SCALL: its budget at every move, rows that grow and shrink, baselines, resume, bad input."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from varemb.data import EventStream
from varemb.search import SCALL, SCALLConfig
from varemb.search.actor_critic import SACConfig
from varemb.search.budget_table import make_table, move_table
from varemb.search.scall_state import Situation, frequency_profile, state_size, state_vector
from varemb.search.segment_training import SegmentTask, TrainingConfig
from varemb.storage import PackedStorage

TINY = SCALLConfig(
    memory=0.004, threshold=40, width=32, batch_size=64, steps=4, max_rounds=3, hidden=16,
    groups=8, min_trials=2, max_trials=2, calibrations=1, scale="log", lr=0.02, init_std=0.1,
)  # fmt: skip


def make_stream(events=600, seed=0):
    """Ids that come one after another; who and what is popular drifts."""
    draw = np.random.default_rng(seed)
    place = np.arange(events) / events
    users = (100 * place + draw.exponential(12, events)).astype(np.int64) + 7_000_000_000
    items = (80 * place + draw.exponential(9, events)).astype(np.int64)
    times = np.arange(events) // 3
    return EventStream(users, items, np.ones(events, np.float32), times, "drift")


def run(config=TINY, **options):
    return SCALL(config).fit(make_stream(), progress=False, **options)


@pytest.fixture(scope="module")
def result():
    return run()


def drop_times(record):
    return {name: value for name, value in record.items() if name != "seconds"}


def assert_same(one, other):
    assert one.metrics == other.metrics
    assert [drop_times(each) for each in one.history] == [drop_times(e) for e in other.history]
    assert one.plan == other.plan
    assert one.tables == other.tables


def test_the_budget_is_met_exactly_and_held_at_every_move(monkeypatch):
    budget, moves = 1000, []
    for name in ("_set_numbers", "_renew", "resize", "extend"):
        plain = getattr(PackedStorage, name)

        def watched(storage, *args, _plain=plain, **options):
            out = _plain(storage, *args, **options)
            held = storage.weight.untyped_storage().nbytes()
            moves.append((held, storage.weight.data_ptr(), storage.live_numbers))
            return out

        monkeypatch.setattr(PackedStorage, name, watched)
    draw, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    dims = np.full(20, 50)
    table = make_table(dims, 200, budget, 0.01, generator)
    for rows in range(21, 60, 3):
        weights = draw.random(rows)
        dims = 1 + np.floor(weights / weights.sum() * (budget - rows)).astype(np.int64)
        dims[0] += budget - dims.sum()
        old, old_dims = table.to_dense(), table.dims
        move_table(table, dims, budget, generator, grown_std=0.0, new_std=0.1)
        kept = torch.minimum(table.dims[: len(old)], old_dims).tolist()
        for row, count in enumerate(kept):
            assert torch.equal(table.row(row)[:count], old[row, :count])
            assert not table.row(row)[int(old_dims[row]) :].any()  # grown_std
        assert table.row(rows - 1).any()  # new_std
        assert table.live_numbers == budget
    assert len(moves) > 60
    assert {held for held, _, _ in moves} == {4 * budget}
    assert len({address for _, address, _ in moves}) == 1
    assert max(live for _, _, live in moves) == budget


def test_a_budget_that_grows_with_the_rows_gets_a_buffer_of_its_size():
    generator = torch.Generator().manual_seed(0)
    table = make_table(np.full(10, 6), 32, 60, 0.1, generator)
    first = table.to_dense()
    move_table(table, np.full(17, 6), 102, generator, grown_std=0.0, new_std=0.1)
    assert torch.equal(table.to_dense()[:10], first)
    assert table.weight.untyped_storage().nbytes() == 4 * 102


def test_every_segment_spends_the_budget_and_no_more(result):
    assert len(result.history) >= 4
    for record in result.history:
        assert record["live_numbers"] * 4 == record["bytes"] == record["budget_bytes"] == 4000
    assert result.params == result.plan.num_params == 1000
    assert result.bytes["weights"] == 4000
    assert result.bytes["optimizer"] == 8000


def test_rows_grow_and_shrink(result):
    for record in result.history[2:]:
        assert record["grown"] >= 0.01
        assert record["shrunk"] >= 0.01


def test_the_result_says_what_was_measured(result):
    later = result.history[1:]
    for name in ("recall@20", "ndcg@20"):
        assert 0 < result.metrics[name] <= 1
        values = [record[name] for record in later]
        assert np.isclose(result.metrics[name], np.mean(values))
        users = [record["test_users"] for record in later]
        assert np.isclose(result.metrics[f"{name}_users"], np.average(values, weights=users))
    assert result.history[-1]["events"] == 600
    assert all(record["trials"] == 2 and len(record["action"]) == 3 for record in later)
    assert result.history[0]["action"] is None
    cases = result.tables["case_study"]
    assert {record["side"] for record in cases} == {"user", "item"}
    assert min(record["id"] for record in cases if record["side"] == "user") >= 7_000_000_000
    last = [r for r in cases if r["segment"] == len(later) and r["side"] == "user"]
    assert len(last) == 4
    assert sum(record["rows"] for record in result.tables["widths"]) == result.plan.num_rows


def test_one_seed_gives_one_result_and_another_seed_another(result):
    assert_same(run(), result)
    other = run(dataclasses.replace(TINY, seed=1))
    assert other.metrics != result.metrics


def test_partial_fit_of_the_segments_is_fit(result):
    method, stream, start = SCALL(TINY), make_stream(), 0
    for record in result.history:
        end = record["events"]
        part = SimpleNamespace(
            users=stream.users[start:end], items=stream.items[start:end],
            times=stream.times[start:end], ratings=stream.ratings[start:end],
        )  # fmt: skip
        assert drop_times(method.partial_fit(part)) == drop_times(record)
        start = end


@pytest.mark.parametrize("policy", ["uniform", "random", "frequency"])
def test_baselines_have_the_same_budget(policy, result):
    found = run(dataclasses.replace(TINY, policy=policy))
    assert [r["live_numbers"] for r in found.history] == [r["live_numbers"] for r in result.history]
    dims, counts = found.plan["item"], {}
    for record in found.tables["width_by_frequency"]:
        counts.setdefault(record["side"], []).append((record["frequency"], record["mean_dim"]))
    if policy == "uniform":
        assert np.ptp(np.concatenate([dims, found.plan["user"]])) <= 1
    elif policy == "random":
        assert np.ptp(dims) > 4
    else:
        widths = [width for _, width in sorted(counts["item"])]
        assert widths == sorted(widths)
        assert widths[-1] > widths[0]
    assert all(record["trials"] == 0 for record in found.history)


def test_a_mean_dim_is_a_budget_that_grows():
    found = run(dataclasses.replace(TINY, memory=0.0, mean_dim=5.5))
    for record in found.history:
        rows = record["users"] + record["items"]
        assert record["live_numbers"] == int(5.5 * rows)
        assert record["bytes"] == record["budget_bytes"] == 4 * int(5.5 * rows)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 4, 9])
def test_resume_continues_after_any_checkpoint(tmp_path, monkeypatch, result, stop_at):
    plain, saves = SCALL.state, []

    def state(method):
        if len(saves) == stop_at:
            raise StoppedError
        saves.append(1)
        return plain(method)

    monkeypatch.setattr(SCALL, "state", state)
    with pytest.raises(StoppedError):
        run(checkpoint_dir=tmp_path)
    monkeypatch.setattr(SCALL, "state", plain)
    assert_same(run(checkpoint_dir=tmp_path, resume=True), result)


_SCRIPT = """
import sys, json
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_scall import run
found = run(checkpoint_dir=Path(sys.argv[2]), resume="resume" in sys.argv)
print(json.dumps(found.metrics))
"""


def test_resume_after_kill_9(tmp_path, request, result):
    command = [sys.executable, "-c", _SCRIPT, str(request.path.parent), str(tmp_path)]
    process = subprocess.Popen(command)
    file = tmp_path / "scall.safetensors"
    stamps: set[float] = set()
    while process.poll() is None and len(stamps) < 5:
        if file.exists():
            stamps.add(file.stat().st_mtime_ns)
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    again = subprocess.run([*command, "resume"], capture_output=True, text=True, check=True)
    assert json.loads(again.stdout.splitlines()[-1]) == result.metrics


def test_resume_refuses_other_settings(tmp_path):
    run(checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"was written with steps = 4, got 5"):
        run(dataclasses.replace(TINY, steps=5), checkpoint_dir=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory": 0.0}, "give a budget, either memory or mean_dim"),
        ({"mean_dim": 4.0}, "give a budget, either memory or mean_dim"),
        ({"memory": 0.0, "mean_dim": 0.5}, "mean_dim must be at least 1, got 0.5"),
        ({"memory": 0.0001}, "at least a number per row; .* the budget is 25 numbers"),
        ({"threshold": 500}, "600 events bring .* users and items, and the threshold is 500"),
        ({"width": 256}, "width must be at most 255, got 256"),
        ({"policy": "best"}, "policy must be one of scall, uniform, random, frequency"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"low": 1.2, "high": 0.7}, r"or 0 <= low < high, got 1.2 and 0.7"),
        ({"low": 0.9}, r"or 0 <= low < high, got 0.9 and 0.0"),
        ({"valid_share": -0.5}, "valid_share must not be negative, got -0.5"),
        ({"valid_share": 1.0}, "valid_share must be below 1, got 1.0"),
        ({"reservoir": -1.0}, "reservoir must not be negative, got -1.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        run(dataclasses.replace(TINY, **changes))


def test_a_bad_segment_leaves_the_table_as_it_was():
    method, stream = SCALL(dataclasses.replace(TINY, policy="uniform")), make_stream()
    good = SimpleNamespace(users=stream.users[:200], items=stream.items[:200], times=None)
    method.partial_fit(good)
    before = method.state()["table"]
    numbers = before["weight"].clone()
    many = SimpleNamespace(users=np.arange(2000), items=np.arange(2000), times=None)
    backwards = SimpleNamespace(users=np.arange(3), items=np.arange(3), times=np.array([3, 2, 1]))
    for bad, message in ((many, "at least a number per row"), (backwards, "in the order of time")):
        with pytest.raises(ValueError, match=message):
            method.partial_fit(bad)
        after = method.state()["table"]
        assert torch.equal(after["weight"], numbers)
        assert torch.equal(after["dims"], before["dims"])
    rest = SimpleNamespace(users=stream.users[200:], items=stream.items[200:], times=None)
    assert method.partial_fit(rest)["segment"] == 1


def test_negatives_are_items_of_the_train_part_that_the_user_never_had():
    method = SCALL(dataclasses.replace(TINY, policy="uniform"))
    method.fit(make_stream(), progress=False)
    frame = method._frame
    task = SegmentTask(frame, method._nodes, 1000, TINY)
    users, positives, negatives = task.make_sampler(torch.Generator().manual_seed(0)).sample(5000)
    had = set(zip(frame.known.users.tolist(), frame.known.items.tolist(), strict=True))
    drawn = set(zip(users.tolist(), negatives.tolist(), strict=True))
    assert not drawn & had
    assert set(negatives.tolist()) <= set(frame.fit.items.tolist())
    fit = set(zip(frame.fit.users.tolist(), frame.fit.items.tolist(), strict=True))
    assert set(zip(users.tolist(), positives.tolist(), strict=True)) <= fit


def test_state_has_one_length_whatever_the_rows():
    draw = np.random.default_rng(0)
    lengths = set()
    for users, items in ((3, 500), (1000, 2)):
        sides = draw.integers(1, 30, users), draw.integers(1, 30, items)
        vector = state_vector(sides, sides, torch.zeros(2, TINY.width), 0.5, TINY.groups)
        assert vector.isfinite().all()
        lengths.add(len(vector))
    assert lengths == {state_size(TINY)}
    assert state_size(SCALLConfig(width=256)) == 1028


def test_settings_of_agent_and_recommender_do_not_share_a_name():
    agent, training = (
        {f.name for f in dataclasses.fields(each)} for each in (SACConfig, TrainingConfig)
    )
    assert not agent & training
    assert (SCALLConfig().batch_size, SCALLConfig().replay_batch) == (10_000, 8)


def test_split_by_rows_is_even_in_the_middle():
    nodes = (np.arange(10), np.arange(10, 40))
    config = dataclasses.replace(TINY, split="rows")
    situation = Situation(nodes, (np.arange(10), np.arange(30)), 400, config)
    dims = situation.dims_for(torch.tensor([0.5, 1.0, 1.0]))
    assert (dims[:10].sum(), dims[10:].sum()) == (100, 300)
    assert situation.dims_for(torch.tensor([0.8, 1.0, 1.0]))[:10].sum() == round(400 * 8 / 14)
    plain = dataclasses.replace(situation, config=TINY).dims_for(torch.tensor([0.5, 1.0, 1.0]))
    assert plain[:10].sum() == 200


def test_frequency_profile_of_equal_counts_is_zero():
    assert not frequency_profile(np.full(7, 4), 3).any()
