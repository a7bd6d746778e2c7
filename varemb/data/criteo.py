"""Criteo Display Advertising Challenge (Kaggle, 2014): which ads were clicked.

A row per ad: the label, 13 counts I1..I13, 26 hashed categories C1..C26. Read from the
competition's train.txt (columns with tabs between, no header), or from Parquet files with columns
of these names. A count v is replaced by the bucket floor(ln(v)^2) for v > 2 and v - 2 up to there;
empty counts have a bucket of their own, and empty categories are a value like others.

In each field, values (buckets too) that occur less than 10 times in the file, or not at all, share
the id 0. Values are counted over all rows, before any split.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from varemb.data.base import ClickData
from varemb.data.encoding import count_values, encode_log, load_log
from varemb.data.reading import LogFormat
from varemb.data.vocabulary import Vocabulary

_COUNTS = tuple(f"I{i}" for i in range(1, 14))

CRITEO = LogFormat(
    name="criteo",
    label="label",
    fields=(*_COUNTS, *(f"C{i}" for i in range(1, 27))),
    counts=frozenset(_COUNTS),
    delimiter="\t",
    header=False,
    files=("train.txt", "train.parquet", "train_head_10k.parquet"),
    min_count=10,
)


def load_criteo(
    place: str | os.PathLike[str],
    *,
    min_count: int | Mapping[str, int] | None = None,
    vocabulary: Vocabulary | None = None,
    progress: bool = True,
) -> ClickData:
    """The rows of Criteo's data as ClickData with 39 fields.

    Args:
        place: a file, a folder of `encode_criteo`, or a folder that holds one of these, itself or
            in a folder criteo: encoded (such a folder), train.txt, train.parquet or
            train_head_10k.parquet, the first that is there.
        min_count: occurrences a value needs for an id of its own, for all fields or by the name of
            the field; by default 10.
        vocabulary: gives the ids, in place of a new one; unknown values get the id of rare ones.
        progress: show bars.

    Raises:
        FileNotFoundError: nothing of that kind is there.
        ValueError: a column is missing or a cell cannot be read (the message names file, line and
            column), the vocabulary is of other data, or the ids do not fit into memory.
        ImportError: without the package that reads the files.

    Deterministic: yes.
    """
    return load_log(CRITEO, place, min_count, vocabulary, progress=progress)


def encode_criteo(
    place: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    min_count: int | Mapping[str, int] | None = None,
    vocabulary: Vocabulary | None = None,
    progress: bool = True,
) -> ClickData:
    """The rows as an encoded folder of 160 bytes a row, and ClickData that is mapped from it.

    For files larger than memory. Memory and errors are those of `encode_log`; arguments as in
    `load_criteo`, and folder, the folder to make.
    """
    return encode_log(CRITEO, place, folder, min_count, vocabulary, progress=progress)


def criteo_vocabulary(
    place: str | os.PathLike[str],
    *,
    min_count: int | Mapping[str, int] | None = None,
    progress: bool = True,
) -> Vocabulary:
    """The values of a file that occur often enough; arguments as in `load_criteo`."""
    return count_values(CRITEO, place, min_count, progress=progress)
