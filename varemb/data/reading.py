"""Files of click logs read in batches: text with a column per field, or Parquet, of any size.

Never more than a few batches are in memory. Text is parsed by several threads, which cannot tell
the line of a fault; after a fault the lines that were not delivered yet are read again, one by one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from varemb.data.keys import CellError, count_keys, text_keys
from varemb.data.mapped import NOTES

if TYPE_CHECKING:
    import pyarrow

BLOCK_BYTES = 1 << 22  # text of a batch; up to some 40 of them are read ahead
BATCH_ROWS = 1 << 16  # rows of a batch of Parquet


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
    path = Path(place)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{form.name}: there is no file or folder {path}")
    for folder in (path, path / form.name):
        for encoded in (folder, folder / "encoded"):
            if (encoded / NOTES).exists():
                return encoded
        for name in form.files:
            if (folder / name).exists():
                return folder / name
    raise FileNotFoundError(
        f"{form.name}: none of {', '.join(form.files)}, and no encoded folder, is in {path} or "
        f"{path / form.name}"
    )


def read_batches(form: LogFormat, path: Path, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Batch]:
    """The rows of a file in order, a batch at a time.

    Args:
        form: of the data set.
        path: a text file, or a Parquet file, which ends in .parquet.
        block_bytes: text of a batch.

    Raises:
        ValueError: a column is missing, or a cell cannot be read; the message names file, line or
            row, and column.
        ImportError: without the package that reads the files.
    """
    try:
        from pyarrow import ArrowException
    except ImportError:
        raise ImportError(
            f"{form.name}: reading the files needs pyarrow: pip install 'varemb[data]'"
        ) from None
    is_text = path.suffix != ".parquet"
    first, unit = (1 + form.header, "line") if is_text else (0, "row")
    rows = 0
    try:
        parts = _read_text(form, path, block_bytes) if is_text else _read_parquet(form, path)
        for part in parts:
            if part.num_rows:
                yield _make_batch(form, part, f"{form.name}: {path}, {unit} ", first + rows)
                rows += part.num_rows
    except (ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system, and names the file; damaged content has no number
        if is_text:
            _raise_fault(form, path, first + rows)
        text = " ".join(str(error).split())
        raise ValueError(f"{form.name}: {path} cannot be read: {text}") from None
    if not rows:
        raise ValueError(f"{form.name}: {path} is empty, it has no rows")


def _make_batch(form: LogFormat, part: pyarrow.RecordBatch, place: str, first: int) -> Batch:
    name = form.label
    try:
        labels = _read_labels(part[name])
        keys = {}
        for name in form.fields:
            keys[name] = (count_keys if name in form.counts else text_keys)(part[name])
    except CellError as error:
        raise ValueError(f"{place}{first + error.index}, column {name}: {error.text}") from None
    return Batch(labels, keys)


def _read_labels(array: pyarrow.Array) -> npt.NDArray[np.float32]:
    import pyarrow

    labels = array.cast(pyarrow.float32(), safe=False).to_numpy(zero_copy_only=False)
    wrong = (labels != 0) & (labels != 1)  # an empty cell is NaN
    if wrong.any():
        index = int(wrong.argmax())
        value = array[index].as_py()
        raise CellError(index, f"must be 0 or 1, got {'nothing' if value is None else value}")
    return labels


def _read_parquet(form: LogFormat, path: Path) -> Iterator[pyarrow.RecordBatch]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        _check_columns(form, path, file.schema_arrow.names)
        for column in (form.label, *form.counts):
            kind = file.schema_arrow.field(column).type
            if not re.match(r"u?int|bool|float|double|halffloat", str(kind)):
                raise ValueError(f"{form.name}: {path}, column {column}: must be numbers: {kind}")
        yield from file.iter_batches(BATCH_ROWS, columns=list(form.columns), use_threads=True)


def _check_columns(form: LogFormat, path: Path, present: list[str]) -> None:
    for column in form.columns:
        if column not in present:
            raise ValueError(f"{form.name}: {path} lacks the column {column}, it has {present}")


def _read_text(form: LogFormat, path: Path, block_bytes: int) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow
    from pyarrow import csv

    names = _column_names(form, path)
    if names != [""]:
        _check_columns(form, path, names)
    if not _has_rows(form, path):
        return
    types = {name: pyarrow.int64() for name in (form.label, *form.counts)}
    types |= {name: pyarrow.string() for name in form.fields if name not in form.counts}
    with csv.open_csv(
        path,
        csv.ReadOptions(
            column_names=names,
            skip_rows=int(form.header),
            block_size=block_bytes,
        ),
        csv.ParseOptions(delimiter=form.delimiter, quote_char=False, ignore_empty_lines=False),
        csv.ConvertOptions(
            column_types=types,
            include_columns=list(form.columns),
            null_values=[""],
            strings_can_be_null=False,
        ),
    ) as reader:
        yield from reader


def _column_names(form: LogFormat, path: Path) -> list[str]:
    if not form.header:
        return list(form.columns)
    with open(path, "rb") as file:
        return file.readline().decode("utf-8-sig").rstrip("\r\n").split(form.delimiter)


def _has_rows(form: LogFormat, path: Path) -> bool:
    with open(path, "rb") as file:
        if form.header:
            file.readline()
        return bool(file.read(1))


def _raise_fault(form: LogFormat, path: Path, first: int) -> None:
    """Raises for the first line from number `first` on that cannot be read, if there is one."""
    names = _column_names(form, path)
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if number < first:
                continue
            fault = _find_fault(form, names, line.rstrip(b"\r\n"))
            if fault:
                raise ValueError(f"{form.name}: {path}, line {number}{fault}") from None


def _find_fault(form: LogFormat, names: list[str], line: bytes) -> str:
    cells = line.split(form.delimiter.encode())
    if len(cells) != len(names):
        return f": must have {len(names)} columns, got {len(cells)}: {_show(line)}"
    for name, cell in zip(names, cells, strict=True):
        if name == form.label and cell not in (b"0", b"1"):
            return f", column {name}: must be 0 or 1, got {_show(cell) if cell else 'nothing'}"
        if name in form.counts and cell and not re.fullmatch(rb"-?\d{1,18}", cell):
            return f", column {name}: must be a whole number or empty, got {_show(cell)}"
        if name in form.fields and not _is_utf8(cell):
            return f", column {name}: must be UTF-8, got {_show(cell)}"
    return ""


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode()
    except UnicodeDecodeError:
        return False
    return True


def _show(cell: bytes) -> Any:
    return repr(cell[:60].decode("utf-8", "backslashreplace"))
