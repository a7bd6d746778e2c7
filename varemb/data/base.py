"""ClickData: what every click data set of this folder returns."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from varemb.data.mapped import RowsWriter, building, load_notes, open_rows, read_rows

_CHECKED_ROWS = 1 << 18  # checked at a time, so that a check needs little memory


@dataclass(frozen=True)
class ClickData:
    """Rows of categorical ids with a label; the ids of each field count from 0.

    Attributes:
        ids: [R, F], int32 or int64, ids[:, f] in [0, cardinalities[f]).
        labels: [R], float32, 0 or 1.
        field_names: one name per field. [F]
        cardinalities: rows of each field. [F]
        folder: the encoded folder that ids and labels are maps of, made by `open_encoded`; None
            for rows in memory, and for maps of files that are gone with their last map.

    Raises:
        ValueError: shapes that do not fit, an id outside its field, a label that is not 0 or 1.

    Example:
        >>> ids, labels = torch.tensor([[0, 2], [1, 0]]), torch.tensor([0.0, 1.0])
        >>> len(ClickData(ids, labels, ("user", "item"), (2, 3)))
        2
    """

    ids: Tensor
    labels: Tensor
    field_names: tuple[str, ...]
    cardinalities: tuple[int, ...]
    folder: Path | None = None

    def __post_init__(self) -> None:
        fields = len(self.field_names)
        if self.ids.dim() != 2 or self.ids.shape[1] != fields or len(self.cardinalities) != fields:
            raise ValueError(
                f"ClickData: ids must be [rows, {fields}], a column per field name, with "
                f"{fields} cardinalities; got ids {list(self.ids.shape)} and "
                f"{len(self.cardinalities)} cardinalities"
            )
        if self.ids.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"ClickData: ids must be int32 or int64, got {self.ids.dtype}")
        if self.labels.shape != self.ids.shape[:1]:
            raise ValueError(
                f"ClickData: labels must be [{len(self.ids)}], one per row of ids, "
                f"got {list(self.labels.shape)}"
            )
        if self.folder is None:  # rows of a folder were checked when it was opened
            for first in range(0, len(self.labels), _CHECKED_ROWS):
                self._check_rows(first, slice(first, first + _CHECKED_ROWS))

    def _check_rows(self, first: int, rows: slice) -> None:
        labels, ids = self.labels[rows], self.ids[rows]
        wrong = (labels != 0) & (labels != 1)  # NaN is wrong too
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"ClickData: labels must be 0 or 1, got {labels[row].item()} in row {first + row}"
            )
        outside = (ids < 0) | (ids >= torch.tensor(self.cardinalities))
        if outside.any():
            row, field = outside.nonzero()[0].tolist()
            raise ValueError(
                f"ClickData: ids of {self.field_names[field]} must be in "
                f"[0, {self.cardinalities[field]}), got {ids[row, field].item()} "
                f"in row {first + row}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def split(
        self, seed: int, fractions: Sequence[float] = (0.8, 0.1, 0.1)
    ) -> tuple[ClickData, ...]:
        """Disjoint random parts, one per fraction; the same seed gives the same parts.

        Parts of rows in memory are copies in memory, in random order. Parts of an encoded folder
        hold the same rows, in the folder's order, and are written into it once per seed, as much
        again as its ids; they may be deleted. Where the folder cannot be written, a warning says
        so, and the parts are maps of files in the system's temporary folder for as long as they
        are used; a part of a part is then in memory.

        Args:
            seed: of the shuffle.
            fractions: positive, adding up to 1.

        Raises:
            ValueError: the fractions do not add up to 1, or a part would be empty.
            OSError: no place to write the parts of a folder to.

        Example:
            >>> ids, labels = torch.arange(10).view(10, 1), torch.zeros(10)
            >>> parts = ClickData(ids, labels, ("user",), (10,)).split(0)
            >>> [len(part) for part in parts]
            [8, 1, 1]
        """
        if not fractions or min(fractions) <= 0 or not math.isclose(sum(fractions), 1):
            raise ValueError(
                f"split: fractions must be positive and add up to 1, got {tuple(fractions)}"
            )
        ends = [round(len(self) * share) for share in itertools.accumulate(fractions)]
        sizes = np.diff([0, *ends]).tolist()
        if 0 in sizes:
            raise ValueError(
                f"split: every part needs a row; {len(self)} rows in shares of "
                f"{tuple(fractions)} give {sizes}"
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        parts = order.split(sizes)
        if self.folder is None:
            return tuple(
                ClickData(self.ids[rows], self.labels[rows], self.field_names, self.cardinalities)
                for rows in parts
            )
        place = self.folder / "-".join([f"parts-seed{seed}", *map("{:g}".format, fractions)])
        if not place.exists():
            try:
                _write_parts(self.folder, place, parts)
            except OSError as error:
                if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                    raise
                return _temporary_parts(self.folder, parts, str(error))
        return tuple(open_encoded(place / str(i)) for i in range(len(parts)))


def open_encoded(folder: str | os.PathLike[str]) -> ClickData:
    """The rows of an encoded folder as tensors that are maps of its files.

    Raises:
        FileNotFoundError: the folder holds no encoded rows.
        ValueError: a file is damaged; the message names it.
    """
    path = Path(folder)
    ids, labels, notes = open_rows(path)
    return ClickData(ids, labels, tuple(notes["fields"]), tuple(notes["cardinalities"]), path)


def _write_parts(folder: Path, place: Path, parts: Sequence[Tensor]) -> None:
    notes = load_notes(folder)
    part_of = np.empty(notes["rows"], np.int8)
    for i, rows in enumerate(parts):
        part_of[rows.numpy()] = i
    with building(place) as partial, contextlib.ExitStack() as stack:
        writers = [
            RowsWriter(partial / str(i), notes["fields"], notes["cardinalities"], notes["data"])
            for i in range(len(parts))
        ]
        for writer in writers:
            stack.callback(writer.close)
        first = 0
        for ids, labels in read_rows(folder, notes):
            chosen = part_of[first : first + len(labels)]
            for i, writer in enumerate(writers):
                writer.append(ids[chosen == i], labels[chosen == i])
            first += len(labels)
        for writer in writers:
            writer.finish()


def _temporary_parts(folder: Path, parts: Sequence[Tensor], reason: str) -> tuple[ClickData, ...]:
    """Parts as maps of files without a name, which the system removes with their last map."""
    temporary = Path(tempfile.gettempdir())
    notes = load_notes(folder)
    needed, free = 4 * notes["rows"] * (len(notes["fields"]) + 1), shutil.disk_usage(temporary).free
    text = (
        f"split: the parts of {folder}, {needed / 1e9:.1f} GB, must be written, but not beside it: "
        f"{reason}"
    )
    if needed > free:
        raise OSError(
            f"{text}; {temporary} has {free / 1e9:.1f} GB, TMPDIR can name another folder"
        )
    warnings.warn(f"{text}; they go to {temporary} for this process", stacklevel=3)
    with tempfile.TemporaryDirectory(prefix="varemb-", dir=temporary) as place:
        _write_parts(folder, Path(place) / "parts", parts)
        opened = [open_rows(Path(place) / "parts" / str(i)) for i in range(len(parts))]
        names, sizes = tuple(notes["fields"]), tuple(notes["cardinalities"])
        return tuple(ClickData(ids, labels, names, sizes) for ids, labels, _ in opened)


def from_columns(columns: dict[str, npt.NDArray[np.generic]], labels: Tensor) -> ClickData:
    """ClickData whose ids are the ranks of the sorted distinct values of each column.

    Args:
        columns: field name -> value of each row. Each [R].
        labels: [R], 0 or 1.
    """
    ids, cardinalities = [], []
    for values in columns.values():
        distinct, ranks = np.unique(values, return_inverse=True)
        ids.append(torch.from_numpy(ranks.astype(np.int32)))
        cardinalities.append(len(distinct))
    return ClickData(torch.stack(ids, 1), labels, tuple(columns), tuple(cardinalities))
