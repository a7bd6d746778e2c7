"""What every layout of a table promises where rows change; a new layout adds a maker."""

import copy

import pytest
import torch

from varemb.ops import lookup
from varemb.optim import SGD, Adagrad, Adam, RowWiseAdagrad
from varemb.storage import PackedStorage, PagedStorage, storage_of

DIMS = torch.tensor([3, 0, 8, 1, 5, 8, 2])
WIDTH = 8

MAKERS = {
    "packed": lambda dims, **options: PackedStorage(dims, WIDTH, reserve_numbers=200, **options),
    "paged": lambda dims, **options: PagedStorage(dims, WIDTH, **options),
    "paged, reserved": lambda dims, **options: PagedStorage(
        dims, WIDTH, reserve_rows=20, reserve_numbers=200, **options
    ),
}


def make(name, dims=DIMS, **options):
    """A table of whole numbers that are all different from 0."""
    storage = MAKERS[name](dims, **options)
    storage.copy_dense_(torch.arange(1, 1 + dims.numel() * WIDTH).view(-1, WIDTH).float())
    return storage


def read(storage, values=None):
    """All rows, zero-padded."""
    rows = storage.present().nonzero()[:, 0]
    values = storage.weight if values is None else values
    dense = torch.zeros(storage.num_rows, WIDTH, dtype=values.dtype)
    dense[rows] = lookup(values.detach(), storage.rows, rows, backend="reference")
    return dense


def everything(storage, optimizer=None):
    """All that a failed change must leave as it was."""
    parts = [read(storage), storage.dims, storage.present(), storage.weight.detach().clone()]
    parts.append(torch.tensor([storage.live_numbers, storage.num_present, storage.num_rows]))
    if optimizer is not None:
        state = optimizer.state[storage.weight]
        parts += [value.clone() for value in state.values()]
    return parts


