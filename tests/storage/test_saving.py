"""State dicts of paged tables: what is saved goes on alike, what lies is refused."""

import pytest
import torch
from storage.worn_table import contents, worn

from varemb import optim
from varemb.ops.reference import DIM_BITS, locate
from varemb.storage import PackedStorage, PagedStorage


def test_a_loaded_table_goes_on_as_the_saved_one():
    storage, total = worn()
    other = PagedStorage(torch.zeros(5, dtype=torch.int64), 40)
    twin = optim.Adagrad([other.weight])
    other.load_state_dict(storage.state_dict())
    twin.state[other.weight]["sum"][: storage.used_numbers] = total[: storage.used_numbers]
    states = [(storage, total), (other, twin.state[other.weight]["sum"])]
    for table, _ in states:
        generator = torch.Generator().manual_seed(1)
        rows = table.extend(30, 8, generator=generator)
        table.resize(rows[:9], 40, generator=generator)
        table.remove(rows[10:12])
    first, second = (contents(*state)[0] for state in states)
    assert torch.equal(first, second)
    offsets = [locate(t.index, torch.arange(900), t.num_rows, 40, 1)[0] for t, _ in states]
    assert torch.equal(*offsets)
    for table, _ in states:
        table.remove(table.present().nonzero()[::2, 0])
        table.extend(300, 7)
    assert storage.used_numbers == other.used_numbers
    assert storage.slots.extents.numbers - storage.weight.numel() == (
        other.slots.extents.numbers - other.weight.numel()
    )
    assert storage.live_numbers == other.live_numbers and torch.equal(storage.dims, other.dims)


def test_loading_into_a_table_with_room_stays_in_place():
    storage = PagedStorage(torch.tensor([2, 4]), 8)
    other = PagedStorage(torch.tensor([8, 8, 8]), 8, reserve_rows=10, reserve_numbers=90)
    places = (other.weight.data_ptr(), other.index.data_ptr())
    other.load_state_dict(storage.state_dict())
    assert places == (other.weight.data_ptr(), other.index.data_ptr())
    assert other.present().tolist() == [True, True] + [False] * 8
    assert not other.weight.detach()[6:].any() and other.live_numbers == 6
    assert other.extend(1, 8).tolist() == [2]


@pytest.mark.parametrize("cls", [optim.Adam, optim.RowWiseAdagrad])
def test_loading_starts_the_optimizers_state_anew(cls):
    """The saved rows have nothing to do with what the old ones went through."""
    storage = PagedStorage(torch.tensor([8, 8, 8]), 8)
    state = cls([storage.weight]).state[storage.weight]
    tensors = [tensor for name, tensor in state.items() if name != "step"]
    for tensor in tensors:
        tensor.fill_(7.0)
    storage.load_state_dict(PagedStorage(torch.tensor([2, 4]), 8).state_dict())
    assert tensors and not any(tensor.any() for tensor in tensors)


def spoil(name, change):
    storage = PagedStorage(torch.tensor([2, 4, 4, -1]), 8)
    storage.extend(1, 2)
    storage.remove([0])
    state = storage.state_dict()
    state[name] = change(state[name].clone())
    return state


def put(at, value):
    def change(tensor):
        tensor.view(-1)[at] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("handles", put(1, 99 << 8), "name slots that no chunk has"),
        ("handles", put(1, 2 << 8 | 7), "name slots that no chunk has"),
        ("handles", put(1, -1), "every slot once"),
        ("handles", lambda t: t[:-1], "every slot once|do not fit"),
        ("handles", lambda t: t.long(), "handles must be torch.int32"),
        ("chunk_words", put(2, 1 << 40 | 4), "overlap or leave the weight"),
        ("chunk_words", put(2, 0 << DIM_BITS | 4), "overlap or leave the weight"),
        ("chunk_words", put(2, -5 << DIM_BITS | 4), "overlap or leave the weight"),
        ("chunk_words", put(2, 9), "rows of dim 9, this table is 8 wide"),
        ("chunk_rows", put(2, 300), "1 to 256 rows"),
        ("chunk_rows", put(2, -1), "1 to 256 rows"),
        ("chunk_rows", put(0, 1), "do not fit together"),
        ("free_slots", lambda t: t[:-1], "every slot once"),
        ("free_slots", put(0, 1 << 8 | 200), "name slots that no chunk has|every slot once"),
        ("removed_rows", put(0, 2), "do not fit the handles"),
        ("next_row", put(0, 99), "do not fit the handles"),
        ("weight", lambda t: t[:3], "overlap or leave the weight"),
        ("weight", lambda t: t[None], "weight must be flat"),
    ],
)
def test_a_file_that_lies_is_refused_and_changes_nothing(name, change, message):
    storage = PagedStorage(torch.tensor([1, 5]), 8)
    storage.copy_dense_(torch.ones(2, 8))
    with pytest.raises(RuntimeError, match=message):
        storage.load_state_dict(spoil(name, change))
    assert storage.dims.tolist() == [1, 5] and storage.weight.tolist() == [1.0] * 6
    storage.load_state_dict(spoil(name, lambda tensor: tensor))
    assert storage.dims[:4].tolist() == [0, 4, 4, 2]


@pytest.mark.parametrize("change", [lambda t: t.flip(0), lambda t: t.roll(3)])
def test_free_slots_out_of_their_order_are_refused(change):
    storage = PagedStorage(torch.full((40,), 4), 8)
    storage.resize(list(range(20)), 6)
    storage.resize(list(range(5)), 2)
    state = storage.state_dict()
    PagedStorage(torch.full((40,), 4), 8).load_state_dict(state)
    state["free_slots"] = change(state["free_slots"]).clone()
    with pytest.raises(RuntimeError, match="free_slots must be in the order of their dims"):
        PagedStorage(torch.full((40,), 4), 8).load_state_dict(state)


def test_packed_and_paged_files_are_not_mixed_up():
    paged, packed = PagedStorage(torch.tensor([1, 5]), 8), PackedStorage(torch.tensor([1, 5]), 8)
    with pytest.raises(RuntimeError, match="saved by a packed table"):
        paged.load_state_dict(packed.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*dims"):
        packed.load_state_dict(paged.state_dict())
