"""varemb's table of a case, looked up by any backend, and the peers of `lookup_linear`."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import Batch, Case
from benchmarks.ours import OPTIMIZERS
from benchmarks.peers import LEARNING_RATE, Lookup, padded_embedding
from benchmarks.size_classes import SizeClasses
from benchmarks.timing import Runner
from varemb.nn.unify import LinearUnify
from varemb.ops import coalesce, lookup, lookup_bag, lookup_linear
from varemb.storage import PackedStorage

CLASS_MULTIPLE = 8  # widths of size classes are rounded up to this


class OurTable:
    """One packed table that all operations and backends of a case share.

    Attributes:
        storage: the table, filled with random numbers.
        optimizer: what its lookups apply in backward, after `train`.
    """

    def __init__(self, case: Case) -> None:
        spec = case.spec
        self.storage = PackedStorage(case.dims, spec.width, device=case.device, dtype=spec.dtype)
        with torch.no_grad():
            self.storage.weight.normal_()
        sizes = case.dims.unique().cpu()
        starts = [0, sizes.numel()]  # one field
        self.unify = LinearUnify(sizes, starts, spec.width, device=case.device, dtype=spec.dtype)
        self.optimizer: torch.optim.Optimizer | None = None

    def train(self, optimizer: str | None) -> None:
        """Attaches varemb's optimizer of that name, or none."""
        self.storage.detach_optimizer()
        self.optimizer = None
        if optimizer is not None:
            parameters = [self.storage.weight]
            self.optimizer = OPTIMIZERS[optimizer](parameters, lr=LEARNING_RATE, fused=True)

    def sequence(self, backend: str) -> Lookup:
        """[L] -> [L, D]"""

        def call(batch: Batch) -> Tensor:
            table = self.storage
            return lookup(table.weight, table.rows, batch.indices, backend=backend)

        return Lookup(call, self._tensors)

    def bag(self, backend: str) -> Lookup:
        """Sums of bags. [L] -> [G, D]"""

        def call(batch: Batch) -> Tensor:
            table = self.storage
            return lookup_bag(
                table.weight,
                table.rows,
                batch.indices,
                batch.offsets,
                mode="sum",
                include_last_offset=True,
                fused=table.fused,
                backend=backend,
            )

        return Lookup(call, self._tensors)

    def linear(self, backend: str) -> Lookup:
        """A matrix per size. [L] -> [L, D]"""
        groups, (weight, bias) = self.unify.groups, self.unify.matrices()

        def call(batch: Batch) -> Tensor:
            table = self.storage
            rows = (table.weight, table.rows, batch.indices)
            return lookup_linear(*rows, groups, weight, bias, backend=backend)

        return Lookup(call, self._tensors)

    def coalescing(self, backend: str, grad: Tensor) -> Runner:
        """Gradients of repeated rows added up. grad: [L, D]"""
        kept: list[tuple[Tensor, Tensor]] = []

        def run(batch: Batch) -> None:
            kept.append(coalesce(grad, self.storage.rows, batch.indices, backend=backend))

        return Runner((("coalesce", run),), self._tensors, kept.clear)

    def _tensors(self) -> list[Tensor]:
        state: list[Tensor] = []
        if self.storage.fused is not None:
            both = (self.storage.fused.state1, self.storage.fused.state2)
            state = [buffer for buffer in both if buffer is not None]
        return [self.storage.weight, self.storage.index, *state]


def torch_coalescing(case: Case, grad: Tensor) -> Runner:
    """torch's coalesce of a padded sparse gradient, as a sparse optimizer begins. grad: [L, D]"""
    shape = (case.spec.rows, case.spec.width)
    kept: list[Tensor] = []

    def run(batch: Batch) -> None:
        sparse = torch.sparse_coo_tensor(batch.indices[None], grad, shape, check_invariants=False)
        kept.append(sparse.coalesce())

    return Runner((("coalesce", run),), lambda: [], kept.clear)


def padded_linear(case: Case) -> Lookup:
    """nn.Embedding of the full width and one nn.Linear: no row is narrower."""
    table = padded_embedding(case)
    width = case.spec.width
    linear = nn.Linear(width, width, device=case.device, dtype=case.spec.dtype)
    return Lookup(
        lambda batch: linear(table.call(batch)),
        lambda: [*table.tensors(), *linear.parameters()],
    )


def class_linears(case: Case, multiple: int = 1) -> Lookup:
    """One nn.Embedding and one nn.Linear per size class, results copied into place."""
    classes = SizeClasses(case, multiple)
    width = case.spec.width
    weights = [
        case.full((rows.numel(), size), 0.01)
        for rows, size in zip(classes.rows, classes.sizes, strict=True)
    ]
    linears = [
        nn.Linear(size, width, device=case.device, dtype=case.spec.dtype) for size in classes.sizes
    ]
    counts = [rows.numel() for rows in classes.rows]
    starts = [0, *itertools.accumulate(counts)]

    def call(batch: Batch) -> Tensor:
        places, positions = classes.positions(batch)
        out = weights[0].new_empty(places.numel(), width)  # [L, D]
        for weight, linear, start, where in zip(
            weights, linears, starts[:-1], positions, strict=True
        ):
            out[where] = linear(F.embedding(places[where] - start, weight))
        return out

    matrices = [parameter for linear in linears for parameter in linear.parameters()]
    return Lookup(call, lambda: [*weights, *matrices, classes.remap])
