"""Size-class tables and a remap of rows: a table per distinct dim, in plain PyTorch."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import Batch, Case
from benchmarks.peers import INITIAL_VALUE, Lookup, sum_bag


class SizeClasses:
    """Rows grouped by dim: one table per distinct dim (rounded up), widest first.

    Attributes:
        sizes: width of each class's table. C whole numbers, descending
        rows: the rows of each class in slot order. C tensors
        starts: first number of each class in the remapped order, N at the end. [C + 1], int64
        remap: a row's place when all rows are sorted by class. [N], int32 (int64 from 2^31 rows on)
    """

    def __init__(self, case: Case, multiple: int) -> None:
        rounded = (case.dims + multiple - 1) // multiple * multiple  # [N]
        self.sizes: list[int] = rounded.unique().flip(0).tolist()
        self.rows = [(rounded == size).nonzero().squeeze(1) for size in self.sizes]
        counts = torch.tensor([0] + [rows.numel() for rows in self.rows])
        self._bounds: list[int] = counts.cumsum(0).tolist()
        self.starts = torch.tensor(self._bounds, device=case.device)
        self.remap = torch.empty(case.spec.rows, dtype=torch.int32, device=case.device)
        places = torch.arange(case.spec.rows, dtype=torch.int32, device=case.device)
        self.remap[torch.cat(self.rows)] = places
        self.bags = case.spec.bags

    def positions(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Remapped rows [L] and, for each class, the positions of its lookups, in order."""
        places = self.remap.index_select(0, batch.indices)  # [L]
        return places, [
            ((places >= start) & (places < stop)).nonzero().squeeze(1)
            for start, stop in itertools.pairwise(self._bounds)
        ]

    def sort(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Lookups in (class, bag) order by one stable sort: slots [L] and offsets [C * G + 1]."""
        places = self.remap.index_select(0, batch.indices).long()  # [L]
        classes = torch.bucketize(places, self.starts[1:-1], right=True)  # [L]
        numbers = torch.arange(self.bags, device=places.device)
        bags = torch.repeat_interleave(numbers, batch.offsets.diff(), output_size=places.numel())
        keys, order = torch.sort(classes * self.bags + bags, stable=True)
        counts = torch.bincount(keys, minlength=len(self.sizes) * self.bags)  # [C * G]
        slots = (places - self.starts[classes]).index_select(0, order)
        return slots, F.pad(counts.cumsum(0), (1, 0))


class FoldSum(torch.autograd.Function):
    """Sum of the classes' zero-padded outputs: [G, sum of sizes] -> [G, D]."""

    @staticmethod
    def forward(ctx: Any, concatenated: Tensor, sizes: list[int], width: int) -> Tensor:
        """Adds block k, [G, sizes[k]], to the first sizes[k] columns."""
        ctx.sizes = sizes
        blocks = torch.split(concatenated, sizes, dim=1)
        out = F.pad(blocks[0], (0, width - sizes[0]))  # [G, D]
        for size, block in zip(sizes[1:], blocks[1:], strict=True):
            out[:, :size] += block
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Gives every block the gradient's first columns."""
        return torch.cat([grad[:, :size] for size in ctx.sizes], dim=1), None, None


def _class_weights(classes: SizeClasses, case: Case) -> list[nn.Parameter]:
    return [
        nn.Parameter(case.full((rows.numel(), size), INITIAL_VALUE))
        for rows, size in zip(classes.rows, classes.sizes, strict=True)
    ]


def class_embeddings(case: Case, multiple: int = 1) -> Lookup:
    """One nn.Embedding per size class; each class's rows are copied into the padded block."""
    classes = SizeClasses(case, multiple)
    weights = _class_weights(classes, case)
    starts = classes.starts.tolist()

    def call(batch: Batch) -> Tensor:
        places, positions = classes.positions(batch)
        out = weights[0].new_zeros(places.numel(), case.spec.width)  # [L, D]
        for weight, size, start, where in zip(
            weights, classes.sizes, starts[:-1], positions, strict=True
        ):
            out[where, :size] = F.embedding(places[where] - start, weight, sparse=True)
        return out

    return Lookup(call, lambda: [*weights, classes.remap], tuple(weights))


def class_bags(case: Case, multiple: int = 1) -> Lookup:
    """One nn.EmbeddingBag per size class, fed by the remap and a stable sort, outputs added up."""
    classes = SizeClasses(case, multiple)
    modules = [sum_bag(weight) for weight in _class_weights(classes, case)]
    bags = case.spec.bags

    def call(batch: Batch) -> Tensor:
        slots, offsets = classes.sort(batch)
        bounds = offsets[::bags].tolist()
        outs = []
        for k, module in enumerate(modules):
            first, last = bounds[k], bounds[k + 1]
            own = offsets[k * bags : (k + 1) * bags + 1] - first  # [G + 1]
            outs.append(module(slots[first:last], own))
        return FoldSum.apply(torch.cat(outs, dim=1), classes.sizes, case.spec.width)  # type: ignore[no-any-return, no-untyped-call]

    weights = [module.weight for module in modules]
    return Lookup(call, lambda: [*weights, classes.remap], tuple(weights))
