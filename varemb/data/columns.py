"""Columns of text files and Parquet read in batches, each cell checked, for files of any size.

Never more than a few batches are in memory. Text is parsed by several threads, which cannot tell
the line of a fault; after a fault the rows that were not delivered yet are read again, one by one.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from varemb.data.keys import CellError
from varemb.data.mapped import NOTES
from varemb.data.text import open_text

if TYPE_CHECKING:
    import pyarrow

BLOCK_BYTES = 1 << 22  # text of a batch; up to some 40 of them are read ahead
BATCH_ROWS = 1 << 16  # rows of a batch of Parquet

_SHOWN = 400  # letters of a list of names in a message

NUMBERS = r"u?int|bool|float|double|halffloat"  # Arrow's types of numbers, as they are written


@dataclass(frozen=True)
class Kind:
    """What the cells of a column must be.

    Attributes:
        text: their type in a text file, by Arrow's name.
        must_be: what a cell must be, for people.
        is_right: whether a cell of a text file is of that kind.
        convert: their values; raises CellError for a cell that is not of that kind.
        stored: Arrow's types that a column of a Parquet file may have; "" allows all.
    """

    text: str
    must_be: str
    is_right: Callable[[bytes], bool]
    convert: Callable[[pyarrow.Array], npt.NDArray[Any]]
    stored: str = ""


@dataclass(frozen=True)
class Layout:
    """How a file looks.

    Attributes:
        name: of the data set, for messages.
        kinds: columns that are read -> what their cells must be, in the order of a text file
            without header.
        delimiter: between the cells of a text file: a letter, or the same letter twice.
        header: a text file's first line names its columns; without it they are those of `kinds`.
        is_quoted: cells of a text file may stand in double quotes.
    """

    name: str
    kinds: Mapping[str, Kind]
    delimiter: str = ","
    header: bool = True
    is_quoted: bool = False


def is_utf8(cell: bytes) -> bool:
    """Whether the bytes are text.

    Example:
        >>> is_utf8(b"caf\\xc3\\xa9"), is_utf8(b"\\xff")
        (True, False)
    """
    try:
        cell.decode()
    except UnicodeDecodeError:
        return False
    return True


def find_file(
    name: str, place: str | os.PathLike[str], files: Sequence[str], encoded: Sequence[str] = ()
) -> Path:
    """The file or encoded folder to read.

    Args:
        name: of the data set.
        place: a file, or a folder that holds one, itself or in a folder with the name of the data
            set.
        files: names that a file may have there; the first that is there is taken.
        encoded: folders there that may be encoded; they come before the files.

    Raises:
        FileNotFoundError: none of them is there.
    """
    path = Path(place)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{name}: there is no file or folder {path}")
    for folder in (path, path / name):
        for each in encoded:
            if (folder / each / NOTES).exists():
                return folder / each
        for file in files:
            if (folder / file).exists():
                return folder / file
    kinds = ", ".join(files) + (", and no encoded folder," if encoded else "")
    raise FileNotFoundError(f"{name}: none of {kinds} is in {path} or {path / name}")


def read_columns(
    layout: Layout, path: Path, *, block_bytes: int = BLOCK_BYTES
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The values of the layout's columns, batch after batch in the file's order.

    Args:
        layout: of the file.
        path: a text file, packed as `open_text` says or not, or a Parquet file, which ends in
            .parquet.
        block_bytes: text of a batch.

    Raises:
        ValueError: a column is missing, a cell cannot be read, or there are no rows; the message
            names file, line or row, and column.
        ImportError: without the package that reads the files.
    """
    try:
        from pyarrow import ArrowException
    except ImportError:
        raise ImportError(
            f"{layout.name}: reading the files needs pyarrow: pip install 'varemb[data]'"
        ) from None
    is_text = path.suffix != ".parquet"
    rows = 0
    try:
        parts = _read_text(layout, path, block_bytes) if is_text else _read_parquet(layout, path)
        for part in parts:
            if part.num_rows:
                yield _convert(layout, path, part, rows)
                rows += part.num_rows
    except (ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system, and names the file; damaged content has no number
        if is_text:
            _raise_fault(layout, path, layout.header + rows)
        text = " ".join(str(error).split())
        raise ValueError(f"{layout.name}: {path} cannot be read: {text}") from None
    if not rows:
        raise ValueError(f"{layout.name}: {path} is empty, it has no rows")


def _convert(
    layout: Layout, path: Path, part: pyarrow.RecordBatch, first: int
) -> dict[str, npt.NDArray[Any]]:
    values: dict[str, npt.NDArray[Any]] = {}
    for name, kind in layout.kinds.items():
        try:
            values[name] = kind.convert(part[name])
        except CellError as error:
            place = _place(layout, path, first + error.index)
            raise ValueError(
                f"{layout.name}: {path}, {place}, column {name}: {error.text}"
            ) from None
    return values


def _place(layout: Layout, path: Path, row: int) -> str:
    if path.suffix == ".parquet":
        return f"row {row}"
    row += layout.header
    return f"line {next((line for line, _ in _read_rows(layout, path, row)), row + 1)}"


def column_names(layout: Layout, path: Path) -> list[str]:
    """The names of the columns that a file has.

    Raises:
        ValueError: the file is damaged; the message names it.
        ImportError: without the package that reads Parquet.
    """
    if path.suffix != ".parquet":
        return _text_names(layout, path)
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ImportError(
            f"{layout.name}: reading the files needs pyarrow: pip install 'varemb[data]'"
        ) from None
    try:
        return list(parquet.read_schema(path).names)
    except ArrowException as error:
        raise ValueError(f"{layout.name}: {path} cannot be read: {error}") from None


def _read_parquet(layout: Layout, path: Path) -> Iterator[pyarrow.RecordBatch]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        check_columns(layout.name, path, layout.kinds, file.schema_arrow.names)
        for column, wanted in layout.kinds.items():
            kind = file.schema_arrow.field(column).type
            if not re.match(wanted.stored, str(kind)):
                raise ValueError(
                    f"{layout.name}: {path}, column {column}: must be {wanted.must_be}, "
                    f"is stored as {kind}"
                )
        yield from file.iter_batches(BATCH_ROWS, columns=list(layout.kinds), use_threads=True)


def check_columns(name: str, path: Path, wanted: Iterable[str], present: list[str]) -> None:
    """Raises ValueError unless each wanted column is there once; the message names the first."""
    for column in wanted:
        count = present.count(column)
        if count != 1:
            fault = f"has {count} columns named" if count else "lacks the column"
            shown = str(present)
            if len(shown) > _SHOWN:  # of a file that is none of columns, it may be all there is
                shown = f"{shown[:_SHOWN]}..."
            raise ValueError(f"{name}: {path} {fault} {column}, it has {shown}")


def _read_text(layout: Layout, path: Path, block_bytes: int) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow
    from pyarrow import csv

    if _is_empty(layout, path):  # Arrow takes a header alone, but not nothing
        return
    names = _text_names(layout, path)
    check_columns(layout.name, path, layout.kinds, names)
    if len(layout.delimiter) == 2:  # Arrow knows delimiters of one letter: a cell between each two
        names = [part for i, name in enumerate(names) for part in (name, f"\0{i}")][:-1]
    types = {name: getattr(pyarrow, kind.text)() for name, kind in layout.kinds.items()}
    with csv.open_csv(
        path,
        csv.ReadOptions(
            column_names=names,
            skip_rows_after_names=int(layout.header),  # a row may have several lines
            block_size=block_bytes,
        ),
        csv.ParseOptions(
            delimiter=layout.delimiter[0],
            quote_char='"' if layout.is_quoted else False,
            newlines_in_values=layout.is_quoted,
            ignore_empty_lines=False,
        ),
        csv.ConvertOptions(
            column_types=types,
            include_columns=list(layout.kinds),
            null_values=[""],
            strings_can_be_null=False,
        ),
    ) as reader:
        yield from reader


def _text_names(layout: Layout, path: Path) -> list[str]:
    if not layout.header:
        return list(layout.kinds)
    _, cells = next(_read_rows(layout, path), (1, [b""]))
    return [cell.decode("utf-8", "replace") for cell in cells]


def _is_empty(layout: Layout, path: Path) -> bool:
    with open_text(path, layout.name) as file:
        return not file.read(1)


def _raise_fault(layout: Layout, path: Path, first: int) -> None:
    """Raises for the first row from number `first` on that cannot be read, if there is one."""
    names = _text_names(layout, path)
    for line, cells in _read_rows(layout, path, first):
        fault = _find_fault(layout, names, cells)
        if fault:
            raise ValueError(f"{layout.name}: {path}, line {line}{fault}") from None


def _read_rows(layout: Layout, path: Path, first: int = 0) -> Iterator[tuple[int, list[bytes]]]:
    """Rows from number `first` on, the header's being 0, each with the line that it begins on.

    Lines count from 1. A row has several of them where a quoted cell has.
    """
    with (
        open_text(path, layout.name) as file,
        io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="") as lines,
    ):
        rows: Iterator[tuple[int, list[str]]]
        if layout.is_quoted:
            rows = itertools.islice(_quoted_rows(layout, path, lines), first, None)
        else:
            later = enumerate(itertools.islice(lines, first, None), first + 1)
            rows = ((number, line.rstrip("\r\n").split(layout.delimiter)) for number, line in later)
        for number, cells in rows:
            yield number, [cell.encode("utf-8", "surrogateescape") for cell in cells]


def _quoted_rows(
    layout: Layout, path: Path, lines: Iterable[str]
) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(lines, delimiter=layout.delimiter)
    number = 1
    try:
        for cells in reader:
            yield number, cells or [""]
            number = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{layout.name}: {path}, line {number} is no text of columns: {error}"
        ) from None


def _find_fault(layout: Layout, names: list[str], cells: list[bytes]) -> str:
    if len(cells) != len(names):
        line = layout.delimiter.encode().join(cells)
        return f": must have {len(names)} columns, got {len(cells)}: {_show(line)}"
    for name, cell in zip(names, cells, strict=True):
        kind = layout.kinds.get(name)
        if kind is not None and not kind.is_right(cell):
            got = _show(cell) if cell else "nothing"
            return f", column {name}: must be {kind.must_be}, got {got}"
    return ""


def _show(cell: bytes) -> Any:
    return repr(cell[:60].decode("utf-8", "backslashreplace"))
