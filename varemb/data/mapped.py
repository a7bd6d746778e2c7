"""Rows on disk: ids and labels as plain files that tensors map, larger than memory if need be.

A folder holds

    ids.int32        ids [R, F], row after row, little-endian
    labels.float32   labels [R]
    rows.json        rows, names of the fields, their cardinalities, checksums; written last

and is built under another name, in one place beside its own, that it leaves only when it is whole.
A build that was killed is not taken for data; the next build of the same folder removes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from varemb.files import load_json, save_json
from varemb.files.locks import lock_folder

NOTES = "rows.json"
_IDS, _LABELS = "ids.int32", "labels.float32"
_TAKEN = "encode: another process is writing {}"
_FORMAT, _VERSION = "varemb.rows", 1
_MOST_IDS = 2**31
_CHUNK_ROWS = 1 << 16  # rows in memory at a time; 10 MB with the 39 fields of Criteo

Ids = npt.NDArray[np.int32]
Labels = npt.NDArray[np.float32]


def _is_count(value: Any, most: float = float("inf")) -> bool:
    return type(value) is int and 1 <= value <= most  # True is an int too


def _are(value: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and value != [] and all(map(is_right, value))


# What rows.json must say.
_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "data": ("a name", lambda value: isinstance(value, str)),
    "rows": ("a whole number above 0", _is_count),
    "fields": ("a list of names", lambda value: _are(value, lambda name: isinstance(name, str))),
    "cardinalities": (
        f"a list of whole numbers from 1 to {_MOST_IDS}, which int32 can number",
        lambda value: _are(value, lambda size: _is_count(size, _MOST_IDS)),
    ),
    "checksums": (
        f"of {_IDS} and {_LABELS}",
        lambda value: isinstance(value, dict) and {_IDS, _LABELS} <= set(value),
    ),
}


@contextlib.contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name `folder` when the block ends without an exception.

    Raises:
        FileExistsError: `folder` is there already, or another process is building it.
        FileNotFoundError: the parent of `folder` does not exist.
    """
    partial = folder.parent / f".{folder.name}.partial"
    if folder.exists():
        raise FileExistsError(f"encode: {folder} exists; choose another folder or remove it")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"encode: there is no folder {folder.parent}")
    partial.mkdir(exist_ok=True)
    descriptor = lock_folder(partial)
    if descriptor is None:
        raise FileExistsError(_TAKEN.format(folder))
    try:
        _claim(partial, folder)
        try:
            yield partial
            os.fsync(descriptor)
            os.rename(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _claim(partial: Path, folder: Path) -> None:
    """Empties the half-built folder, which is locked, of what a killed build left."""
    if folder.exists():  # it was finished before we had the lock
        raise FileExistsError(_TAKEN.format(folder))
    for path in partial.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


class RowsWriter:
    """Appends rows to the files of a folder; `finish` makes it one that `open_rows` opens.

    Args:
        folder: where to write; made when it does not exist.
        field_names, cardinalities: of the fields. [F]
        data: name of the data set.
    """

    def __init__(
        self, folder: Path, field_names: Sequence[str], cardinalities: Sequence[int], data: str
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._notes = {"format": _FORMAT, "version": _VERSION, "data": data}
        self._notes |= {"fields": list(field_names), "cardinalities": list(cardinalities)}
        self._rows = 0
        self._files = {name: open(folder / name, "wb") for name in (_IDS, _LABELS)}  # noqa: SIM115
        self._checksums = dict.fromkeys(self._files, 0)

    def append(self, ids: Ids, labels: Labels) -> None:
        """Writes rows. ids [r, F] int32, labels [r] float32."""
        for name, array in ((_IDS, ids.astype("<i4")), (_LABELS, labels.astype("<f4"))):
            content = np.ascontiguousarray(array).data.cast("B") if array.size else b""
            self._files[name].write(content)
            self._checksums[name] = zlib.crc32(content, self._checksums[name])
        self._rows += len(labels)

    def finish(self) -> None:
        """Brings everything to the disk, the notes last."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self.close()
        self._notes["rows"] = self._rows
        self._notes["checksums"] = {name: f"{crc:08x}" for name, crc in self._checksums.items()}
        save_json(self._folder / NOTES, self._notes)

    def close(self) -> None:
        """Closes the files; without `finish` before it the folder stays unfinished."""
        for file in self._files.values():
            file.close()


def open_rows(folder: Path) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The rows of a folder: ids [R, F] int32, labels [R] float32, and its notes.

    The tensors are maps of the files: they take memory only while the system has it to spare, and
    must not be written to. The whole folder is read once to compare checksums and
    cardinalities.

    Raises:
        FileNotFoundError: the folder holds no rows.
        ValueError: a file is damaged; the message names it.
    """
    notes = load_notes(folder)
    rows, fields = notes["rows"], len(notes["fields"])
    checksums = dict.fromkeys((_IDS, _LABELS), 0)
    lowest, highest = np.zeros((2, fields), np.int32)
    for ids, labels in read_rows(folder, notes):
        np.minimum(lowest, ids.min(0), out=lowest)
        np.maximum(highest, ids.max(0), out=highest)
        checksums[_IDS] = zlib.crc32(ids.data.cast("B"), checksums[_IDS])
        checksums[_LABELS] = zlib.crc32(labels.data.cast("B"), checksums[_LABELS])
    for name, found in checksums.items():
        if f"{found:08x}" != notes["checksums"][name]:
            raise ValueError(f"load: {folder / name} is corrupt: its checksum does not match")
    for field, size, low, high in zip(
        notes["fields"], notes["cardinalities"], lowest, highest, strict=True
    ):
        if low < 0 or high >= size:
            raise ValueError(
                f"load: {folder / NOTES}: ids of {field} must be in [0, {size}), its cardinality, "
                f"got {low if low < 0 else high}"
            )
    return (
        _map(folder / _IDS, np.dtype("<i4"), (rows, fields)),
        _map(folder / _LABELS, np.dtype("<f4"), (rows,)),
        notes,
    )


def read_rows(folder: Path, notes: dict[str, Any]) -> Iterator[tuple[Ids, Labels]]:
    """The rows in order, some at a time, in memory of their own."""
    rows, fields = notes["rows"], len(notes["fields"])
    with open(folder / _IDS, "rb") as ids, open(folder / _LABELS, "rb") as labels:
        for first in range(0, rows, _CHUNK_ROWS):
            count = min(_CHUNK_ROWS, rows - first)
            yield (
                np.fromfile(ids, "<i4", count * fields).reshape(count, fields),
                np.fromfile(labels, "<f4", count),
            )


def load_notes(folder: Path) -> dict[str, Any]:
    """What rows.json says of a folder, its files' sizes compared with it.

    Raises:
        FileNotFoundError: the folder holds no rows.
        ValueError: rows.json is damaged, or a file has another size; the message names it.
    """
    path = folder / NOTES
    if not path.exists():
        raise FileNotFoundError(f"load: {folder} holds no encoded rows, it has no {NOTES}")
    notes = load_json(path)
    if not isinstance(notes, dict) or notes.get("format") != _FORMAT:
        raise ValueError(f"load: {path} must be a {_FORMAT} file")
    if notes.get("version") != _VERSION:
        got = notes.get("version")
        raise ValueError(f"load: {path} must have {_FORMAT} version {_VERSION}, got {got}")
    for key, (must_be, is_right) in _KEYS.items():
        if key not in notes:
            raise ValueError(f"load: {path} lacks {key}")
        if not is_right(notes[key]):
            raise ValueError(f"load: {path}: {key} must be {must_be}, got {str(notes[key])[:400]}")
    fields, sizes = len(notes["fields"]), len(notes["cardinalities"])
    if fields != sizes:
        raise ValueError(f"load: {path}: must have a cardinality per field, {fields}, got {sizes}")
    for name, width in ((_IDS, fields), (_LABELS, 1)):
        size, expected = (folder / name).stat().st_size, 4 * width * notes["rows"]
        if size != expected:
            raise ValueError(f"load: {folder / name} must have {expected} bytes, got {size}")
    return notes


def _map(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Tensor:
    # A shared read-only map: a private writable one counts as memory, and is refused beyond it.
    array = np.memmap(path, dtype, "r", shape=shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)
