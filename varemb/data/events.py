"""EventStream: who met which item, in the order in which it happened; and live batches of events.

Ids are raw: any whole numbers from 0 to 2^63 - 1, not counted or sorted before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from varemb.data.keys import CellError

Column = npt.NDArray[Any]

_MOST = np.iinfo(np.int64).max
ID_MUST_BE = "a whole number from 0 to 2^63 - 1"
TIME_MUST_BE = "a whole number"


@dataclass(frozen=True, eq=False)
class EventStream:
    """Events in order; also a batch of them.

    Attributes:
        users: raw ids. [R], int64
        items: raw ids. [R], int64
        ratings: 1 where feedback is implicit. [R], float32
        times: never falling, in any unit; None where the order is not one of time. [R], int64
        name: of the stream, for results and messages.

    Raises:
        ValueError: columns of different lengths, an id below 0 or above 2^63 - 1, a rating that is
            no number, or a time before the one above it. The message names event and column; events
            count from 0.

    Example:
        >>> stream = EventStream([7, 9, 7], [1, 1, 2], [5.0, 3.0, 4.5], [10, 10, 12])
        >>> [batch.users.tolist() for batch in stream.batches(2)]
        [[7, 9], [7]]
    """

    users: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    ratings: npt.NDArray[np.float32]
    times: npt.NDArray[np.int64] | None = None
    name: str = "stream"

    def __post_init__(self) -> None:
        columns: dict[str, Column] = {}
        for column, check in _CHECKS.items():
            values = getattr(self, column)
            if values is None:
                continue
            try:
                columns[column] = check(np.asarray(values))
            except CellError as error:
                raise ValueError(
                    f"{self.name}: event {error.index:,}, column {column}: {error.text}"
                ) from None
            object.__setattr__(self, column, columns[column])
        sizes = {column: len(values) for column, values in columns.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"{self.name}: columns must be equally long, got {sizes}")
        self._check_order()

    def _check_order(self) -> None:
        if self.times is not None and len(self.times):
            falls = self.times[1:] < self.times[:-1]
            if falls.any():
                event = int(falls.argmax()) + 1
                _refuse_order(self.name, event, self.times[event], self.times[event - 1])

    def __len__(self) -> int:
        return len(self.users)

    def batches(self, size: int) -> Iterator[EventStream]:
        """The events in order, `size` at a time; the last batch may be shorter.

        Raises:
            ValueError: size is below 1.
        """
        if size < 1:
            raise ValueError(f"{self.name}: a batch must have at least 1 event, got {size}")
        for first in range(0, len(self), size):
            yield self.part(slice(first, first + size))

    def part(self, events: slice | Column) -> EventStream:
        """Some of the events, by their numbers."""
        times = None if self.times is None else self.times[events]
        return EventStream(
            self.users[events], self.items[events], self.ratings[events], times, self.name
        )


def live_batches(
    source: Iterable[EventStream | Mapping[str, Any]],
    size: int | None = None,
    *,
    order: Literal["time", "file"] = "file",
    name: str = "stream",
) -> Iterator[EventStream]:
    """Checked batches of a source that may never end, for the `partial_fit` of a search.

    Args:
        source: batches of any sizes: EventStreams, or columns by name: users, items, and if there
            are any ratings and times.
        size: events of a batch, gathered over the source's batches; the last one may be shorter.
            None keeps the source's batches, those without events aside.
        order: "time" demands times that never fall, over all batches; "file" takes what comes.
        name: of the stream, for messages.

    Raises:
        ValueError: as EventStream, with events counted from the beginning of the source, or there
            are no times when the order is one of time. What came before has been delivered.

    Example:
        >>> source = [{"users": [1], "items": [5]}, {"users": [2, 1], "items": [5, 6]}]
        >>> [batch.users.tolist() for batch in live_batches(source, 2)]
        [[1, 2], [1]]
    """
    if order not in ("time", "file"):
        raise ValueError(f"{name}: order must be time or file, got {order!r}")
    if size is not None and size < 1:
        raise ValueError(f"{name}: a batch must have at least 1 event, got {size}")
    waiting: list[EventStream] = []
    count, last = 0, None
    for columns in source:
        batch = _take(columns, count, name, order)
        if not len(batch):
            continue
        if batch.times is not None:
            if last is not None and batch.times[0] < last:
                _refuse_order(name, count, batch.times[0], last)
            last = batch.times[-1]
        count += len(batch)
        if size is None:
            yield batch
            continue
        waiting.append(batch)
        if sum(map(len, waiting)) >= size:
            *whole, rest = _join(waiting).batches(size)
            yield from whole
            if len(rest) == size:
                yield rest
            waiting = [rest] if len(rest) < size else []
    if waiting:
        yield _join(waiting)


def _join(batches: list[EventStream]) -> EventStream:
    columns: dict[str, Column] = {
        column: np.concatenate([getattr(each, column) for each in batches])
        for column in _CHECKS
        if getattr(batches[0], column) is not None
    }
    return EventStream(**columns, name=batches[0].name)


def _take(
    columns: EventStream | Mapping[str, Any], count: int, name: str, order: str
) -> EventStream:
    if isinstance(columns, EventStream):
        found: Mapping[str, Any] = {each: getattr(columns, each) for each in _CHECKS}
    else:
        found = columns
    for column in ("users", "items", *(["times"] if order == "time" else [])):
        if found.get(column) is None:
            raise ValueError(f"{name}: event {count:,}: the column {column} is missing")
    for column in found:
        if column not in _CHECKS:
            raise ValueError(
                f"{name}: event {count:,}: unknown column {column}, there are {', '.join(_CHECKS)}"
            )
    try:
        ratings = found.get("ratings")
        if ratings is None:
            ratings = np.ones(len(found["users"]), np.float32)
        times = found["times"] if order == "time" else None
        return EventStream(found["users"], found["items"], ratings, times, name)
    except ValueError as error:
        raise ValueError(_counted_from(str(error), name, count)) from None


def _counted_from(text: str, name: str, count: int) -> str:
    """The message with its event counted from the beginning of the source."""
    start = f"{name}: event "
    if not count or not text.startswith(start):
        return text
    number, comma, rest = text.removeprefix(start).partition(", column")
    return f"{start}{int(number.replace(',', '')) + count:,}{comma}{rest}"


def _refuse_order(name: str, event: int, time: int, before: int) -> None:
    raise ValueError(
        f"{name}: event {event:,}, column times: must not be before the event above it: "
        f"{time} after {before}"
    )


def to_ids(values: Column) -> Column:
    """Raw ids as int64. [R]

    Raises:
        CellError: an id is not a whole number from 0 to 2^63 - 1.
    """
    _check_shape(values, "iu", ID_MUST_BE)
    bad = (values < 0) | (values > _MOST)
    _refuse(values, bad, ID_MUST_BE)
    return values.astype(np.int64, copy=False)


def to_ratings(values: Column, lowest: float = -np.inf, highest: float = np.inf) -> Column:
    """Ratings as float32. [R]

    Raises:
        CellError: a rating is no finite number within [lowest, highest].
    """
    is_bounded = np.isfinite(lowest) and np.isfinite(highest)
    must_be = f"a number from {lowest:g} to {highest:g}" if is_bounded else "a finite number"
    _check_shape(values, "iufb", must_be)
    with np.errstate(over="ignore"):
        ratings = values.astype(np.float32, copy=False)
    good = np.isfinite(ratings) & (values >= lowest) & (values <= highest)  # NaN is wrong too
    _refuse(values, ~good, must_be)
    return ratings


def to_times(values: Column) -> Column:
    """Times as int64, dates in their own unit. [R]

    Raises:
        CellError: a time is not a whole number or date.
    """
    _check_shape(values, "iuM", TIME_MUST_BE)
    if values.dtype.kind == "M":
        _refuse(values, np.isnat(values), "a date")
        return values.astype(np.int64)
    if values.dtype == np.uint64:
        _refuse(values, values > _MOST, "a whole number up to 2^63 - 1")
    return values.astype(np.int64, copy=False)


def _check_shape(values: Column, kinds: str, must_be: str) -> None:
    if values.ndim != 1:
        raise CellError(0, f"must be one of a column [R], got the shape {list(values.shape)}")
    if len(values) and values.dtype.kind not in kinds:
        raise CellError(0, f"must be {must_be}, got {values[0]!r}")


def _refuse(values: Column, bad: npt.NDArray[np.bool_], must_be: str) -> None:
    if bad.any():
        index = int(bad.argmax())
        raise CellError(index, f"must be {must_be}, got {values[index]}")


_CHECKS = {"users": to_ids, "items": to_ids, "ratings": to_ratings, "times": to_times}
