"""Run folders: what a search or a training leaves behind, and the rules for coming back to one.

options.json        the options the run was started with
plan.safetensors    dims per table
metrics.json        the result, written last: a folder that has it is finished
history.jsonl       one line per epoch
checkpoint/         state to continue from

Only one process works in a folder at a time: it has the folder locked.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varemb.files import load_json, load_jsonl, save_json
from varemb.files.locks import lock_folder
from varemb.plan import SizePlan

OPTIONS = "options.json"
PLAN = "plan.safetensors"
METRICS = "metrics.json"
HISTORY = "history.jsonl"
CHECKPOINT = "checkpoint"

_FIELDS = (
    "method",
    "data",
    "model",
    "seed",
    "metrics",
    "params",
    "params_full",
    "bytes",
    "seconds",
)


@dataclass(frozen=True)
class Run:
    """A finished run, read back."""

    folder: Path
    plan: SizePlan
    metrics: dict[str, Any]  # metrics.json
    history: list[dict[str, Any]]  # one record per epoch

    @property
    def results(self) -> list[dict[str, Any]]:
        """The run's own result, then those it was compared with; fields as in metrics.json."""
        return [self.metrics, *self.metrics.get("compared", [])]


@contextlib.contextmanager
def open_run(folder: Path | None, options: Mapping[str, Any], *, resume: bool) -> Iterator[bool]:
    """Makes a run folder, or finds the one to continue, for the time of a with block.

    The folder is locked as long. A block that fails before anything was kept leaves no folder
    behind that it made.

    Args:
        folder: where the run lives; made when it does not exist. None keeps nothing.
        options: what decides the result of the run: option of the command line -> value.
        resume: continue the run that is there.

    Returns:
        A context whose value says whether the run in the folder is already finished.

    Raises:
        ValueError: there is a run and `resume` is false, the run was started with other options,
            another process works in the folder, or it holds something else. Nothing is changed.
    """
    if folder is None:
        yield False
    elif (folder / METRICS).exists():  # nothing in there changes any more
        _check_run(folder, options, resume=resume)
        yield True
    else:
        with _working_in(folder) as is_made:
            is_new = _is_new(folder)
            try:
                if is_new:
                    _start(folder, options)
                else:
                    _check_run(folder, options, resume=resume)
                    (folder / CHECKPOINT).mkdir(exist_ok=True)
                yield (folder / METRICS).exists()  # it may have been finished a moment ago
            except BaseException:
                if is_new:
                    _undo(folder, is_made=is_made)
                raise


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[bool]:
    """Locks a folder, made if it is not there; the value says whether it was made here."""
    is_made = not folder.exists()
    if is_made:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # by somebody else, since
            is_made = False
    if not folder.is_dir():
        raise ValueError(f"{folder} holds no run of varemb; choose another --out")
    lock = lock_folder(folder)
    if lock is None:
        raise ValueError(
            f"another process works in {folder}; wait until it is done, or choose another --out"
        )
    try:
        yield is_made
    finally:
        os.close(lock)


def _is_new(folder: Path) -> bool:
    """Whether a folder is empty, but for what a kill in the beginning of a run leaves there."""
    return all(
        path.is_dir()
        and (
            path.match(f".{OPTIONS}.*.tmp")  # of its save
            or (path.name == CHECKPOINT and not any(path.iterdir()))
        )
        for path in folder.iterdir()
    )


def _start(folder: Path, options: Mapping[str, Any]) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path)
    save_json(folder / OPTIONS, options)
    (folder / CHECKPOINT).mkdir()


def _undo(folder: Path, *, is_made: bool) -> None:
    """Removes a run of which nothing was kept."""
    kept = [path for path in folder.rglob("*") if path.is_file() and path != folder / OPTIONS]
    if kept:
        return
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    with contextlib.suppress(OSError):
        (folder / OPTIONS).unlink(missing_ok=True)
        if is_made:
            folder.rmdir()


def _check_run(folder: Path, options: Mapping[str, Any], *, resume: bool) -> None:
    """Raises ValueError unless a folder holds a run that goes on with these options."""
    if not (folder / OPTIONS).exists():
        raise ValueError(f"{folder} holds no run of varemb; choose another --out")
    if not resume:
        kind = "a finished" if (folder / METRICS).exists() else "an unfinished"
        raise ValueError(
            f"{folder} holds {kind} run; add --resume to continue it, or choose another --out"
        )
    _check_same(folder, json.loads(json.dumps(options)))  # as they are stored: tuples are lists


def _check_same(folder: Path, options: Mapping[str, Any]) -> None:
    stored = load_json(folder / OPTIONS)
    if not isinstance(stored, dict):
        raise ValueError(f"{folder / OPTIONS} must hold the options of a run, got {stored!r}")
    for name in [*stored, *options]:
        if stored.get(name) != options.get(name):
            raise ValueError(
                f"{folder} was started with {name} {stored.get(name)}, got {options.get(name)}; "
                f"give the same, or choose another --out"
            )


def load_run(folder: Path) -> Run:
    """A finished run.

    Raises:
        FileNotFoundError: the folder is missing, or holds no finished run.
        ValueError: a file in it is damaged; the message names it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder of a run")
    if not (folder / METRICS).exists():
        kind = (
            "an unfinished run: continue it with --resume"
            if (folder / OPTIONS).exists()
            else "no run"
        )
        raise FileNotFoundError(f"{folder} has no {METRICS}; it holds {kind}")
    metrics = load_json(folder / METRICS)
    results = [metrics, *metrics.get("compared", [])] if isinstance(metrics, dict) else [{}]
    for result in results:
        missing = [name for name in _FIELDS if name not in result]
        if missing:
            raise ValueError(f"{folder / METRICS} lacks {', '.join(missing)}")
    if not (folder / PLAN).exists():
        raise FileNotFoundError(
            f"{folder} has no {PLAN}: what {metrics['method']} stores is no plan of dims; "
            "comparison.md of `varemb compare` shows it beside other methods"
        )
    history = load_jsonl(folder / HISTORY) if (folder / HISTORY).exists() else []
    return Run(folder, SizePlan.load(folder / PLAN), metrics, history)
