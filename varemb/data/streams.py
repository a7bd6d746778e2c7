"""Streams of events from files: MovieLens, Amazon Grocery, Yelp, any Parquet or text with columns.

    name             files                        events                       order of time
    ml-1m            ratings.parquet, .dat        ratings 1 to 5               .dat alone has times
    ml-100k          ratings.parquet, u.data      ratings 1 to 5               to the second
    amazon-grocery   train_interactions.parquet   implicit                     whole days
    yelp-sequences   interactions.parquet         implicit                     within a user alone

In order of time events of the same time stay in the file's order. The sequences of Yelp's users
have positions but no clock: in order of time come all users' first events, then all second ones,
each in the file's order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from varemb.data.columns import NUMBERS, Kind, Layout, column_names, find_file, read_columns
from varemb.data.events import (
    ID_MUST_BE,
    TIME_MUST_BE,
    Column,
    EventStream,
    live_batches,
    to_ids,
    to_ratings,
    to_times,
)
from varemb.data.keys import CellError
from varemb.data.text import PACKED

if TYPE_CHECKING:
    import pyarrow

ORDERS = ("time", "shuffle", "file")


@dataclass(frozen=True)
class EventColumns:
    """Which columns of a file are an event.

    Attributes:
        user: column of the user's raw id.
        item: column of the item's raw id.
        rating: column of the rating; None where feedback is implicit.
        time: column of the time: whole numbers, or in Parquet dates; None where there is none.
        lowest: smallest rating that may come.
        highest: largest rating that may come.
        delimiter: between the cells of a text file: a letter or the same twice; \\t is a tab, and
            None a tab for .tsv, a comma elsewhere.
        header: a text file's first line names its columns; without it they are user, item, rating
            and time, those that there are.
    """

    user: str = "user"
    item: str = "item"
    rating: str | None = None
    time: str | None = None
    lowest: float = 0.5
    highest: float = 5.0
    delimiter: str | None = None
    header: bool = True


_MOVIELENS = EventColumns("user_id", "movie_id", "rating", "timestamp", 1.0, 5.0, header=False)
_STREAMS = {
    "ml-1m": (("ratings.parquet", "ratings.dat"), replace(_MOVIELENS, delimiter="::")),
    "ml-100k": (("ratings.parquet", "u.data"), replace(_MOVIELENS, delimiter="\t")),
    "amazon-grocery": (("train_interactions.parquet",), EventColumns(time="timestamp")),
    "yelp-sequences": (("interactions.parquet",), EventColumns(time="position")),
}
STREAMS = tuple(_STREAMS)


def load_stream(
    name: str, data_dir: str | os.PathLike[str], order: str = "time", seed: int = 0
) -> EventStream:
    """All events of a data set that is known by name.

    Args:
        name: ml-1m, ml-100k, amazon-grocery or yelp-sequences.
        data_dir: its folder, or the folder that this one lies in.
        order: "time"; "shuffle", at random by the seed; or "file".
        seed: of the shuffle.

    Raises:
        FileNotFoundError: the folder or the file in it is missing.
        ValueError: the data has no times but order is "time", or the file is damaged; the message
            names file, row and column.
        ImportError: without the package that reads the files.

    Deterministic: yes, from the seed.
    """
    if name not in _STREAMS:
        raise ValueError(f"load_stream: no stream {name!r}, there are {', '.join(STREAMS)}")
    files, columns = _STREAMS[name]
    path = find_file(name, data_dir, files)
    if columns.time not in column_names(_layout(path, columns, name), path):
        columns = replace(columns, time=None)
    return load_stream_file(path, columns, order, seed, name=name)


def load_stream_file(
    path: str | os.PathLike[str],
    columns: EventColumns,
    order: str = "time",
    seed: int = 0,
    *,
    name: str | None = None,
) -> EventStream:
    """All events of a Parquet or text file; order, seed and errors as `load_stream`.

    Args:
        path: the file; Parquet ends in .parquet, packed text in .gz, .bz2, .lz4 or .zst.
        columns: which columns are an event.
        order: "time", "shuffle" or "file".
        seed: of the shuffle.
        name: of the stream; by default the file's.
    """
    path = Path(path)
    name = name or path.name
    if order not in ORDERS:
        raise ValueError(f"{name}: order must be one of {', '.join(ORDERS)}, got {order!r}")
    if order == "time" and columns.time is None:
        raise ValueError(
            f"{name}: {path.name} has no times to order by; choose order shuffle or file"
        )
    batches = list(_read(path, columns, name, has_times=order == "time"))
    stored = {each: np.concatenate([batch[each] for batch in batches]) for each in batches[0]}
    if order == "file":
        return EventStream(**stored, name=name)
    if order == "time":
        chosen = np.argsort(stored["times"], kind="stable")
    else:
        chosen = np.random.default_rng(seed).permutation(len(stored["users"]))
    return EventStream(**{each: values[chosen] for each, values in stored.items()}, name=name)


def read_events(
    path: str | os.PathLike[str],
    columns: EventColumns,
    size: int | None = None,
    *,
    order: Literal["time", "file"] = "file",
) -> Iterator[EventStream]:
    """The events of a file of any size as they stand in it, a batch at a time.

    Args:
        path: the file; Parquet ends in .parquet, packed text in .gz, .bz2, .lz4 or .zst.
        columns: which columns are an event.
        size: events of a batch; None takes batches as they are read.
        order: "time" demands that the file is in order of time; "file" takes what comes.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a column is missing or a cell cannot be read; the message names file, row and
            column. Or times fall; the message names the event. What came before is delivered.
        ImportError: without the package that reads the files.
    """
    path = Path(path)
    stored = _read(path, columns, path.name, has_times=order == "time" and bool(columns.time))
    return live_batches(stored, size, order=order, name=path.name)


def _read(
    path: Path, columns: EventColumns, name: str, *, has_times: bool
) -> Iterator[dict[str, Column]]:
    layout = _layout(path, columns, name)
    if layout.header and not has_times and columns.time is not None:
        kinds = {each: kind for each, kind in layout.kinds.items() if each != columns.time}
        layout = replace(layout, kinds=kinds)
    for values in read_columns(layout, path):
        batch = {"users": values[columns.user], "items": values[columns.item]}
        if columns.rating is None:
            batch["ratings"] = np.ones(len(batch["users"]), np.float32)
        else:
            batch["ratings"] = values[columns.rating]
        if has_times and columns.time is not None:
            batch["times"] = values[columns.time]
        yield batch


def _layout(path: Path, columns: EventColumns, name: str) -> Layout:
    kinds = {columns.user: _ID, columns.item: _ID}
    if columns.rating is not None:
        kinds[columns.rating] = _rating(columns.lowest, columns.highest)
    if columns.time is not None:
        kinds[columns.time] = _TIME
    named = [columns.user, columns.item, columns.rating, columns.time]
    if len(kinds) < 4 - named.count(None):
        raise ValueError(f"{name}: user, item, rating and time must be different columns: {named}")
    delimiter = _delimiter(path, columns.delimiter, name)
    has_header = columns.header or path.suffix == ".parquet"
    return Layout(name, kinds, delimiter, has_header, is_quoted=len(delimiter) == 1)


def _delimiter(path: Path, given: str | None, name: str) -> str:
    if given is None:
        plain = path.with_suffix("") if path.suffix in PACKED else path
        return "\t" if plain.suffix == ".tsv" else ","
    delimiter = given.replace("\\t", "\t")  # as a shell hands '\t' on
    is_one = len(delimiter) in (1, 2) and len(set(delimiter)) == 1
    if not is_one or not delimiter.isascii() or delimiter[0] in '"\r\n\0':
        raise ValueError(
            f"{name}: the delimiter must be one letter, such as , or \\t, or the same one twice, "
            f"got {given!r}"
        )
    return delimiter


def _converter(
    convert: Callable[[Column], Column], must_be: str
) -> Callable[[pyarrow.Array], Column]:
    def convert_full(array: pyarrow.Array) -> Column:
        if array.null_count:
            index = array.is_null().to_numpy(zero_copy_only=False).argmax()
            raise CellError(int(index), f"must be {must_be}, got nothing")
        return convert(array.to_numpy(zero_copy_only=False))

    return convert_full


def _is_id(cell: bytes) -> bool:
    return re.fullmatch(rb"\d{1,19}", cell) is not None and int(cell) < 2**63


def _is_time(cell: bytes) -> bool:
    return re.fullmatch(rb"-?\d{1,19}", cell) is not None and -(2**63) <= int(cell) < 2**63


def _rating(lowest: float, highest: float) -> Kind:
    must_be = f"a number from {lowest:g} to {highest:g}"

    def is_rating(cell: bytes) -> bool:
        try:
            return lowest <= float(cell) <= highest
        except ValueError:
            return False

    convert = _converter(partial(to_ratings, lowest=lowest, highest=highest), must_be)
    return Kind("float64", must_be, is_rating, convert, NUMBERS)


_ID = Kind("int64", ID_MUST_BE, _is_id, _converter(to_ids, ID_MUST_BE), r"u?int")
_TIME = Kind(
    "int64", TIME_MUST_BE, _is_time, _converter(to_times, TIME_MUST_BE), r"u?int|timestamp|date"
)
