"""Values of columns as keys of 64 bits, one key per value and one value per key.

A categorical value is the bytes of its text, at most 8 of them: Kaggle's hashes are 8 hexadecimal
digits. An empty cell is the empty text, a value like others. A count is replaced by the number of
its bucket, and an empty cell of counts by a bucket of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow

EMPTY = np.iinfo(np.int64).min  # the bucket of empty cells
LONGEST = 8  # bytes of a categorical value
_LARGEST = 2.0**53  # whole numbers below it are exact in float64

# The first n bytes of a big-endian word. [9]
_FIRST_BYTES = np.array([-1 << 8 * (8 - n) & 0xFFFFFFFFFFFFFFFF for n in range(9)], np.uint64)


class CellError(ValueError):
    """A cell that cannot be read.

    Attributes:
        index: its place in the array.
        text: what is wrong with it.
    """

    def __init__(self, index: int, text: str) -> None:
        super().__init__(text)
        self.index, self.text = index, text


def text_keys(array: pyarrow.Array) -> npt.NDArray[np.int64]:
    """Keys of categorical values. [L]

    Raises:
        CellError: a value is longer than 8 bytes.
    """
    import pyarrow

    array = array.cast(pyarrow.string()).fill_null("")
    _, offsets_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[array.offset :][: len(array) + 1]
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    if lengths.max(initial=0) > LONGEST:
        index = int(lengths.argmax())
        raise CellError(
            index, f"must have at most {LONGEST} letters, got {array[index].as_py()[:60]!r}"
        )
    data = np.frombuffer(data_buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    data = np.concatenate([data, np.zeros(LONGEST, np.uint8)])  # a word starts at every byte
    words = np.ndarray((len(data) - LONGEST + 1,), ">u8", data, 0, (1,))[starts]
    return (words.astype(np.uint64) & _FIRST_BYTES[lengths]).view(np.int64)


def key_text(key: int) -> str:
    """The categorical value of a key.

    Example:
        >>> import pyarrow
        >>> [key_text(key) for key in text_keys(pyarrow.array(["68fd1e64", "", "-1"]))]
        ['68fd1e64', '', '-1']
    """
    return (int(key) % 2**64).to_bytes(8, "big").rstrip(b"\0").decode()


def count_keys(array: pyarrow.Array) -> npt.NDArray[np.int64]:
    """Buckets of counts: floor(ln(v)^2) for v > 2, v - 2 up to there. [L]

    Raises:
        CellError: a value is not a whole number.

    Example:
        >>> import pyarrow
        >>> count_keys(pyarrow.array([-1, 0, 2, 3, 100, None])).tolist()
        [-3, -2, 0, 1, 21, -9223372036854775808]
    """
    import pyarrow

    values = array.cast(pyarrow.float64(), safe=False).to_numpy(
        zero_copy_only=False
    )  # empty cells are NaN
    wrong = (values != np.floor(values)) | (np.abs(values) >= _LARGEST)
    wrong &= ~np.isnan(values)
    if wrong.any():
        index = int(wrong.argmax())
        raise CellError(index, f"must be a whole number or empty, got {array[index].as_py()}")
    with np.errstate(invalid="ignore"):
        buckets = np.where(values > 2, np.floor(np.log(np.maximum(values, 2)) ** 2), values - 2)
        return np.where(np.isnan(values), EMPTY, buckets.astype(np.int64))


def count_equal(keys: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Distinct keys, and how often each occurs."""
    import pyarrow
    from pyarrow import compute

    counted = compute.value_counts(pyarrow.array(keys))
    return counted.field(0).to_numpy(), counted.field(1).to_numpy()


def number_distinct(keys: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Distinct keys [U], and the place of each key among them. [L]"""
    import pyarrow

    encoded = pyarrow.array(keys).dictionary_encode()
    return encoded.dictionary.to_numpy(), encoded.indices.to_numpy()
