"""Segments of a stream in time: where they are cut, what each trains on, what it is tested on.

A segment ends when more than a threshold of new users and items have appeared in it. Its frame is a
sample of earlier interactions (the reservoir, 0.2 of the segment's length) followed by its own
events; the first 80 % are the train part, the rest is tested on (Y. Qu et al., CIKM 2024).

DIFFERS: the reservoir is a uniform sample of all earlier interactions of the segment's users, which
    is what reservoir sampling gives; the past is kept anyway, for the graph. Only users of the
    train part count: which users come in the test part is not known yet.
DIFFERS: ids that come first in the test part get no row before the next segment, as nothing is
    known of them when they are predicted; such events are not tested.
DIFFERS: training stops early by the last 10 % of the train part, which is then not trained on; the
    paper's code takes the test part (`early_stop="test"`). Items of these 10 % are asked for in
    the test part no more than those trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from varemb.budget import Ints
from varemb.id_map import IdMap
from varemb.search.base import Events
from varemb.search.settings import option
from varemb.search.stream_events import check_ids

_LEAST_TAIL = 0.5  # of the mean segment: a shorter rest joins the segment before it


@dataclass(frozen=True)
class FrameConfig:
    """How a segment's events are used."""

    reservoir: float = option(0.2, "earlier interactions replayed, as a share of the segment")
    train_share: float = option(0.8, "first part of a segment and its reservoir that is trained on")
    valid_share: float = option(0.1, "last part of the train part, by which training stops early")
    early_stop: str = option("valid", "valid, or test as in the paper's code, which is a leak")


@dataclass(frozen=True)
class Part:
    """Interactions in their order, by user and item numbers. Each [R], int64."""

    users: Ints
    items: Ints

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, chosen: Any) -> Part:
        return Part(self.users[chosen], self.items[chosen])

    def __add__(self, other: Part) -> Part:
        return Part(
            np.concatenate([self.users, other.users]), np.concatenate([self.items, other.items])
        )


