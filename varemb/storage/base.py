"""What every layout of a table offers, and how an optimizer finds the table behind a weight."""

from __future__ import annotations

import abc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from varemb.ops import Fused, lookup
from varemb.rows import Rows

_STORAGES = WeakTensorKeyDictionary()
_ROWS_AT_A_TIME = 65536  # for whole-table copies: 64 MiB at a width of 256

Ints = npt.NDArray[np.int64]
# (old [n, D] zero-padded, old dims [n], new dims [n]) -> new [n, D]
RowMap = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(eq=False)
class State:
    """An optimizer's tensors that follow a table's rows.

    The tensors stay the same objects while rows move, come and go; their memory may be another.
    """

    per_number: list[Tensor] = field(default_factory=list)  # each [E]
    per_row: list[Tensor] = field(default_factory=list)  # each [N]
    fill: float = 0.0  # of what is new


class LaidOut(nn.Module):
    """A module with tensors that follow from the rows' dims, so that no file and no reset brings
    them.

    They move with the numbers, and keep what they say where `to_empty` makes the numbers anew.
    While the numbers are on the meta device, they are on the CPU. They are no buffers: what takes
    the mean of buffers (AveragedModel with `use_buffers=True`) would take the mean of addresses.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[str] = []

    def keep(self, name: str, tensor: Tensor, device: torch.device | str | None) -> None:
        """Makes a tensor on the CPU an attribute, on the device of the numbers."""
        where = torch.empty(0, device=device).device  # of a `with torch.device(...)` too
        setattr(self, name, tensor if where.type == "meta" else tensor.to(where))
        self._kept.append(name)

    def beside(self, name: str, like: Tensor) -> Tensor:
        """A kept tensor on the device of numbers, which may have been moved one by one: sharding
        and replicas move parameters and buffers."""
        tensor: Tensor = getattr(self, name)
        if tensor.device != like.device and not like.is_meta:
            tensor = tensor.to(like.device)
            setattr(self, name, tensor)
        return tensor

    def kept(self) -> list[Tensor]:
        """The tensors that were given to `keep`, as they are now."""
        return [getattr(self, name) for name in self._kept]

    def _apply(self, fn: Any, recurse: bool = True) -> LaidOut:
        super()._apply(fn, recurse)
        for name, tensor in zip(self._kept, self.kept(), strict=True):
            like = fn(tensor[:0])
            if not like.is_meta:
                dtype = like.dtype if tensor.is_floating_point() else tensor.dtype
                setattr(self, name, tensor.to(like.device, dtype))
        return self


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and what tables keep beside both."""
    parts = [part for part in module.modules() if isinstance(part, LaidOut)]
    kept = [tensor for part in parts for tensor in part.kept()]
    return [*module.parameters(), *module.buffers(), *kept]


