"""Nested state, such as an optimizer's, goes to a file and comes back with its types."""

import os

import pytest
import torch
from resident import assert_takes_less, linux_only

from varemb import VarEmbedding, optim
from varemb.files import load_state, load_state_into, save_state, save_tensors, tensors


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
        ({"a": torch.eye(2).to_sparse()}, r"state\['a'\] must be a dense tensor, got .*sparse_coo"),
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


def nested_state(value: float) -> dict:
    return {
        "epoch": int(value),
        "table": {"weight": torch.full((5, 3), value), "rows": torch.full((7,), int(value))},
        "moments": [(torch.full((2,), value, dtype=torch.bfloat16), torch.tensor(value)), {}],
        "none at all": torch.full((0, 4), value),
    }


@pytest.mark.parametrize("part", [16 << 20, 5])  # of 5 bytes, numbers are cut in two
def test_state_is_read_into_the_tensors_that_are_there(tmp_path, monkeypatch, part):
    monkeypatch.setattr("varemb.files.tensors._PART", part)
    save_state(tmp_path / "s", nested_state(3.0))
    state = nested_state(8.0)
    own = [state["table"]["weight"], state["table"]["rows"], *state["moments"][0]]
    places = [tensor.data_ptr() for tensor in own]
    loaded = load_state_into(tmp_path / "s", state)
    assert loaded["epoch"] == 3 and state["epoch"] == 8
    assert loaded["table"]["weight"] is own[0] and loaded["moments"][0][1] is own[3]
    for tensor, place in zip(own, places, strict=True):
        assert tensor.data_ptr() == place and (tensor == 3).all()
    other = load_state(tmp_path / "s")
    assert torch.equal(other["moments"][0][0], own[2]) and other["epoch"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["table"].pop("rows"), r"state\['table'\]\['rows'\] is in the file alone"),
        (lambda s: s["table"].update(b=torch.ones(1)), r"state\['table'\]\['b'\] is not in the"),
        (
            lambda s: s["table"].update(rows=torch.zeros(7)),
            r"torch\.int64 of shape \[7\] in the file, got torch\.float32 of shape \[7\]",
        ),
        (lambda s: s["table"].update(weight=torch.ones(3, 5)), r"got torch\.float32 of shape \[3"),
        (lambda s: s["table"].update(weight=torch.ones(3, 5).T), "must be contiguous"),
        (lambda s: s["moments"].reverse(), r"state\['moments'\]\[0\]\[0\] is in the file alone"),
    ],
)
def test_a_state_that_does_not_fit_is_left_alone(tmp_path, change, message):
    save_state(tmp_path / "s", nested_state(3.0))
    state = nested_state(8.0)
    change(state)
    with pytest.raises(ValueError, match=f"load: .*/s does not fit: .*{message}"):
        load_state_into(tmp_path / "s", state)
    assert (state["table"]["weight"] != 3).all()


@pytest.mark.parametrize(
    "tree",
    [
        '{"dict": [["a", {"tensor": "0"}], ["b", {"tensor": "0"}]]}',
        '{"dict": [["a", {"tensor": "0"}]]}',
        '{"dict": [["a", {"tensor": "7"}]]}',
    ],
)
def test_a_description_that_does_not_name_every_tensor_once_is_refused(tmp_path, tree):
    metadata = {"format": "varemb.state", "version": "1", "tree": tree}
    save_tensors(tmp_path / "s", {"0": torch.ones(2), "1": torch.ones(2)}, metadata)
    state = {"a": torch.zeros(2), "b": torch.zeros(2)} if '"b"' in tree else {"a": torch.zeros(2)}
    with pytest.raises(ValueError, match="damaged description"):
        load_state_into(tmp_path / "s", state)
    assert not state["a"].any()


def test_damaged_numbers_are_noticed_when_they_are_read_into_tensors(tmp_path, foreign):
    save_state(tmp_path / "s", nested_state(3.0))
    whole = (tmp_path / "s").read_bytes()
    for broken in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1], whole[:20]):
        (tmp_path / "s").write_bytes(broken)
        with pytest.raises(ValueError, match=r"load: .*/s is (corrupt|truncated)"):
            load_state_into(tmp_path / "s", nested_state(8.0))
    with pytest.raises(ValueError, match=r"must be a varemb\.state file"):
        load_state_into(foreign, {"a": torch.zeros(3)})


def test_a_file_that_shrinks_between_its_description_and_its_numbers_is_refused(tmp_path):
    save_state(tmp_path / "s", {"a": torch.ones(300)})
    likes, metadata = tensors.describe(tmp_path / "s", "varemb.state", "1")
    own = {name: torch.zeros(like.shape) for name, like in likes.items()}
    os.truncate(tmp_path / "s", os.path.getsize(tmp_path / "s") - 100)
    with pytest.raises(ValueError, match="the file ends early"):
        tensors.read_into(tmp_path / "s", metadata, own)
    save_state(tmp_path / "s", {"a": torch.ones(299)})
    with pytest.raises(ValueError, match="0 has 1196 bytes"):
        tensors.read_into(tmp_path / "s", metadata, own)


@pytest.mark.parametrize("make", [optim.Adam, optim.RowWiseAdagrad])
def test_a_table_and_its_optimizer_are_loaded_in_place(tmp_path, make):
    def trained(seed):
        torch.manual_seed(seed)
        table = VarEmbedding(50, 8, dims=torch.arange(50) % 9, dtype=torch.bfloat16)
        optimizer = make([table.weight], lr=0.1 + seed)
        for _ in range(3):
            table(torch.randint(0, 50, (40,))).square().sum().backward()
            optimizer.step()
        return table, optimizer, {"table": table.state_dict(), "optimizer": optimizer.state_dict()}

    table, optimizer, state = trained(0)
    save_state(tmp_path / "s", state)
    other, twin, own = trained(1)
    place = other.weight.data_ptr()
    loaded = load_state_into(tmp_path / "s", own)
    other.load_state_dict(loaded["table"])
    twin.load_state_dict(loaded["optimizer"])
    assert other.weight.data_ptr() == place and twin.param_groups[0]["lr"] == 0.1
    for both in ((table, optimizer), (other, twin)):
        both[0](torch.arange(50)).square().sum().backward()
        both[1].step()
    assert torch.equal(table.weight, other.weight)
    other = VarEmbedding(50, 8, dims=(torch.arange(50) % 9).flip(0), dtype=torch.bfloat16)
    own = {"table": other.state_dict(), "optimizer": make([other.weight]).state_dict()}
    loaded = load_state_into(tmp_path / "s", own)
    with pytest.raises(RuntimeError, match="rows have other dims"):
        other.load_state_dict(loaded["table"])


@linux_only
def test_a_large_state_is_saved_and_loaded_without_a_second_copy(tmp_path):
    setup = f"""
import torch
from varemb.files import load_state, load_state_into, save_state
path, large = {str(tmp_path / "s")!r}, {{"a": torch.ones(50_000_000)}}
save_state(path, large)
"""
    assert_takes_less(40e6, setup, "save_state(path, large)")  # of 200e6
    assert_takes_less(240e6, setup + "large.clear()", "load_state(path)")
    assert_takes_less(40e6, setup, "load_state_into(path, large)")
