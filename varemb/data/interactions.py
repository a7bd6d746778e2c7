"""Who bought what, without ratings, and its split into three parts per user.

    name               files                                what is a purchase
    ml-1m              ratings.parquet, ratings.dat         every rating
    ml-100k            ratings.parquet, u.data              every rating
    amazon-book-kgat   interactions.parquet                 every row, both published parts
    amazon-grocery     train_interactions.parquet           every row
    yelp-sequences     interactions.parquet                 every row, repeats once

`read_edge_lists` reads the text files of LightGCN's and NGCF's authors (train.txt, test.txt), and
`read_interactions` any Parquet or text file with a column of users and one of items.

Rules: a pair that comes several times counts once. Ids may have gaps: rows are the ranks of the ids
that occur. A user's first pair is one to learn from, so that every user has one; an item may have
none, and its row is then never trained.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from varemb.data.columns import find_file
from varemb.data.streams import STREAMS, EventColumns, load_stream, load_stream_file
from varemb.data.text import open_text
from varemb.files import load_described, save_tensors

Ints = npt.NDArray[np.int64]

PARTS = ("train", "valid", "test")
INTERACTIONS = (*STREAMS, "amazon-book-kgat")
_FORMAT, _VERSION = "varemb.interactions", "1"
_LISTS = ("train.txt", "test.txt")


class Pairs(NamedTuple):
    """Rows of users and of items that belong together."""

    users: Ints  # [L]
    items: Ints  # [L]


@dataclass(frozen=True, eq=False)
class Interactions:
    """Distinct pairs of a user and an item.

    Attributes:
        pairs: sorted by user, then item. [L]
        user_ids: raw id of each user's row, ascending. [U]
        item_ids: raw id of each item's row, ascending. [V]
        name: of the data, for results and messages.
        repeats: pairs that were there before and were left out.
    """

    pairs: Pairs
    user_ids: Ints
    item_ids: Ints
    name: str = "interactions"
    repeats: int = 0

    @classmethod
    def from_ids(cls, users: Ints, items: Ints, name: str = "interactions") -> Interactions:
        """The distinct pairs of some raw ids.

        Args:
            users, items: raw ids, whole numbers from 0 to 2^63 - 1, in any order. [L] each

        Raises:
            TypeError: ids that are no whole numbers.
            ValueError: no pairs, columns of different lengths, or an id outside that range.

        Example:
            >>> bought = Interactions.from_ids(np.array([9, 4, 9, 9]), np.array([5, 5, 7, 5]))
            >>> bought.pairs.users.tolist(), bought.pairs.items.tolist(), bought.repeats
            ([0, 1, 1], [0, 0, 1], 1)
            >>> bought.user_ids.tolist(), bought.item_ids.tolist()
            ([4, 9], [5, 7])
        """
        if not len(users) == len(items) > 0:
            raise ValueError(
                f"{name}: users and items must be equally many and at least 1, "
                f"got {len(users)} and {len(items)}"
            )
        user_ids, user_rows = np.unique(_as_ids(users, f"{name}: users"), return_inverse=True)
        item_ids, item_rows = np.unique(_as_ids(items, f"{name}: items"), return_inverse=True)
        places = np.unique(user_rows * len(item_ids) + item_rows)
        pairs = Pairs(*np.divmod(places, len(item_ids)))
        return cls(pairs, user_ids, item_ids, name, len(users) - len(places))

    def __len__(self) -> int:
        return len(self.pairs.users)

    def split(self, seed: int, fractions: Sequence[float] = (0.5, 0.25, 0.25)) -> Split:
        """Every user's pairs at random in three parts.

        A user's n pairs are cut where the fractions, added up, take them, rounded half up: of 4
        pairs the default gives 2, 1 and 1. The first part has at least one.

        Args:
            seed: of the order of each user's pairs.
            fractions: of train, valid and test; positive, adding up to 1.

        Raises:
            ValueError: the fractions do not add up to 1, or a part would be empty.

        Deterministic: yes, from the seed.

        Example:
            >>> bought = Interactions.from_ids(np.repeat([3, 8], 4), np.tile(np.arange(4), 2))
            >>> [len(part.users) for part in bought.split(seed=42).parts()]
            [4, 2, 2]
        """
        if len(fractions) != 3 or min(fractions) <= 0 or not math.isclose(sum(fractions), 1):
            raise ValueError(
                f"split: fractions must be three, positive and add up to 1, got {tuple(fractions)}"
            )
        users, items = self.pairs
        keys = np.random.default_rng(seed).random(len(users))
        order = np.lexsort((keys, users))
        counts = np.bincount(users, minlength=len(self.user_ids))  # [U]
        place = np.arange(len(users)) - np.repeat(counts.cumsum() - counts, counts)
        shares = list(itertools.accumulate(fractions))
        cuts = [np.floor(counts * share + 0.5 + 1e-9).astype(np.int64) for share in shares[:2]]
        cuts[0] = np.maximum(cuts[0], 1)
        part = sum((place >= np.repeat(cut, counts)).astype(np.int8) for cut in cuts)
        chosen = [np.sort(order[part == i]) for i in range(3)]
        sizes = [len(rows) for rows in chosen]
        if 0 in sizes:
            raise ValueError(
                f"split: every part needs a pair; {len(users)} pairs of {len(self.user_ids)} users "
                f"give {sizes}"
            )
        train, valid, test = (Pairs(users[rows], items[rows]) for rows in chosen)
        return Split(train, valid, test, self.user_ids, self.item_ids, self.name, seed)


@dataclass(frozen=True, eq=False)
class Split:
    """Pairs to learn from, to choose by and to report on.

    Attributes:
        train, valid, test: rows of users and items; no pair is in two parts.
        user_ids: raw id of each user's row. [U]
        item_ids: raw id of each item's row. [V]
        name: of the data.
        seed: of the split.

    Raises:
        ValueError: a row outside its table, a pair in two parts, or a user who is to be ranked for
            without a pair to learn from; the message names the pair or user by raw ids.
    """

    train: Pairs
    valid: Pairs
    test: Pairs
    user_ids: Ints
    item_ids: Ints
    name: str = "interactions"
    seed: int = 0

    def __post_init__(self) -> None:
        for part, (users, items) in zip(PARTS, self.parts(), strict=True):
            for side, rows, count in (
                ("users", users, self.num_users), ("items", items, self.num_items)
            ):  # fmt: skip
                if len(users) != len(items) or not len(rows):
                    raise ValueError(f"Split: {part} needs as many users as items, at least 1")
                if not 0 <= int(rows.min()) <= int(rows.max()) < count:
                    raise ValueError(
                        f"Split: {side} of {part} must be in [0, {count}), got {int(rows.min())} "
                        f"to {int(rows.max())}"
                    )
        places = np.concatenate([users * self.num_items + items for users, items in self.parts()])
        places.sort()
        twice = places[1:][places[1:] == places[:-1]]
        if len(twice):
            user, item = divmod(int(twice[0]), self.num_items)
            raise ValueError(
                f"Split: a pair must stand in one part once, user {self.user_ids[user]} and item "
                f"{self.item_ids[item]} stand twice"
            )
        is_trained = np.bincount(self.train.users, minlength=self.num_users) > 0
        held = np.concatenate([self.valid.users, self.test.users])
        lost = held[~is_trained[held]]
        if len(lost):
            raise ValueError(
                f"Split: user {self.user_ids[lost[0]]} has pairs in valid or test but none in "
                "train; drop such users or learn from one of their pairs"
            )

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    def parts(self) -> tuple[Pairs, Pairs, Pairs]:
        """train, valid and test."""
        return self.train, self.valid, self.test

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the split as one safetensors file, atomically."""
        tensors = {"user_ids": self.user_ids, "item_ids": self.item_ids}
        for part, (users, items) in zip(PARTS, self.parts(), strict=True):
            tensors |= {f"{part}.users": users, f"{part}.items": items}
        metadata = {"format": _FORMAT, "version": _VERSION}
        metadata["notes"] = json.dumps({"name": self.name, "seed": self.seed})
        save_tensors(
            path, {name: torch.from_numpy(rows) for name, rows in tensors.items()}, metadata
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Split:
        """The split that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or no split; the message names it.
        """
        tensors, metadata = load_described(path, _FORMAT, _VERSION)
        try:
            notes = json.loads(metadata["notes"])
            rows = {name: tensor.numpy() for name, tensor in tensors.items()}
            parts = [Pairs(rows[f"{part}.users"], rows[f"{part}.items"]) for part in PARTS]
            train, valid, test = parts
            ids = rows["user_ids"], rows["item_ids"]
            return cls(train, valid, test, *ids, str(notes["name"]), int(notes["seed"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"load: {os.fspath(path)} is no valid split: {error}") from None


def _as_ids(ids: npt.ArrayLike, name: str) -> Ints:
    """Raw ids as int64, checked. [L]"""
    array = np.asarray(ids)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be whole numbers, got {array.dtype}")
    bad = (array < 0) | (array > np.iinfo(np.int64).max)
    if bad.any():
        place = int(bad.argmax())
        raise ValueError(
            f"{name} must be from 0 to 2^63 - 1, got {array[place]} at position {place}"
        )
    return array.astype(np.int64, copy=False)


def load_interactions(name: str, data_dir: str | os.PathLike[str]) -> Interactions:
    """The purchases of a data set that is known by name.

    Args:
        name: one of INTERACTIONS.
        data_dir: its folder, or the folder that this one lies in.

    Raises:
        FileNotFoundError: the folder or the file in it is missing.
        ValueError: an unknown name or a damaged file; the message names file, row and column.
        ImportError: without the package that reads the files.
    """
    if name in STREAMS:
        events: Any = load_stream(name, data_dir, "file")
        return Interactions.from_ids(events.users, events.items, name)
    if name != "amazon-book-kgat":
        raise ValueError(
            f"load_interactions: no data {name!r}, there are {', '.join(INTERACTIONS)}"
        )
    path = find_file(name, data_dir, ("interactions.parquet",))
    return read_interactions(path, "user", "item", name=name)


def read_interactions(
    path: str | os.PathLike[str], user: str, item: str, *, name: str | None = None
) -> Interactions:
    """The purchases of a Parquet or text file with a column of users and one of items.

    Args:
        path: the file; Parquet ends in .parquet, a text file's first line names its columns.
        user, item: the columns of raw ids, whole numbers from 0 to 2^63 - 1.
        name: of the data; by default the file's.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a column is missing or a cell cannot be read; the message names it.
        ImportError: without the package that reads the files.
    """
    events = load_stream_file(path, EventColumns(user, item), "file", name=name)
    return Interactions.from_ids(events.users, events.items, events.name)


def read_edge_lists(
    folder: str | os.PathLike[str], *, name: str | None = None, files: Sequence[str] = _LISTS
) -> Interactions:
    """The purchases of text files whose lines hold a user and then the user's items.

    Args:
        folder: holds the files; a line without items is a user without purchases, left out.
        name: of the data; by default the folder's.
        files: those to read, packed as their names say or not; their pairs are put together.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: something else than whole numbers from 0 to 2^63 - 1; file and line are named.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "train.txt").write_text("0 5 7\\n1\\n")
        ...     _ = Path(folder, "test.txt").write_text("0 6\\n")
        ...     read_edge_lists(folder).item_ids.tolist()
        [5, 6, 7]
    """
    place = Path(folder)
    users: list[Ints] = []
    items: list[Ints] = []
    for file in files:
        path = place / file
        if not path.is_file():
            raise FileNotFoundError(f"read_edge_lists: {path} is missing")
        with open_text(path, "read_edge_lists") as opened:
            lines = opened.read().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                if not re.fullmatch(rb"[\d\s]*", line):  # int() takes +6 and 1_000 too
                    raise ValueError("no digits")
                row = np.array(line.split(), np.int64)
            except (ValueError, OverflowError):
                text = line[:60].decode("utf-8", "backslashreplace")
                raise ValueError(
                    f"read_edge_lists: {path}, line {number}: must hold whole numbers from 0 to "
                    f"2^63 - 1, got {text!r}"
                ) from None
            users.append(np.repeat(row[:1], max(len(row) - 1, 0)))
            items.append(row[1:])
    none = np.empty(0, np.int64)
    title = name or place.resolve().name
    return Interactions.from_ids(
        np.concatenate(users or [none]), np.concatenate(items or [none]), title
    )
