"""The benchmark of the supernet's step compares supernets that agree."""

import pytest
import torch

from benchmarks import supernet_step


def test_both_supernets_agree():
    supernet_step.check_same(64)


def test_a_supernet_that_differs_is_noticed(monkeypatch):
    forward = supernet_step.SeparateSupernet.forward
    monkeypatch.setattr(
        supernet_step.SeparateSupernet, "forward", lambda self, ids: forward(self, ids) * 1.01
    )
    with pytest.raises(RuntimeError, match="differ"):
        supernet_step.check_same(64)


def test_every_contender_is_measured_in_every_round():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    times = supernet_step.measure_steps(50, rounds=3, warmup=1)
    torch.set_num_threads(before)
    assert {name: len(seconds) for name, seconds in times.items()} == dict.fromkeys(
        ("FDE", "supernet", "supernet, theta", "N lookups"), 3
    )
    assert all((seconds > 0).all() for seconds in times.values())
