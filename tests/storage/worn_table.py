"""A paged table after many changes, for tests."""

import torch

from varemb import optim
from varemb.ops import lookup
from varemb.storage import PagedStorage


def worn(sizes=range(41)):
    """A table after many changes, with its optimizer's state."""
    generator = torch.Generator().manual_seed(0)
    sizes, width = torch.tensor(sizes), max(sizes)

    def draw(count):
        return sizes[torch.randint(0, len(sizes), (count,), generator=generator)]

    storage = PagedStorage(draw(4000), width)
    optimizer = optim.Adagrad([storage.weight], initial_accumulator_value=0.5)
    storage.copy_dense_(torch.randn(4000, width, generator=generator))
    total = optimizer.state[storage.weight]["sum"]
    total.copy_(torch.arange(total.numel()))
    for _ in range(6):
        there = storage.present().nonzero()[:, 0]
        some = there[torch.randperm(len(there), generator=generator)[:700]]
        storage.resize(some, draw(700), "normal", generator=generator)
        storage.remove(some[:400])
    storage.extend(900, 11, generator=generator)
    return storage, total


def contents(storage, total):
    rows = storage.present().nonzero()[:, 0]
    return [
        lookup(t.detach(), storage.rows, rows, backend="reference") for t in (storage.weight, total)
    ]
