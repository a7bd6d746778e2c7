"""One side of a stream, users or items: ids as rows of a growing table, and notes on each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from varemb.id_map import IdMap
from varemb.nn import VarEmbedding
from varemb.search.stream_events import Ids

Column = tuple[type[np.generic], tuple[int, ...]]  # dtype and shape of what is kept per row


class Occurrences(NamedTuple):
    """Rows of a batch and how often they occur."""

    rows: Tensor  # of each event. [B]
    distinct: Ids  # [U]
    inverse: Ids  # place of each event's row in distinct. [B]
    counts: Ids  # events of each distinct row. [U]
    last: Ids  # last event of each distinct row. [U]
    frequency: Ids  # occurrences of the event's row so far, this one included. [B]
    final: Ids  # the same at the row's last event of the batch. [B]


class Side:
    """A table whose rows appear with their ids.

    Args:
        table: resizable, without rows.
        dim: of a new row.
        columns: what is kept per row beside `seen`, the number of its events.

    Attributes:
        ids: raw ids -> rows.
        numbers: sum of the dims.
    """

    def __init__(
        self, table: VarEmbedding, dim: int, columns: Mapping[str, Column] | None = None
    ) -> None:
        self.ids, self.table, self.dim = IdMap(), table, dim
        self.numbers = 0
        layout: dict[str, Column] = {"seen": (np.int64, ()), **(columns or {})}
        self._columns: dict[str, npt.NDArray[Any]] = {
            name: np.zeros((0, *shape), dtype) for name, (dtype, shape) in layout.items()
        }

    def __len__(self) -> int:
        return len(self.ids)

    def column(self, name: str) -> npt.NDArray[Any]:
        """What is kept per row; rows behind the last id are room for growth. [>= N, ...]"""
        return self._columns[name]

    def enter(self, raw: Ids, generator: torch.Generator) -> Occurrences:
        """Rows of the ids; unseen ones get new rows of normal numbers from the generator.

        The table grows before the map does, so that a table that cannot leaves both as they were.
        """
        unseen = raw[self.ids.rows(raw, grow=False) < 0]
        missing = len(self.ids) + len(np.unique(unseen)) - self.table.num_present
        if missing > 0:
            self.table.extend(missing, self.dim, init="normal", std=1.0, generator=generator)
            self.numbers += missing * self.dim
        rows = self.ids.rows(raw, grow=True)
        for name, column in self._columns.items():
            self._columns[name] = _grown(column, len(self.ids))
        return self._count(rows)

    def _count(self, rows: Ids) -> Occurrences:
        distinct, inverse, counts = np.unique(rows, return_inverse=True, return_counts=True)
        events = np.arange(len(rows))
        last = np.empty(len(distinct), np.int64)
        last[inverse] = events  # the last one stays
        order = np.argsort(inverse, kind="stable")
        earlier = np.empty_like(events)  # events of the same row before this one, in the batch
        earlier[order] = events - np.repeat(np.cumsum(counts) - counts, counts)
        before = self._columns["seen"][rows]
        return Occurrences(
            torch.from_numpy(rows),
            distinct,
            inverse,
            counts,
            last,
            before + earlier + 1,
            before + counts[inverse],
        )

    def leave(self, seen: Occurrences) -> None:
        """Counts the events of a batch that has been learnt."""
        self._columns["seen"][seen.distinct] += seen.counts

    def dims(self) -> Tensor:
        """Dims of the rows of all ids. [N]"""
        return self.table.dims[: len(self.ids)]

    def check(self) -> None:
        """The numbers that the table holds are the sum of the dims."""
        live = self.table.live_numbers
        assert live == self.numbers, (
            f"the table holds {live} numbers, its dims add up to {self.numbers}"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the map and the columns."""
        return self.ids.nbytes + sum(column.nbytes for column in self._columns.values())

    def state(self) -> dict[str, Any]:
        """What `load_state` continues from."""
        columns = {name: column[: len(self.ids)] for name, column in self._columns.items()}
        return {
            "ids": self.ids.state()["ids"],
            "table": self.table.state_dict(),
            "columns": {name: torch.from_numpy(column.copy()) for name, column in columns.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state."""
        self.ids = IdMap.from_ids(state["ids"])
        self.table.load_state_dict(state["table"])
        self._columns = {name: column.numpy() for name, column in state["columns"].items()}
        self.numbers = int(self.dims().sum())


def _grown(column: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """The column with room for so many rows, new ones 0."""
    if len(column) >= rows:
        return column
    grown = np.zeros((max(rows, len(column) * 5 // 4), *column.shape[1:]), column.dtype)
    grown[: len(column)] = column
    return grown
