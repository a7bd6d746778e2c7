"""Files of click logs read in batches: text with a column per field, or Parquet, of any size."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from varemb.data.columns import (
    BLOCK_BYTES,
    NUMBERS,
    Kind,
    Layout,
    find_file,
    is_utf8,
    read_columns,
)
from varemb.data.keys import CellError, count_keys, text_keys

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class LogFormat:
    """How a data set's files look.

    Attributes:
        name: of the data set, and of the folder it may lie in.
        label: column of the label.
        fields: columns of the fields, in order. [F]
        counts: those of them that hold counts, which are put in buckets.
        delimiter: between the cells of a text file.
        header: the text file's first line names its columns; without it they are label, fields.
        files: names a file may have; the first that is there is read.
        min_count: occurrences a value needs for an id of its own, when nothing else is said.
    """

    name: str
    label: str
    fields: tuple[str, ...]
    counts: frozenset[str]
    delimiter: str
    header: bool
    files: tuple[str, ...]
    min_count: int

    @property
    def columns(self) -> tuple[str, ...]:
        """What is read of a file."""
        return (self.label, *self.fields)


@dataclass(frozen=True)
class Batch:
    """Rows that stand one after the other in a file."""

    labels: npt.NDArray[np.float32]  # [R], 0 or 1
    keys: Mapping[str, npt.NDArray[np.int64]] = field(repr=False)  # field -> keys. Each [R]


def find_source(form: LogFormat, place: str | os.PathLike[str]) -> Path:
    """The file or encoded folder to read.

    Args:
        form: of the data set.
        place: a file, an encoded folder, or a folder that holds one of these, itself or in a folder
            with the name of the data set.

    Raises:
        FileNotFoundError: nothing of that kind is there.
    """
    return find_file(form.name, place, form.files, encoded=("", "encoded"))


def read_batches(form: LogFormat, path: Path, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Batch]:
    """The rows of a file in order, a batch at a time; arguments and errors of `read_columns`."""
    kinds = {form.label: _LABEL}
    kinds |= {name: _COUNT if name in form.counts else _TEXT for name in form.fields}
    layout = Layout(form.name, kinds, form.delimiter, form.header)
    for values in read_columns(layout, path, block_bytes=block_bytes):
        yield Batch(values[form.label], {name: values[name] for name in form.fields})


def _read_labels(array: pyarrow.Array) -> npt.NDArray[np.float32]:
    import pyarrow

    labels = array.cast(pyarrow.float32(), safe=False).to_numpy(zero_copy_only=False)
    wrong = (labels != 0) & (labels != 1)  # an empty cell is NaN
    if wrong.any():
        index = int(wrong.argmax())
        value = array[index].as_py()
        raise CellError(index, f"must be 0 or 1, got {'nothing' if value is None else value}")
    return labels


def _is_label(cell: bytes) -> bool:
    return cell in (b"0", b"1")


def _is_count(cell: bytes) -> bool:
    return not cell or re.fullmatch(rb"-?\d{1,18}", cell) is not None


_LABEL = Kind("int64", "0 or 1", _is_label, _read_labels, NUMBERS)
_COUNT = Kind("int64", "a whole number or empty", _is_count, count_keys, NUMBERS)
_TEXT = Kind("string", "UTF-8", is_utf8, text_keys)
