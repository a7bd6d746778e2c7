"""Writes that survive a kill, JSON, and checksums.

A save goes to a temporary file beside the old one, reaches the disk, and then takes the place of
the old file in one step. A full disk, an exception or a kill in the middle leaves the previous file
as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_STALE_SECONDS = 3600.0


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes `data` to `path` so that a reader sees the old file or the new one, never a part.

    Args:
        path: the file to write; its folder must exist.
        data: the whole content.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is unchanged.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "note.txt")
        ...     atomic_write(file, b"one")
        ...     file.read_bytes()
        b'one'
    """

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.write(data)

    replace(path, write)


def save_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    atomic_write(path, (json.dumps(value, indent=2) + "\n").encode())


def load_json(path: str | os.PathLike[str]) -> Any:
    """The value stored in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"load: {os.fspath(path)} is not a JSON file: {error}") from None


def save_jsonl(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one line of JSON per record, atomically."""
    atomic_write(path, "".join(json.dumps(record) + "\n" for record in records).encode())


def load_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a file written by `save_jsonl`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a JSON object; the message names file and line.
    """
    records = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"load: {os.fspath(path)}, line {number} is not JSON: {error}"
            ) from None
        if not isinstance(record, dict):
            raise ValueError(f"load: {os.fspath(path)}, line {number} is not a JSON object")
        records.append(record)
    return records


def replace(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Has `write` fill a temporary file, which then takes the place of `path`.

    Raises:
        OSError: there is no such folder, or what `write` raises; `path` is unchanged.
    """
    # A link keeps pointing to its file: the file is replaced, not the link.
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"save: {os.fspath(path)} is a folder, not a file")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"save: folder {target.parent} does not exist")
    _remove_stale(target)
    # A folder, because safetensors writes a temporary file of its own beside the one it is given.
    folder = target.parent / f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    folder.mkdir()
    temporary = folder / target.name
    try:
        temporary.touch()
        # safetensors makes files that only their owner can read.
        mode = (target if target.exists() else temporary).stat().st_mode & 0o777
        write(temporary)
        os.chmod(temporary, mode)
        _sync(temporary)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale(target: Path) -> None:
    # A killed save leaves its temporary folder behind. One in use is never this old.
    for leftover in target.parent.glob(f".{_escape(target.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _escape(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def checksum(arrays: Iterable[npt.NDArray[Any]]) -> str:
    """CRC-32 of the arrays' bytes, one after the other, as hexadecimal digits.

    Example:
        >>> checksum([np.arange(3)]), checksum([np.arange(2), np.arange(2, 3)])
        ('4f8c5ccc', '4f8c5ccc')
    """
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return f"{value:08x}"
