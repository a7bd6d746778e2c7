"""The finished cases of a run, on the disk as each comes, and how long the others will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from varemb.files import load_json, save_json

Json = dict[str, Any]
# What the machine happened to do when a run began; all else has to be the same to go on with it.
VARYING = ("load", "copy_gb_per_s")


class Records:
    """Cases measured so far.

    Attributes:
        environment: device, versions, commit and settings.
        cases: a record for each finished case, with its "key", "op" and "seconds".

    Raises:
        ValueError: the file to go on with has another environment.
    """

    def __init__(self, path: Path | None, environment: Json, *, resume: bool = False) -> None:
        self._path, self.environment = path, environment
        self.cases: list[Json] = []
        if resume and path is not None and path.exists():
            found = load_json(path)
            refuse_other(path, found["environment"], environment)
            self.environment, self.cases = found["environment"], found["cases"]

    def has(self, key: str) -> bool:
        """Whether the case of that key is finished."""
        return any(record["key"] == key for record in self.cases)

    def append(self, record: Json) -> None:
        """Keeps a finished case, on the disk before the next one begins."""
        self.cases.append(record)
        if self._path is not None:
            save_json(self._path, {"environment": self.environment, "cases": self.cases})


def refuse_other(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Lets nobody go on with numbers of another machine, commit or setting.

    Raises:
        ValueError: says what differs.
    """
    changed = [
        name
        for name in dict.fromkeys([*wanted, *found])
        if name not in VARYING and found.get(name) != wanted.get(name)
    ]
    if changed:
        raise ValueError(f"--resume: {path.name} has another {', '.join(changed)}")


def seconds_left(finished: Sequence[Json], waiting: Sequence[str]) -> float | None:
    """About how long the waiting operations take, by those that are finished; None before any."""
    if not finished:
        return None
    seconds: dict[str, list[float]] = {}
    for record in finished:
        seconds.setdefault(record["op"], []).append(record["seconds"])
    unknown = mean(record["seconds"] for record in finished)
    return sum(mean(seconds[op]) if op in seconds else unknown for op in waiting)