@pytest.mark.parametrize("name", MAKERS)
class TestStorage:
    def test_resize_keeps_each_rows_first_numbers(self, name):
        storage = make(name)
        before = read(storage)
        new = torch.tensor([3, 4, 2, 8, 5, 0, 7])
        storage.resize([6, 1, 2, 3, 5], new[[6, 1, 2, 3, 5]])
        kept = torch.arange(WIDTH) < torch.minimum(DIMS, new)[:, None]
        assert torch.equal(read(storage)[:7], before[:7] * kept)
        assert torch.equal(storage.dims[:7], new)
        assert storage.live_numbers == int(new.sum()) and storage.num_present == 7

    def test_one_dim_for_all_rows_and_rows_in_any_container(self, name):
        storage = make(name)
        for rows in ([2, 0], torch.tensor([4, 3]), torch.tensor([6], dtype=torch.int32).numpy()):
            storage.resize(rows, 6)
            assert set(storage.dims[torch.as_tensor(rows).long()].tolist()) == {6}

    def test_new_numbers_are_normal_or_made_by_a_function(self, name):
        storage = make(name, torch.zeros(400, dtype=torch.int64)[:20])
        storage.resize(torch.arange(20), 8, "normal", std=2.0)
        drawn = read(storage)[:20]
        assert 1.6 < float(drawn.std()) < 2.4 and drawn.unique().numel() == 160
        calls = []

        def double(old, old_dims, new_dims):
            calls.append((old.clone(), old_dims.tolist(), new_dims.tolist()))
            return torch.cat([old[:, :4], -old[:, :4]], 1)

        storage.resize([3, 1], [7, 2], double)
        (old, old_dims, new_dims) = calls[0]
        assert old_dims == [8, 8] and new_dims == [7, 2]
        assert torch.equal(old, drawn[[3, 1]])
        after = read(storage)
        assert torch.equal(after[3, :7], torch.cat([drawn[3, :4], -drawn[3, :3]]))
        assert torch.equal(after[1], drawn[1] * (torch.arange(8) < 2))

    def test_the_generator_decides_the_new_numbers(self, name):
        tables = [make(name) for _ in range(2)]
        for storage in tables:
            generator = torch.Generator().manual_seed(3)
            storage.resize([1, 3], 8, "normal", generator=generator)
            storage.extend(2, 5, generator=generator)
            torch.rand(1)
        assert torch.equal(read(tables[0]), read(tables[1]))

    def test_extend_adds_rows_behind_the_others(self, name):
        storage = make(name)
        before = read(storage)[:7]
        rows = storage.extend(3, [8, 0, 2], "zeros")
        assert rows.tolist() == [7, 8, 9]
        assert torch.equal(read(storage)[:7], before) and not read(storage)[7:].any()
        assert storage.dims[:10].tolist() == [*DIMS.tolist(), 8, 0, 2]
        assert storage.extend(2, 4, std=3.0).tolist() == [10, 11]
        assert (read(storage)[10:12, :4] != 0).all()

    @pytest.mark.parametrize("fused", [True, False])
    @pytest.mark.parametrize("cls", [Adam, Adagrad, RowWiseAdagrad, SGD])
    def test_optimizer_state_follows_its_row(self, name, cls, fused):
        storage = make(name)
        optimizer = cls([storage.weight], fused=fused)
        state = {
            key: value
            for key, value in optimizer.state[storage.weight].items()
            if key in optimizer.state_names
        }
        kept = (
            torch.arange(WIDTH) < torch.minimum(DIMS, torch.tensor([3, 0, 4, 8, 5, 8, 0]))[:, None]
        )
        before = {}
        for key, value in state.items():
            value.copy_(torch.arange(1.0, 1.0 + value.numel()))
            before[key] = value.clone() if optimizer.is_row_wise else read(storage, value)
        storage.resize([3, 6, 2], [8, 0, 4], "normal")
        storage.extend(2, 3)
        for key, value in state.items():
            assert optimizer.state[storage.weight][key] is value
            if optimizer.is_row_wise:
                assert torch.equal(value[:7], before[key][:7]) and not value[7:9].any()
            else:
                assert torch.equal(read(storage, value)[:7], before[key][:7] * kept)
                assert not read(storage, value)[7:9].any()

    def test_state_of_a_row_can_start_anew(self, name):
        storage = make(name)
        optimizer = Adagrad([storage.weight], initial_accumulator_value=0.25)
        total = optimizer.state[storage.weight]["sum"]
        total.fill_(9.0)
        storage.resize([0, 2], [5, 6], keep_state=False)
        storage.resize([4], 8)
        found = read(storage, total)
        assert found[0, :5].eq(0.25).all() and found[2, :6].eq(0.25).all()
        assert found[4].tolist() == [9.0] * 5 + [0.25] * 3
        assert found[5].eq(9.0).all()
        rows = storage.extend(1, 4)
        assert read(storage, total)[rows, :4].eq(0.25).all()

    def test_the_parameter_stays_the_same_object(self, name):
        storage = make(name)
        weight = storage.weight
        storage.resize([1, 3], 8)
        storage.extend(3, 8)
        assert storage.weight is weight and storage_of(weight) is storage
        assert weight.shape == (storage.rows.numbers,)

    @pytest.mark.parametrize(
        ("rows", "dims", "options", "error", "message"),
        [
            ([1, 7000], 2, {}, IndexError, r"rows must be in \[0, \d+\), got 7000 at position 1"),
            ([-1], 2, {}, IndexError, "got -1 at position 0"),
            ([1, 2, 1], 2, {}, ValueError, "rows must be distinct, got 1 twice"),
            ([1, 2], [1, 9], {}, ValueError, r"dims must be in \[0, 8\], got 9 at position 1"),
            ([1, 2], [-1, 3], {}, ValueError, "got -1 at position 0"),
            ([1, 2], [1, 2, 3], {}, ValueError, "one number per row, 2, got 3"),
            ([1.5], 2, {}, TypeError, "rows must be whole numbers, got float64"),
            ([1], [2.0], {}, TypeError, "dims must be whole numbers, got float64"),
            ([[1]], 2, {}, ValueError, r"rows must be one-dimensional, got shape \[1, 1\]"),
            ([1], 2, {"init": "ones"}, ValueError, "init must be zeros, normal or a function"),
            ([1], 2, {"init": "normal", "std": -1.0}, ValueError, "std must not be negative"),
            ([1, 2], 5, {"init": lambda *_: torch.zeros(3)}, ValueError, "init must return"),
        ],
    )
    def test_resize_refuses_and_changes_nothing(self, name, rows, dims, options, error, message):
        storage = make(name)
        optimizer = Adam([storage.weight])
        before = everything(storage, optimizer)
        with pytest.raises(error, match=message):
            storage.resize(rows, dims, **options)
        assert all(map(torch.equal, everything(storage, optimizer), before))

    def test_a_function_that_fails_changes_nothing(self, name):
        storage = make(name)
        before = everything(storage)

        def fail(*_):
            raise KeyError("mine")

        for change in (lambda: storage.resize([1], 3, fail), lambda: storage.extend(1, 3, fail)):
            with pytest.raises(KeyError, match="mine"):
                change()
            assert all(map(torch.equal, everything(storage), before))

    def test_extend_refuses_and_changes_nothing(self, name):
        storage = make(name)
        before = everything(storage)
        for count, dims, message in (
            (-1, 2, "count must not be negative, got -1"),
            (2, [1, 9], "got 9 at position 1"),
            (2, [1], "one number per row, 2, got 1"),
        ):
            with pytest.raises(ValueError, match=message):
                storage.extend(count, dims)
        assert all(map(torch.equal, everything(storage), before))

    def test_nothing_to_do_is_done(self, name):
        storage = make(name)
        before = everything(storage)
        storage.resize([], [])
        storage.resize([0, 1], DIMS[:2], "normal")
        assert storage.extend(0, 3).tolist() == []
        assert all(map(torch.equal, everything(storage), before))

    def test_a_copy_changes_alone(self, name):
        storage = make(name)
        optimizer = Adam([storage.weight])
        before = everything(storage, optimizer)
        twin = copy.deepcopy(storage)
        assert torch.equal(read(twin), read(storage))
        twin.resize([0, 3], [8, 0])
        twin.extend(2, 4)
        assert all(map(torch.equal, everything(storage, optimizer), before))
        storage.resize([2], 1)
        assert twin.dims[[0, 2, 3]].tolist() == [8, 8, 0]

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_other_dtypes_also_after_conversion(self, name, dtype):
        made = make(name, dtype=dtype)
        converted = make(name).to(dtype)
        for storage in (made, converted):
            storage.resize([0, 1, 2], [8, 3, 2])
            storage.extend(1, 2, "zeros")
        assert torch.equal(read(made), read(converted)) and read(made).dtype == dtype

    def test_saved_and_loaded_tables_go_on_alike(self, name):
        storage = make(name)
        storage.resize([1, 2], [8, 1])
        storage.extend(2, 4, "zeros")
        other = MAKERS[name](storage.dims)
        other.load_state_dict(storage.state_dict())
        for table in (storage, other):
            table.resize([0], 8)
        assert torch.equal(read(other), read(storage))
