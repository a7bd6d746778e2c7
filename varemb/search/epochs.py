"""What the searches that train share: epochs that can be resumed, and their batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varemb.search.base import Checkpoint, FieldData, identify_data
from varemb.search.training import seeded_from, show_progress, shuffled_batches


def first_rows(cardinalities: Sequence[int]) -> Tensor:
    """Row of the first id of each field, then the number of rows. [F + 1] int64"""
    return F.pad(torch.tensor(list(cardinalities)).cumsum(0), (1, 0))


def count_rows(data: FieldData) -> list[Tensor]:
    """How often each id of each field is in the data. F tensors [V_f] int64"""
    return [
        torch.bincount(data.ids[:, f].long(), minlength=rows)
        for f, rows in enumerate(data.cardinalities)
    ]


def logloss(model: nn.Module, data: FieldData, rows: Tensor) -> Tensor:
    """Mean cross-entropy of some rows."""
    return F.binary_cross_entropy_with_logits(model(data.ids[rows]), data.labels[rows])


def gradient_step(
    loss: Tensor,
    optimizers: Iterable[torch.optim.Optimizer],
    clip: float | None = None,
    only: Sequence[Tensor] | None = None,
) -> float:
    """One step down the loss; returns it.

    Args:
        clip: largest norm of the gradient.
        only: the parameters that move; the others of the optimizers see no gradient.

    Raises:
        FloatingPointError: the loss is not finite; the weights are left as they were.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"search: the loss is {value}; try a smaller learning rate")
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    for parameter in parameters:
        parameter.grad = None
    moved = parameters if only is None else list(only)
    for parameter, gradient in zip(moved, torch.autograd.grad(loss, moved), strict=True):
        parameter.grad = gradient
    if clip is not None:
        nn.utils.clip_grad_norm_(moved, clip)
    for optimizer in optimizers:
        optimizer.step()
    return value


@dataclass
class Epochs:
    """A search between two epochs, and what its checkpoint holds.

    Attributes:
        model: everything that is learnt by gradients.
        optimizers: of the model's parameters.
        generator: all randomness.
        kept: what else the search carries from one epoch to the next; `is_done` ends it early.
        history: one record per epoch.
        seconds: spent in epochs.
    """

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    generator: torch.Generator
    kept: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def batches(self, data: FieldData, size: int, text: str, *, progress: bool) -> Iterator[Tensor]:
        """Row numbers of one epoch, batch by batch."""
        return show_progress(
            shuffled_batches(len(data.labels), size, self.generator), text, progress=progress
        )

    def next_rows(self, data: FieldData, size: int) -> Tensor:
        """The next batch of rows of data that is gone through beside the epochs."""
        waiting = self.kept.setdefault("waiting", [])
        if not waiting:
            waiting += shuffled_batches(len(data.labels), size, self.generator)
        return waiting.pop()

    def run(
        self, run_epoch: Callable[[int], dict[str, Any]], total: int, file: Checkpoint, resume: bool
    ) -> None:
        """Runs the epochs that are missing and saves after each.

        Args:
            run_epoch: epoch 1..total -> its record; torch's own randomness is ours in it.
        """
        state = file.load(resume=resume)
        if state is not None:
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.generator.set_state(state["generator"])
            self.kept, self.history = state["kept"], state["history"]
            self.seconds = state["seconds"]
            del state  # and with it a second copy of the weights
        while len(self.history) < total and not self.kept.get("is_done"):
            start = time.perf_counter()
            with seeded_from(self.generator):
                self.history.append(run_epoch(len(self.history) + 1))
            self.seconds += time.perf_counter() - start
            file.save({
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "generator": self.generator.get_state(),
                "kept": self.kept,
                "history": self.history,
                "seconds": self.seconds,
            })  # fmt: skip


def open_checkpoint(
    folder: Path | None, name: str, config: Any, train: FieldData, valid: FieldData
) -> Checkpoint:
    """The file `name`.safetensors of a search, bound to its settings and data."""
    identity = {**asdict(config), **identify_data(train, valid)}
    return Checkpoint.in_folder(folder, name, identity)
