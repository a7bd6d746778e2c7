"""What every layout of a table offers, and how an optimizer finds the table behind a weight."""

from __future__ import annotations

import abc
import weakref
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from varemb.ops import Fused
from varemb.rows import Rows

_STORAGES = WeakTensorKeyDictionary()


class Storage(nn.Module, abc.ABC):
    """Owns a table's numbers and the index that says which row holds which of them.

    Attributes:
        weight: all rows' numbers, one row after another. Parameter [E].
        fused: the optimizer that lookups apply in backward, if any.
    """

    weight: nn.Parameter
    fused: Fused | None

    @property
    @abc.abstractmethod
    def rows(self) -> Rows:
        """Where each row's numbers are, as operations take it."""

    @property
    @abc.abstractmethod
    def dims(self) -> Tensor:
        """Numbers that each row stores. [N], int64."""

    @abc.abstractmethod
    def index_nbytes(self) -> int:
        """Bytes of the index."""

    def attach(self, fused: Fused) -> None:
        """Lets lookups apply an optimizer in backward; the weight then has no gradient."""
        self.fused = fused
        self.weight.requires_grad_(False)

    def detach_optimizer(self) -> None:
        """Undoes `attach`."""
        if self.fused is not None:
            self.fused = None
            self.weight.requires_grad_(True)

    def register_weight(self) -> None:
        """Makes `storage_of(self.weight)` find this table; needed whenever the weight changes."""
        _STORAGES[self.weight] = weakref.ref(self)

    def __getstate__(self) -> dict[str, Any]:
        # A copy is trained on its own: the optimizer keeps working on the original alone.
        return {**self.__dict__, "fused": None, "_was_fused": self.fused is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        was_fused = state.pop("_was_fused")
        super().__setstate__(state)
        if was_fused:
            self.weight.requires_grad_(True)
        self.register_weight()

    def _apply(self, fn: Any, recurse: bool = True) -> Storage:
        if self.fused is not None:
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
