"""A paged table changed at random, against arrays: equal after every step, and nothing leaks."""

import numpy as np
import pytest
import torch

from varemb import optim
from varemb.ops import lookup
from varemb.storage import PagedStorage
from varemb.testing import runnable_backends

WIDTH = 7
STEPS = {"cpu": 10_000, "reference": 3_000, "triton": 60}


class Model:
    """A paged table with Adam, and the same rows as arrays."""

    def __init__(self, backend, seed, **options):
        self.rng = np.random.default_rng(seed)
        self.backend = backend
        dims = self.rng.integers(0, WIDTH + 1, 12)
        self.storage = PagedStorage(torch.from_numpy(dims), WIDTH, **options)
        self.optimizer = optim.Adam([self.storage.weight], lr=0.1)
        self.dims = dims  # -1: absent
        self.numbers = np.zeros((3, len(dims), WIDTH), np.float32)  # values, exp_avg, exp_avg_sq

    @property
    def tensors(self):
        state = self.optimizer.state[self.storage.weight]
        return self.storage.weight.detach(), state["exp_avg"], state["exp_avg_sq"]

    def read(self, rows):
        """Values and state of rows, each zero-padded. [3, n, D]"""
        weight, *states = self.tensors
        values = lookup(weight, self.storage.rows, torch.from_numpy(rows), backend=self.backend)
        offset, dim = self.storage.spans(rows)
        inside = np.arange(WIDTH) < dim[:, None]
        places = np.where(inside, offset[:, None] + np.arange(WIDTH), 0)
        if not inside.any():
            return np.zeros((3, *inside.shape), np.float32)
        return np.stack([values.numpy(), *(s.numpy()[places] * inside for s in states)])

    def present(self):
        return np.flatnonzero(self.dims >= 0)

    def some(self, most):
        rows = self.present()
        return self.rng.choice(rows, self.rng.integers(0, min(most, len(rows)) + 1), replace=False)

    def resize(self):
        rows = self.some(8)
        dims = self.rng.integers(0, WIDTH + 1, len(rows))
        kept = np.arange(WIDTH) < np.minimum(dims, self.dims[rows])[:, None]
        init = ("zeros", "normal")[self.rng.integers(2)]
        self.storage.resize(rows, dims, init, backend=self.backend)
        self.numbers[:, rows] *= kept
        self.dims[rows] = dims
        if init == "normal":
            self.take_new_values(rows, ~kept)

    def extend(self):
        count = int(self.rng.integers(0, 6)) if len(self.present()) < 40 else 0
        dims = self.rng.integers(0, WIDTH + 1, count)
        rows = self.storage.extend(count, dims, backend=self.backend).numpy()
        more = self.storage.num_rows - len(self.dims)
        self.dims = np.concatenate([self.dims, np.full(more, -1)])
        self.numbers = np.concatenate([self.numbers, np.zeros((3, more, WIDTH), np.float32)], 1)
        assert (self.dims[rows] == -1).all()
        self.dims[rows], self.numbers[:, rows] = dims, 0
        self.take_new_values(rows, np.ones((count, WIDTH), bool))

    def take_new_values(self, rows, is_new):
        """New values are random: read them once, they must then stay."""
        read = self.read(rows)[0]
        is_new = is_new & (np.arange(WIDTH) < self.dims[rows][:, None])
        assert (read[is_new] != 0).all() and (abs(read[is_new]) < 0.1).all()
        self.numbers[0, rows] = np.where(is_new, read, self.numbers[0, rows])

    def remove(self):
        rows = self.some(5)
        self.storage.remove(rows, backend=self.backend)
        self.dims[rows] = -1

    def compact(self):
        self.storage.compact(backend=self.backend)
        assert self.storage.weight.numel() == max(
            self.storage.live_numbers, self.storage.reserve_numbers
        )
        assert self.storage.fragmentation == 1.0

    def update(self):
        rows = self.some(6)
        grad = torch.from_numpy(self.rng.standard_normal((len(rows), WIDTH)).astype(np.float32))
        fused = self.storage.fused
        out = lookup(
            self.storage.weight,
            self.storage.rows,
            torch.from_numpy(rows),
            fused=fused,
            backend=self.backend,
        )
        out.backward(grad)
        self.optimizer.step()
        step = int(self.optimizer.state[self.storage.weight]["step"])
        inside = np.arange(WIDTH) < self.dims[rows][:, None]
        g = grad.numpy() * inside
        value, mean, square = self.numbers[:, rows]
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        ratio = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        got = self.read(rows)
        expected = np.stack([value - 0.1 * ratio, mean, square]) * inside
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)
        self.numbers[:, rows] = got  # from here on bit by bit

    def check(self):
        rows = self.present()
        assert np.array_equal(self.read(rows), self.numbers[:, rows])
        storage, slots = self.storage, self.storage.slots
        live = int(self.dims[rows].sum())
        free = int(slots.locate(slots.free_handles())[1].sum())
        assert (storage.num_present, storage.live_numbers) == (len(rows), live)
        assert live + free + slots.extents.numbers == storage.weight.numel()

    def check_all(self):
        """What takes longer: dims, absent rows, numbers of no row."""
        storage = self.storage
        assert np.array_equal(storage.dims.numpy(), np.maximum(self.dims, 0))
        assert np.array_equal(storage.present().numpy(), self.dims >= 0)
        rows = self.present()
        offset, dim = storage.spans(rows)
        owner = np.zeros(storage.weight.numel(), int)
        for first, count in zip(offset, dim, strict=True):
            owner[first : first + count] += 1
        assert owner.max(initial=0) <= 1
        assert not storage.weight.detach().numpy()[owner == 0].any()
        for row in np.flatnonzero(self.dims < 0)[:2]:
            with pytest.raises(IndexError):
                self.read(np.array([row]))


@pytest.mark.parametrize("backend", runnable_backends())
def test_random_changes_against_arrays(backend):
    model = Model(backend, seed=0)
    changes = (model.resize, model.extend, model.remove, model.update, model.compact)
    chances = np.array([0.36, 0.16, 0.1, 0.36, 0.02])
    for step in range(STEPS[backend]):
        model.rng.choice(changes, p=chances)()
        model.check()
        if step % 50 == 0:
            model.check_all()
    model.check_all()
    assert len(model.present()) > 5 and model.storage.used_rows > 12


def test_an_index_that_the_host_reads_by_copies_changes_alike(monkeypatch):
    """The way of tables on a GPU: the host has copies of words, and asks for handles."""
    for module in ("handles", "growing"):
        monkeypatch.setattr(f"varemb.storage.{module}.is_on_host", lambda index: False)
    model = Model("cpu", seed=2)
    assert not np.shares_memory(model.storage.slots.words, model.storage.index.numpy())
    for step in range(400):
        model.rng.choice((*[model.resize] * 3, model.extend, model.remove, model.compact))()
        model.check()
        if step % 50 == 0:
            model.check_all()


def test_within_a_reservation_addresses_stay():
    model = Model("reference", seed=1, reserve_rows=64, reserve_numbers=240)
    tensors = [model.storage.index, *model.tensors]
    before = [tensor.data_ptr() for tensor in tensors]
    for step in range(600):
        model.rng.choice([model.resize, model.extend, model.remove, model.update])()
        model.check()
        if step % 100 == 0:
            model.check_all()
        if model.storage.num_rows > 64 or model.storage.weight.numel() > 240:
            raise AssertionError(f"left the reservation in step {step}")
    after = [tensor.data_ptr() for tensor in (model.storage.index, *model.tensors)]
    assert before == after
    assert model.storage.live_numbers > 60
