"""Text files as bytes: unpacked as the end of their name says, without a byte order mark."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PACKED = (".bz2", ".gz", ".lz4", ".zst")  # Arrow, given the path, unpacks by the same names
_MARK = b"\xef\xbb\xbf"  # the byte order mark that some editors write in front of UTF-8


@contextlib.contextmanager
def open_text(path: Path, name: str) -> Iterator[BinaryIO]:
    """A text file to read, from behind its byte order mark on.

    Args:
        path: the file; a name that ends in .bz2, .gz, .lz4 or .zst says how it is packed.
        name: of the reader, for messages.

    Raises:
        ValueError: within the block, what is packed is damaged; the message names the file.
        ImportError: the file is packed, and the package that unpacks it is missing.
    """
    try:
        with _open(path, name) as file:
            if file.peek(len(_MARK)).startswith(_MARK):
                file.read(len(_MARK))
            yield file
    except OSError as error:
        if error.errno is not None:
            raise  # of the system, and names the file; damaged content has no number
        raise ValueError(f"{name}: {path} cannot be read: {error}") from None


def _open(path: Path, name: str) -> io.BufferedReader:
    if path.suffix not in PACKED:
        return open(path, "rb")
    try:
        import pyarrow
    except ImportError:
        raise ImportError(
            f"{name}: unpacking {path} needs pyarrow: pip install 'varemb[data]'"
        ) from None
    return io.BufferedReader(pyarrow.input_stream(path, compression="detect"))
