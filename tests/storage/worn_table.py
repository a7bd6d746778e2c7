"""A paged table after many changes, for tests."""

import torch

from varemb import optim
from varemb.ops import lookup
from varemb.storage import PagedStorage


def worn(rows=4000, width=40, seed=0):
    """A table after many changes, with what it holds."""
    generator = torch.Generator().manual_seed(seed)
    storage = PagedStorage(torch.randint(0, width + 1, (rows,), generator=generator), width)
    optimizer = optim.Adagrad([storage.weight], initial_accumulator_value=0.5)
    storage.copy_dense_(torch.randn(rows, width, generator=generator))
    total = optimizer.state[storage.weight]["sum"]
    total.copy_(torch.arange(total.numel()))
    for _ in range(6):
        there = storage.present().nonzero()[:, 0]
        some = there[torch.randperm(len(there), generator=generator)[:700]]
        dims = torch.randint(0, width + 1, (700,), generator=generator)
        storage.resize(some, dims, "normal", generator=generator)
        storage.remove(some[:400])
    storage.extend(900, 11, generator=generator)
    return storage, total


def contents(storage, total):
    rows = storage.present().nonzero()[:, 0]
    return [
        lookup(t.detach(), storage.rows, rows, backend="reference") for t in (storage.weight, total)
    ]