def no_events() -> Part:
    """No interactions."""
    return Part(np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(frozen=True)
class Frame:
    """What one segment trains and tests on.

    Attributes:
        fit: pairs to train on.
        valid: pairs to stop early by; empty when the test part is taken.
        test: pairs to predict, of known users and items.
        known: all interactions before `valid`: the graph, and the items that users have seen.
        user_counts, item_counts: how often each id is in the train part. [U], [V]
        unknown: events of the test part whose user or item is not known yet.
    """

    fit: Part
    valid: Part
    test: Part
    known: Part
    user_counts: Ints
    item_counts: Ints
    unknown: int


def count_new(users: Ints, items: Ints) -> Ints:
    """How many ids of each event appear for the first time: 0, 1 or 2. [R]

    Example:
        >>> count_new(np.array([5, 5, 6]), np.array([1, 2, 1]))
        array([2, 1, 1])
    """
    new = np.zeros(len(users), np.int64)
    for ids in (users, items):
        new[np.unique(ids, return_index=True)[1]] += 1
    return new


def cut_segments(users: Ints, items: Ints, threshold: int) -> list[int]:
    """Where segments end: after the event with which more than `threshold` new ids have appeared.

    Events after the last cut are a segment of their own when they are at least half as many as the
    other segments have on average; otherwise they belong to the last one.

    Args:
        users, items: raw ids, in the order of time. [R]
        threshold: new users and items of a segment.

    Returns:
        The number of events before each cut; the last is R.

    Raises:
        ValueError: fewer than two segments.

    Example:
        >>> cut_segments(np.arange(7), np.zeros(7, np.int64), 2)
        [2, 5, 7]
    """
    cuts, appeared = [], 0
    for event, new in enumerate(count_new(users, items).tolist(), 1):
        appeared += new
        if appeared > threshold:
            cuts.append(event)
            appeared = 0
    events = len(users)
    rest = events - cuts[-1] if cuts else events
    if cuts and rest and rest < _LEAST_TAIL * cuts[-1] / len(cuts):
        cuts.pop()
        rest = 1
    if rest:
        cuts.append(events)
    if len(cuts) < 2:
        found = len(np.unique(users)) + len(np.unique(items))
        raise ValueError(
            f"segments: the stream must have at least two segments; {events:,} events bring "
            f"{found:,} users and items, and the threshold is {threshold:,} new ones a segment"
        )
    return cuts


def check_order(name: str, events: Events) -> tuple[Ints, Ints]:
    """Raw users and items of events that are in the order of time.

    Raises:
        ValueError: a time falls, ids are out of range, or lengths differ; the message names the
            first such event.
    """
    users, items = check_ids(name, "user", events.users), check_ids(name, "item", events.items)
    lengths = [len(users), len(items)]
    lengths += [] if events.times is None else [len(events.times)]
    if len(set(lengths)) != 1:
        raise ValueError(f"{name}: users, items and times must be equally long, got {lengths}")
    if events.times is not None:
        falls = np.flatnonzero(np.diff(events.times) < 0)
        if len(falls):
            at = int(falls[0]) + 1
            raise ValueError(
                f"{name}: events must be in the order of time, got {int(events.times[at])} after "
                f"{int(events.times[at - 1])} at event {at}"
            )
    return users, items


def sample_reservoir(past: Part, users: Ints, size: int, generator: torch.Generator) -> Part:
    """Earlier interactions of some users, all alike, in their order; all of them if they are few.

    Args:
        past: interactions to draw from.
        users: whose interactions are drawn.
        size: interactions to draw.
        generator: all randomness.
    """
    places = np.flatnonzero(np.isin(past.users, users))
    if len(places) > size:
        drawn = torch.randperm(len(places), generator=generator)[:size].numpy()
        places = np.sort(places[drawn])
    return past[places]


def split_events(reservoir: int, events: int, train_share: float) -> int:
    """How many of a segment's events, after its reservoir, belong to the train part.

    Example:
        >>> split_events(20, 100, 0.8)  # the first 80 % of 120
        76
    """
    return max(int(train_share * (reservoir + events)) - reservoir, 1)


class Past:
    """Ids and interactions of a stream so far; it turns raw segments into frames.

    Attributes:
        users, items: raw id -> number, in the order of first appearance.
        events: all interactions before the segment in hand, and its train part.
    """

    def __init__(self) -> None:
        self.users, self.items = IdMap(), IdMap()
        self.events = no_events()
        self._untold = no_events()  # raw ids of the last test part

    def open_segment(
        self,
        users: Ints,
        items: Ints,
        config: FrameConfig,
        generator: torch.Generator,
        most_rows: int | None = None,
    ) -> Frame:
        """The frame of the next segment; its test part is added to the past by the next call.

        Args:
            users, items: raw ids of the segment's events, in order. [R]
            config: how they are used.
            generator: draws the reservoir.
            most_rows: users and items that there may be with the train part.

        Raises:
            ValueError: there would be more; nothing of the segment has been learnt.
        """
        self._learn(self._untold)
        self._untold = no_events()  # learnt, should this segment be refused
        past, wanted = self.events, int(config.reservoir * len(users))
        # At least so many events are in the train part; their users may be asked for.
        surely = users[: split_events(wanted, len(users), config.train_share)]
        replayed = sample_reservoir(past, self.users.rows(surely, grow=False), wanted, generator)
        split = split_events(len(replayed), len(users), config.train_share)
        self._check_rows(users[:split], items[:split], most_rows)
        new = self._learn(Part(users[:split], items[:split]))
        self._untold = Part(users[split:], items[split:])
        train = replayed + new
        held = 0 if config.early_stop == "test" else int(config.valid_share * len(train))
        held = min(held, len(new) - 1)
        known = past + new[: len(new) - held]
        test = Part(
            self.users.rows(self._untold.users, grow=False),
            self.items.rows(self._untold.items, grow=False),
        )
        kept = self._is_known(test, known)
        valid = new[len(new) - held :]
        return Frame(
            fit=train[: len(train) - held],
            valid=valid[self._is_known(valid, known)],
            test=test[kept],
            known=known,
            user_counts=np.bincount(train.users, minlength=len(self.users)),
            item_counts=np.bincount(train.items, minlength=len(self.items)),
            unknown=int((~kept).sum()),
        )

    def _check_rows(self, users: Ints, items: Ints, most_rows: int | None) -> None:
        if most_rows is None:
            return
        rows = len(self.users) + len(self.items)
        for ids, those in ((self.users, users), (self.items, items)):
            rows += len(np.unique(those[ids.rows(those, grow=False) < 0]))
        if rows > most_rows:
            raise ValueError(
                f"segments: the budget must be at least a number per row; with this segment there "
                f"are {rows:,} users and items, and the budget is {most_rows:,} numbers"
            )

    def _learn(self, raw: Part) -> Part:
        """Adds interactions to the past; their numbers."""
        new = Part(self.users.rows(raw.users, grow=True), self.items.rows(raw.items, grow=True))
        self.events = self.events + new
        return new

    def _is_known(self, part: Part, known: Part) -> Any:  # [R] bool
        """Whether user and item of each event have interactions among the known ones."""
        is_known = np.ones(len(part), bool)
        sides = ((part.users, known.users, self.users), (part.items, known.items, self.items))
        for numbers, those, ids in sides:
            seen = np.zeros(len(ids) + 1, bool)  # -1 is the last one
            seen[those] = True
            is_known &= seen[numbers]
        return is_known

    def state(self) -> dict[str, Any]:
        """Everything that `load_state` continues from."""
        return {
            "ids": [torch.from_numpy(each.ids()) for each in (self.users, self.items)],
            "events": part_state(self.events),
            "untold": part_state(self._untold),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state."""
        self.users, self.items = (IdMap.from_ids(ids) for ids in state["ids"])
        self.events, self._untold = (part_from(state[name]) for name in ("events", "untold"))


def part_state(part: Part) -> torch.Tensor:
    """Both columns. [2, R]"""
    return torch.from_numpy(np.stack([part.users, part.items]))


def part_from(columns: torch.Tensor) -> Part:
    """What `part_state` was made of."""
    return Part(*columns.numpy())


def frame_state(frame: Frame) -> dict[str, Any]:
    """A frame as tensors, for a checkpoint."""
    parts = {name: part_state(getattr(frame, name)) for name in ("fit", "valid", "test", "known")}
    counts = [torch.from_numpy(each) for each in (frame.user_counts, frame.item_counts)]
    return {**parts, "counts": counts, "unknown": frame.unknown}


def frame_from(state: Mapping[str, Any]) -> Frame:
    """What `frame_state` was made of."""
    users, items = (each.numpy() for each in state["counts"])
    return Frame(
        fit=part_from(state["fit"]),
        valid=part_from(state["valid"]),
        test=part_from(state["test"]),
        known=part_from(state["known"]),
        user_counts=users,
        item_counts=items,
        unknown=state["unknown"],
    )
