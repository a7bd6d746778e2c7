"""What learns from a stream: tables and networks, one step of them, and their state."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from varemb.search.stream_events import loss_slopes, losses
from varemb.search.stream_history import History
from varemb.search.stream_side import Occurrences, Side
from varemb.storage import tensors_of

Pair = tuple[Occurrences, Occurrences]  # users and items of a batch


class Learnt(NamedTuple):
    """What was predicted before a batch was learnt."""

    logits: Tensor  # [B, O]
    losses: Tensor  # [B]
    dims: npt.NDArray[np.int64]  # dims that users and items were read with. [2, B]


class Learner(abc.ABC):
    """What learns from one stream.

    Attributes:
        sides: users and items, with their tables.
        modules: what has parameters beside the tables, by name.
        optimizers: of tables and modules, by name.
        history: past events that what chooses sizes learns from, if something does.
        generator: all randomness.
        chooser: name of the module that chooses sizes, and of its optimizer.
        is_served: that module is needed to serve rows too.
    """

    sides: tuple[Side, Side]
    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    history: History | None
    generator: torch.Generator
    chooser: ClassVar[str | None] = None
    is_served: ClassVar[bool] = False

    @abc.abstractmethod
    def learn(self, seen: Pair, labels: Tensor) -> Learnt:
        """Predicts a batch, then learns it. A prediction sees no label of its batch."""

    def unify_nbytes(self) -> int:
        """Bytes of what brings stored numbers to the width when rows are served."""
        # The maps are views of one buffer, which a memory report would count as a whole.
        unify = [side.table.unify for side in self.sides if side.table.unify is not None]
        return sum(tensor.nbytes for each in unify for tensor in tensors_of(each))

    def column_nbytes(self) -> int:
        """Bytes of the sides' columns that `unify_nbytes` counts."""
        return 0

    def search_nbytes(self) -> int:
        """Bytes that only the choice of sizes needs: the past, networks and their optimizer."""
        total = 0 if self.history is None else self.history.nbytes
        if self.chooser is None:
            return total
        kept = [] if self.is_served else tensors_of(self.modules[self.chooser])
        for moments in self.optimizers[self.chooser].state.values():
            kept += moments.values()
        return total + sum(tensor.nbytes for tensor in kept)

    def state(self) -> dict[str, Any]:
        """What `load_state` continues from."""
        return {
            "sides": [side.state() for side in self.sides],
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": {name: each.state_dict() for name, each in self.optimizers.items()},
            "history": None if self.history is None else self.history.state(),
            "generator": self.generator.get_state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state of a learner with the same settings."""
        for side, saved in zip(self.sides, state["sides"], strict=True):
            side.load_state(saved)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.history is not None:
            self.history.load_state(state["history"])
        self.generator.set_state(state["generator"])


def descend(
    logits: Tensor, labels: Tensor, optimizers: Sequence[torch.optim.Optimizer]
) -> Tensor:  # [B]
    """One step of the optimizers down the sum of the losses, which are returned.

    DIFFERS: the sum, as in the published code, where Eq. 3 and 4 have the mean: for Adam they are
        the same but for eps.

    Raises:
        FloatingPointError: a loss is not finite; the weights are left as they were.
    """
    known = logits.detach()
    lost = losses(known, labels)
    value = lost.sum().item()
    if not math.isfinite(value):
        raise FloatingPointError(
            f"stream: the loss of a batch is {value}; a smaller learning rate may help"
        )
    zero_gradients(optimizers)
    logits.backward(loss_slopes(known, labels))
    for optimizer in optimizers:
        optimizer.step()
    return lost


def zero_gradients(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Zeroes gradients in place: those of a flat parameter have views."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.zero_()
