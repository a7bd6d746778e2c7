"""Avazu Click-Through Rate Prediction (Kaggle, 2014): which mobile ads were clicked.

A row per ad: id, click (the label), and 22 fields, hour (YYMMDDHH, as it stands), C1, banner_pos,
the site's, app's and device's columns, and C14..C21, all of them categories. The id, different in
every row, is left out. Read from the competition's train.csv, or from Parquet files with columns of
these names; the columns may stand in any order.

In each field, values that occur less than 4 times in the file, or not at all, share the id 0.
Values are counted over all rows, before any split.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from varemb.data.base import ClickData
from varemb.data.encoding import count_values, encode_log, load_log
from varemb.data.reading import LogFormat
from varemb.data.vocabulary import Vocabulary

AVAZU = LogFormat(
    name="avazu",
    label="click",
    fields=(
        "hour",
        "C1",
        "banner_pos",
        "site_id",
        "site_domain",
        "site_category",
        "app_id",
        "app_domain",
        "app_category",
        "device_id",
        "device_ip",
        "device_model",
        "device_type",
        "device_conn_type",
        *(f"C{i}" for i in range(14, 22)),
    ),
    counts=frozenset(),
    delimiter=",",
    header=True,
    files=("train.csv", "train.parquet", "train_head_10k.parquet"),
    min_count=4,
)


def load_avazu(
    place: str | os.PathLike[str],
    *,
    min_count: int | Mapping[str, int] | None = None,
    vocabulary: Vocabulary | None = None,
    progress: bool = True,
) -> ClickData:
    """The rows of Avazu's data as ClickData with 22 fields.

    Args:
        place: a file, a folder of `encode_avazu`, or a folder that holds one of these, itself or
            in a folder avazu: encoded (such a folder), train.csv, train.parquet or
            train_head_10k.parquet, the first that is there.
        min_count: occurrences a value needs for an id of its own, for all fields or by the name of
            the field; by default 4.
        vocabulary: gives the ids, in place of a new one; unknown values get the id of rare ones.
        progress: show bars.

    Raises:
        FileNotFoundError: nothing of that kind is there.
        ValueError: a column is missing or a cell cannot be read (the message names file, line and
            column), the vocabulary is of other data, or the ids do not fit into memory.
        ImportError: without the package that reads the files.

    Deterministic: yes.
    """
    return load_log(AVAZU, place, min_count, vocabulary, progress=progress)


def encode_avazu(
    place: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    min_count: int | Mapping[str, int] | None = None,
    vocabulary: Vocabulary | None = None,
    progress: bool = True,
) -> ClickData:
    """The rows as an encoded folder of 92 bytes a row, and ClickData that is mapped from it.

    For files larger than memory. Memory and errors are those of `encode_log`; arguments as in
    `load_avazu`, and folder, the folder to make.
    """
    return encode_log(AVAZU, place, folder, min_count, vocabulary, progress=progress)


def avazu_vocabulary(
    place: str | os.PathLike[str],
    *,
    min_count: int | Mapping[str, int] | None = None,
    progress: bool = True,
) -> Vocabulary:
    """The values of a file that occur often enough; arguments as in `load_avazu`."""
    return count_values(AVAZU, place, min_count, progress=progress)
