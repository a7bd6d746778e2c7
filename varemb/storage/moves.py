"""Moves of rows within a table's buffers: one plan for the values and the optimizer's state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from varemb.ops import move_
from varemb.ops.backend import choose
from varemb.storage.base import RowMap, Storage

Ints = npt.NDArray[np.int64]

STAGING_NBYTES = 64 << 20  # the most that a change of a table takes beside it
_MOVES_AT_A_TIME = 1 << 19  # 32 bytes each


class NewNumbers(NamedTuple):
    """What is written where a row has numbers that it did not have."""

    init: str | RowMap
    std: float
    generator: torch.Generator | None


class Mover:
    """Moves rows of a table and of all state that follows it, as bits.

    Args:
        storage: the table.
        backend: as in `ops.lookup`.
    """

    def __init__(self, storage: Storage, backend: str | None) -> None:
        self.weight: Tensor = storage.weight  # its memory may change while this lives
        self.followers = storage.followers()
        self._device = self.weight.device
        self._backend = choose(backend, self._device.type)  # refused before anything moves

    def plan(
        self, source: Ints | int, target: Ints, kept: Ints | int, dim: Ints
    ) -> Tensor:  # [n, 4]
        """Moves of rows: `kept` numbers are copied, those up to `dim` become 0. Each [n]."""
        moves = np.empty((len(target), 4), np.int64)
        moves[:, 0], moves[:, 1], moves[:, 2], moves[:, 3] = source, target, kept, dim
        plan = torch.from_numpy(moves)
        return plan if self._device.type == "cpu" else plan.to(self._device)

    def apply(self, out: Tensor, values: Tensor, plan: Tensor) -> None:
        """Applies a plan to one tensor; no move may write what another one reads or writes."""
        move_([out], [values], plan, backend=self._backend)

    def relocate(
        self, source: Ints, target: Ints, kept: Ints, dim: Ints, *, keep_state: bool = True
    ) -> None:
        """Rows get new places: numbers and state beyond the kept ones are new."""
        plan = self.plan(source, target, kept, dim)
        self.apply(self.weight, self.weight, plan)
        if self.followers and not keep_state:
            kept = np.zeros_like(kept)
            plan = self.plan(source, target, kept, dim)
        for tensor, fill in self.followers:
            self.apply(tensor, tensor, plan)
            if fill:
                self.fill(tensor, fill, target + kept, dim - kept)

    def clear(self, offset: Ints, dim: Ints) -> None:
        """Numbers that no row has any more become 0, and their gradient."""
        plan = self.plan(0, offset, 0, dim)
        for tensor in (self.weight, self.weight.grad):
            if tensor is not None:
                self.apply(tensor, tensor, plan)

    def block(self, offset: Ints, dim: Ints, width: int) -> Tensor:  # [n, D]
        """Rows, zero-padded."""
        block = self.weight.new_empty(len(dim), width)
        target = np.arange(len(dim), dtype=np.int64) * width
        plan = self.plan(offset, target, dim, np.full(len(dim), width))
        self.apply(block.view(-1), self.weight, plan)
        return block

    def store(self, block: Tensor, offset: Ints, dim: Ints) -> None:
        """Writes the first numbers of each row of a block [n, D]."""
        source = np.arange(len(dim), dtype=np.int64) * block.shape[1]
        self.apply(self.weight, block.view(-1), self.plan(source, offset, dim, dim))

    def new_numbers(self, new: NewNumbers, count: Ints) -> Tensor:  # [sum of count]
        """Numbers for rows, `count` of each, one row after another; none for zeros."""
        if new.init != "normal":
            return self.weight.new_empty(0)
        numbers = self.weight.new_empty(int(count.sum()))
        return numbers.normal_(0.0, new.std, generator=new.generator)

    def put(self, numbers: Tensor, offset: Ints, count: Ints) -> None:
        """Writes what `new_numbers` gave, from each offset on."""
        if numbers.numel():
            source = np.cumsum(count) - count
            self.apply(self.weight, numbers, self.plan(source, offset, count, count))

    def tensors(self) -> list[Tensor]:
        """The weight and everything that moves with it."""
        return [self.weight, *(tensor for tensor, _ in self.followers)]

    def staging(self, numbers: int) -> Tensor:  # [bytes]
        """Memory for so many numbers of any of the tensors, to be viewed in its dtype."""
        nbytes = numbers * max(tensor.element_size() for tensor in self.tensors())
        return torch.empty(-(-nbytes // 8) * 8, dtype=torch.uint8, device=self._device)

    def reset(self, offset: Ints, dim: Ints) -> None:
        """Starts the state of rows anew."""
        for tensor, fill in self.followers:
            self.fill(tensor, fill, offset, dim)

    def fill(self, tensor: Tensor, fill: float, offset: Ints, count: Ints) -> None:
        """Writes one number to ranges of a tensor."""
        if count.size:
            filled = tensor.new_full((int(count.max()),), fill)
            self.apply(tensor, filled, self.plan(0, offset, count, count))


def parts(count: int, width: int, nbytes: int = STAGING_NBYTES) -> Iterator[slice]:
    """Slices of rows whose plan, and a block of them D wide in 8 bytes, stay below a limit."""
    step = max(1, min(_MOVES_AT_A_TIME, nbytes // (8 * (width + 16))))
    return (slice(first, first + step) for first in range(0, count, step))
