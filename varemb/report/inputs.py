"""Runs that a report is made of: each given once, of a kind that it draws, their values checked.

The tables and panels take the types of metrics.json and history.jsonl for granted; a file that was
damaged, or written by something else, is refused here by the name of the value.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from varemb.files import load_json
from varemb.report.stream_table import QUALITY, quality_names
from varemb.runs import HISTORY, METRICS, Run, load_run

Check = Callable[[str, Any], None]  # a value's name and the value; raises ValueError


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Finished runs, for `write_report`.

    Args:
        folders: of the runs, each once.

    Raises:
        FileNotFoundError: a folder is missing, or holds no finished run.
        ValueError: a folder is given twice or is one of `varemb compare`, or a file in it is
            damaged; the message names it.
    """
    known: dict[Path, Path] = {}
    for folder in folders:
        place = folder.resolve()
        if place in known:
            raise ValueError(
                f"report: a run must be given once, got {known[place]} and {folder}, "
                "which are one folder"
            )
        known[place] = folder
    return [_load(folder) for folder in folders]


def _load(folder: Path) -> Run:
    path = folder / METRICS
    if path.exists():
        stored = load_json(path)
        if isinstance(stored, dict):
            if "levels" in stored:
                _refuse_comparison(folder, folder.resolve().parent)
            _name(path, _RUN, "", stored)
    elif (folder / "comparison.json").exists():
        _refuse_comparison(folder, folder)
    run = load_run(folder)
    is_stream = "tables" in run.metrics
    for number, result in enumerate(run.results):
        name = f"compared[{number - 1}]" if number else ""
        _name(path, _check_stream if is_stream else _CLICKS, name, result)
    is_segments = any("segment" in record for record in run.history)
    check = (_SEGMENT if is_segments else _WINDOW) if is_stream else _check_epoch
    for number, record in enumerate(run.history, 1):
        _name(f"{folder / HISTORY}, line {number}", check, "", record)
    return run


def _refuse_comparison(folder: Path, place: Path) -> None:
    raise ValueError(
        f"report: {folder} is of `varemb compare`, whose tables are comparison.md, .json and .png "
        f"in {place}"
    )


def _name(path: Path | str, check: Check, name: str, value: Any) -> None:
    try:
        check(name, value)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _kind(what: str, is_right: Callable[[Any], bool]) -> Check:
    def check(name: str, value: Any) -> None:
        if not is_right(value):
            raise ValueError(f"{name or 'it'} must be {what}, got {reprlib.repr(value)}")

    return check


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TEXT = _kind("text", lambda value: isinstance(value, str))
_NUMBER = _kind("a number", _is_number)
_FINITE = _kind("a finite number", lambda value: _is_number(value) and math.isfinite(value))
_WHOLE = _kind("a whole number", lambda value: _is_number(value) and isinstance(value, int))
_MAYBE = _kind("a number or null", lambda value: value is None or _is_number(value))
_OBJECT = _kind("an object", lambda value: isinstance(value, dict))
_LIST = _kind("a list", lambda value: isinstance(value, list))


def _object_of(each: Check) -> Check:
    def check(name: str, value: Any) -> None:
        _OBJECT(name, value)
        for key, one in value.items():
            each(f"{name}.{key}", one)

    return check


def _list_of(each: Check) -> Check:
    def check(name: str, value: Any) -> None:
        _LIST(name, value)
        for number, one in enumerate(value):
            each(f"{name}[{number}]", one)

    return check


def _record(needed: Mapping[str, Check], others: Mapping[str, Check] | None = None) -> Check:
    """An object with these keys: the needed ones, and others that it may lack."""
    checks = {**needed, **(others or {})}

    def check(name: str, value: Any) -> None:
        _OBJECT(name, value)
        missing = [key for key in needed if key not in value]
        if missing:
            raise ValueError(f"{name or 'it'} lacks {', '.join(missing)}")
        for key in checks:
            if key in value:
                checks[key](f"{name}.{key}" if name else key, value[key])

    return check


def _rows(*whole: str, number: str | None = None) -> Check:
    """A table of a stream: rows of one side with columns of whole numbers, and one of others."""
    others = {} if number is None else {number: _NUMBER}
    return _list_of(_record({"side": _TEXT, **dict.fromkeys(whole, _WHOLE), **others}))


_ACCURACY = _rows("frequency", "events", number="accuracy")
_TABLES = {
    "quality_by_frequency": _ACCURACY,
    "quality_by_frequency_all": _ACCURACY,
    "width_by_frequency": _rows("frequency", number="mean_dim"),
    "widths": _rows("dim", "rows"),
    "case_study": _rows("id", "segment", "interactions", "dim"),
}
# What is missing of these says load_run.
_RESULT: dict[str, Check] = {
    **dict.fromkeys(("method", "data", "model", "order", "task"), _TEXT),
    **dict.fromkeys(("seed", "params", "params_full", "users", "items"), _WHOLE),
    **dict.fromkeys(("seconds", "rows_per_second"), _NUMBER),
    "metrics": _object_of(_NUMBER),
    "bytes": _object_of(_WHOLE),
    "planted": _object_of(_NUMBER),
    "tables": _record({}, _TABLES),
}
_RUN = _record({}, {**_RESULT, "compared": _list_of(_record({}, _RESULT))})
_CLICKS = _record({"metrics": _record({"auc": _FINITE, "logloss": _FINITE})})
_STREAM = _record(
    dict.fromkeys(("order", "task"), _TEXT)
    | dict.fromkeys(("users", "items"), _WHOLE)
    | {"rows_per_second": _NUMBER}
)


def _check_stream(name: str, result: Any) -> None:
    _STREAM(name, result)
    if not quality_names([result]):
        raise ValueError(
            f"{f'{name}.' if name else ''}metrics must have one of {', '.join(QUALITY)}, "
            f"got {', '.join(result['metrics']) or 'none'}"
        )


# Of the history: the lines that are drawn, and what of them is.
_EPOCH = _record({"epoch": _WHOLE, "valid": _record({"auc": _NUMBER})})
_MEASURED: dict[str, Check] = {
    **dict.fromkeys(("bytes", "mean_dim"), _NUMBER),
    **dict.fromkeys(("budget_bytes", "grown", "shrunk"), _MAYBE),
    **dict.fromkeys([*QUALITY, *(f"{name}_window" for name in QUALITY)], _MAYBE),
}
_WINDOW = _record({"events": _WHOLE}, _MEASURED)
_SEGMENT = _record({"segment": _WHOLE, "events": _WHOLE, "bytes": _NUMBER}, _MEASURED)


def _check_epoch(name: str, record: Any) -> None:
    if record.get("phase") == "train" and "valid" in record:
        _EPOCH(name, record)