class Storage(LaidOut, abc.ABC):
    """Owns a table's numbers and the index that says which row holds which of them.

    Attributes:
        weight: all rows' numbers, one row after another. Parameter [E]. Lookups train it while it
            requires a gradient, also where an optimizer takes the gradient's place.
        num_rows: N; of a paged table the rows that it has room for.
        width: D.
    """

    weight: nn.Parameter
    num_rows: int
    width: int

    def __init__(self) -> None:
        super().__init__()
        self._attached: Fused | None = None
        self._attached_state: State | None = None
        self._states: weakref.WeakSet[State] = weakref.WeakSet()

    @property
    @abc.abstractmethod
    def rows(self) -> Rows:
        """Where each row's numbers are, as operations take it."""

    @property
    @abc.abstractmethod
    def dims(self) -> Tensor:
        """Numbers that each row stores. [N], int64."""

    @abc.abstractmethod
    def spans(self, rows: Ints) -> tuple[Ints, Ints]:
        """Offset and numbers taken of rows. [n], [n]"""

    @abc.abstractmethod
    def present(self) -> Tensor:
        """Which rows are there. [N], bool."""

    @abc.abstractmethod
    def index_nbytes(self) -> int:
        """Bytes of the index."""

    @property
    @abc.abstractmethod
    def live_numbers(self) -> int:
        """Numbers that rows have: the sum of the dims."""

    @property
    @abc.abstractmethod
    def num_present(self) -> int:
        """Rows that are there."""

    @property
    @abc.abstractmethod
    def fragmentation(self) -> float:
        """Allocated numbers over live ones."""

    @property
    @abc.abstractmethod
    def used_numbers(self) -> int:
        """Numbers from the first to the last that a row may have."""

    @property
    @abc.abstractmethod
    def used_rows(self) -> int:
        """Rows from the first to the last that ever was there."""

    @abc.abstractmethod
    def new_state(self, dtype: torch.dtype, fill: float, *, per_row: bool) -> Tensor:
        """A tensor with a number per number of the table, or per row, with room to grow alike."""

    def follow(self, state: State) -> None:
        """Moves an optimizer's tensors with the rows, as long as the optimizer holds the state."""
        self._states.add(state)

    def states(self) -> list[State]:
        """State of the optimizers that train this table."""
        return list(self._states)

    def followers(self) -> list[tuple[Tensor, float]]:
        """Tensors [E] that move with the weight, and what is written where a number is new."""
        tensors = [(t, state.fill) for state in self._states for t in state.per_number]
        return tensors if self.weight.grad is None else [*tensors, (self.weight.grad, 0.0)]

    def reset_rows(self, rows: Ints) -> None:
        """Starts state that is kept per row anew."""
        where = torch.from_numpy(rows).to(self.weight.device)
        for state in self._states:
            for tensor in state.per_row:
                tensor[where] = state.fill

    @torch.no_grad()
    def to_dense(self) -> Tensor:  # [N, D]
        """All rows, zero-padded; zeros for rows that are absent."""
        device = self.weight.device
        there = torch.arange(self.num_rows, device=device)[self.present().to(device)]
        dense = self.weight.new_zeros(self.num_rows, self.width)
        dense[there] = lookup(self.weight, self.rows, there)
        return dense

    @torch.no_grad()
    def copy_dense_(self, dense: Tensor) -> None:
        """Takes each row's first numbers from a dense table, up to the last row that ever was."""
        if self.weight.is_meta:
            return
        device = self.weight.device
        columns = torch.arange(self.width, device=device)
        for first in range(0, self.used_rows, _ROWS_AT_A_TIME):
            rows = np.arange(first, min(first + _ROWS_AT_A_TIME, self.used_rows))
            offset, taken = (torch.from_numpy(a).to(device) for a in self.spans(rows))
            inside = columns < taken[:, None]
            source = dense[first : first + len(rows)].to(device=device, dtype=self.weight.dtype)
            self.weight[(offset[:, None] + columns)[inside]] = source[inside]

    def attach(self, fused: Fused, state: State) -> None:
        """Lets lookups apply an optimizer in backward; they then give the weight no gradient."""
        self._attached, self._attached_state = fused, state
        self.follow(state)

    def detach_optimizer(self) -> None:
        """Undoes `attach`."""
        self._attached = self._attached_state = None

    @property
    def attached(self) -> Fused | None:
        """The optimizer that `attach` has given, if any, whether the weight is frozen or not."""
        return self._attached

    @property
    def fused(self) -> Fused | None:
        """The optimizer that lookups are to apply in backward; none while the weight is frozen."""
        return self._attached if self.weight.requires_grad else None

    def register_weight(self) -> None:
        """Makes `storage_of(self.weight)` find this table; needed whenever the weight changes."""
        _STORAGES[self.weight] = weakref.ref(self)

    def __getstate__(self) -> dict[str, Any]:
        # A copy is trained on its own: the optimizer keeps working on the original alone.
        return {**self.__dict__, "_attached": None, "_attached_state": None, "_states": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["_states"] = weakref.WeakSet()
        super().__setstate__(state)
        self.register_weight()

    def _apply(self, fn: Any, recurse: bool = True) -> Storage:
        if self.attached is not None:
            changed = fn(self.weight.detach()[:0])
            if (changed.dtype, changed.device) != (self.weight.dtype, self.weight.device):
                raise RuntimeError(
                    "VarEmbedding: convert the dtype and move the table before the fused optimizer "
                    "is made; its state belongs to the table as it is"
                )
        super()._apply(fn, recurse)
        self.register_weight()
        return self


def storage_of(weight: Tensor) -> Storage | None:
    """The table whose weight this is, or None."""
    found = _STORAGES.get(weight)
    storage: Storage | None = None if found is None else found()
    return storage if storage is not None and storage.weight is weight else None
