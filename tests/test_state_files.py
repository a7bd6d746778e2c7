"""Nested state, such as an optimizer's, goes to a file and comes back with its types."""

import os

import pytest
import torch

from varemb.files import load_state, save_state, save_tensors


@pytest.fixture
def foreign(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"a": torch.ones(3)})
    return path


def test_state_comes_back_with_its_types(tmp_path):
    state = {
        "epoch": 3,
        "name": "año",
        "none": None,
        "flags": [True, False],
        "betas": (0.9, 0.999),
        "limits": [float("inf"), float("-inf"), 1e-300],
        "big": 2**80,
        "moments": {0: {"step": torch.tensor(7.0)}, 12: torch.arange(3)},
        "nested": [({"a": (1, [2, {}])},)],
    }
    save_state(tmp_path / "s", state)
    loaded = load_state(tmp_path / "s")
    moments, expected = loaded.pop("moments"), state.pop("moments")
    assert loaded == state
    assert isinstance(loaded["betas"], tuple)
    assert loaded["flags"][0] is True
    assert list(moments) == [0, 12]
    assert torch.equal(moments[0]["step"], expected[0]["step"])
    assert torch.equal(moments[12], expected[12])


def test_state_keeps_nan(tmp_path):
    save_state(tmp_path / "s", {"loss": float("nan")})
    assert str(load_state(tmp_path / "s")["loss"]) == "nan"


def test_state_restores_an_optimizer(tmp_path):
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    save_state(tmp_path / "s", optimizer.state_dict())
    copy = torch.optim.Adam([weight], lr=0.5)
    copy.load_state_dict(load_state(tmp_path / "s"))
    assert copy.param_groups[0]["lr"] == 0.1
    assert copy.param_groups[0]["betas"] == (0.9, 0.999)
    assert torch.equal(copy.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg"])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [1, {"b": object()}]}, r"state\['a'\]\[1\]\['b'\] must be .* got object"),
        ({1.5: 0}, r"keys of state must be text or whole numbers, got 1.5"),
        ({"a": {True: 0}}, r"keys of state\['a'\]"),
    ],
)
def test_save_state_says_where_it_cannot_store(tmp_path, state, message):
    with pytest.raises(TypeError, match=message):
        save_state(tmp_path / "s", state)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "tree",
    [
        "{",
        '{"dict": [["a", {"tensor": "9"}]]}',
        '{"dict": [["a"]]}',
        '{"dict": [[[], 1]]}',
        '{"call": "os.system"}',
        '{"a": 1, "b": 2}',
        '{"tuple": 3}',
        "[1]",
        "[" * 100_000,
    ],
)
def test_load_state_refuses_a_false_description(tmp_path, tree):
    path = tmp_path / "s"
    save_tensors(path, {}, {"format": "varemb.state", "version": "1", "tree": tree})
    with pytest.raises(ValueError, match=r"load: .*/s "):
        load_state(path)


def test_load_state_refuses_other_kinds_and_versions(tmp_path, foreign):
    with pytest.raises(ValueError, match=r"must be a varemb\.state file, got a safetensors file"):
        load_state(foreign)
    save_tensors(tmp_path / "s", {}, {"format": "varemb.state", "version": "7"})
    with pytest.raises(ValueError, match=r"must have varemb\.state version 1, got 7"):
        load_state(tmp_path / "s")
