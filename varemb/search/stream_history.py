"""Events of the past, from which the networks that choose sizes are trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SAMPLERS = ("uniform", "last_batch")


class History:
    """Rows and labels of past events.

    `uniform` keeps a uniform sample of at most `most` events of the whole past (Vitter's
    Algorithm R) and draws from it with replacement; `last_batch` keeps the batch before.

    Args:
        sampler: uniform or last_batch.
        most: events to keep.
        generator: of all draws.

    Example:
        >>> past = History("last_batch", 100, torch.Generator())
        >>> past.add(torch.tensor([[5, 6], [7, 8]]), torch.tensor([0.0, 1.0]))
        >>> past.draw(2)
        (tensor([[5, 6],
                [7, 8]]), tensor([0., 1.]))
    """

    def __init__(self, sampler: str, most: int, generator: torch.Generator) -> None:
        self.sampler, self.most, self.generator = sampler, most, generator
        self.events = 0
        self.rows = torch.zeros(2, 0, dtype=torch.int64)  # [2, K]
        self.labels = torch.zeros(0)  # [K]

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, rows: Tensor, labels: Tensor) -> None:
        """Takes in the events of a batch that has been learnt. [2, B], [B]"""
        number = self.events + torch.arange(len(labels))
        self.events += len(labels)
        if self.sampler == "last_batch" or not len(self):
            self.rows, self.labels = rows.clone(), labels.clone()
            if self.sampler == "last_batch":
                return
            self.rows, self.labels = self.rows[:, : self.most], self.labels[: self.most]
            rows, labels, number = rows[:, self.most :], labels[self.most :], number[self.most :]
        if not len(labels):
            return
        room = self.most - len(self)
        if room > 0:
            self.rows = torch.cat([self.rows, rows[:, :room]], 1)
            self.labels = torch.cat([self.labels, labels[:room]])
            rows, labels, number = rows[:, room:], labels[room:], number[room:]
        # Event n takes a place in [0, n], which is a kept one with chance most / (n + 1).
        share = torch.rand(len(number), dtype=torch.float64, generator=self.generator)
        place = (share * (number + 1)).long()
        kept = place < self.most
        # numpy promises that the last of several events that take one place stays.
        self.rows.numpy()[:, place[kept].numpy()] = rows[:, kept].numpy()
        self.labels.numpy()[place[kept].numpy()] = labels[kept].numpy()

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """Rows [2, B] and labels [B] of a validation batch."""
        if self.sampler == "last_batch":
            return self.rows, self.labels
        chosen = torch.randint(len(self), (size,), generator=self.generator)
        return self.rows[:, chosen], self.labels[chosen]

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.labels.nbytes

    def state(self) -> dict[str, Any]:
        """What `load_state` continues from."""
        return {"events": self.events, "rows": self.rows.clone(), "labels": self.labels.clone()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from a saved state."""
        self.events, self.rows, self.labels = state["events"], state["rows"], state["labels"]
