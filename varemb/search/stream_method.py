"""Learning from a stream: predict a batch, record that, then learn it (test-then-train).

`fit` goes through a stream whose length is known, with checkpoints; `partial_fit` takes one batch
of a live stream. A stream may end in the middle of a batch: the rest is a shorter batch.
"""

from __future__ import annotations

import abc
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from torch import nn

from varemb.memory import memory_report
from varemb.plan import SizePlan
from varemb.search.base import Checkpoint, Events, EventStream, StreamResult
from varemb.search.progress import closing, make_bar
from varemb.search.stream_events import (
    TASKS,
    StreamConfig,
    check_events,
    identify_events,
    is_correct,
)
from varemb.search.stream_learner import Learner
from varemb.search.stream_recorder import SIDES, Recorder, Scored

_COMPACTED = 20  # batches between looks at how fragmented the tables are

Config = TypeVar("Config", bound=StreamConfig)


class StreamMethod(abc.ABC, Generic[Config]):
    """A method that learns from a stream.

    Args:
        config: its settings.
    """

    name: ClassVar[str]

    def __init__(self, config: Config) -> None:
        self.config = config
        self._learner: Learner | None = None
        self._recorder = Recorder()
        self._history: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._batches_since_compaction = 0

    @abc.abstractmethod
    def _make_learner(self) -> Learner:
        """A learner that has seen nothing; checks the settings."""

    @property
    def learner(self) -> Learner:
        """The sides, tables and networks of the stream that is being learnt."""
        if self._learner is None:
            self._learner = self._make_learner()
        return self._learner

    def partial_fit(self, events: Events) -> dict[str, float]:
        """Predicts the events, then learns them as one batch.

        A batch may have any number of events. Below 8 of them normalisation uses running
        statistics; no events change nothing.

        Args:
            events: raw ids and ratings.

        Returns:
            Of this batch: events, accuracy and loss (mse or cross_entropy); of the tables after
            it: live_numbers, mean_dim_user and mean_dim_item.

        Raises:
            ValueError: ids or ratings out of range; nothing has changed.
            FloatingPointError: the loss is not finite; nothing was learnt from the labels of its
                batch, but what chooses sizes had its step, and new rows are there.
        """
        start = time.perf_counter()
        learner, loss = self.learner, TASKS[self.config.task]
        batch = check_events(self.name, events, self.config)
        size = len(batch.labels)
        if not size:
            return {"events": 0, **self._table_sizes()}
        users, items = learner.sides
        draws = learner.generator
        seen = users.enter(batch.ids[0], draws), items.enter(batch.ids[1], draws)
        learnt = learner.learn(seen, batch.labels)
        right = is_correct(learnt.logits.detach(), batch.labels).numpy()
        lost = learnt.losses.numpy()
        frequencies = np.stack([each.frequency for each in seen])
        self._recorder.add(Scored(lost, right, frequencies, learnt.dims))
        for side, each in zip(learner.sides, seen, strict=True):
            side.leave(each)
            side.check()
        self._batches_since_compaction += 1
        if self._batches_since_compaction == _COMPACTED:
            self._compact()
        self._seconds += time.perf_counter() - start
        return {
            "events": size,
            "accuracy": float(right.mean()),
            loss: float(lost.mean()),
            **self._table_sizes(),
        }

    def _compact(self) -> None:
        self._batches_since_compaction = 0
        for side in self.learner.sides:
            if side.table.fragmentation > self.config.compact_above:
                side.table.compact()

    def fit(
        self,
        stream: EventStream,
        *,
        progress: bool = True,
        checkpoint_dir: Path | None = None,
        resume: bool = False,
    ) -> StreamResult:
        """Goes once through a stream, from new weights.

        Args:
            stream: all events, in order; metrics are those of its last part.
            progress: show a bar with the quality and the sizes so far.
            checkpoint_dir: folder of a file named after the method, written every
                `checkpoint_every` batches.
            resume: continue from it; the metrics are those of an uninterrupted run.

        Returns:
            Dims, metrics, curves, bytes and times. `partial_fit` goes on from here.

        Raises:
            ValueError: settings or events that do not fit, an empty stream, or a damaged or foreign
                checkpoint.
            FloatingPointError: the loss is not finite.

        Deterministic: yes, from config.seed, with one number of threads.
        """
        total = len(stream.users)
        if not total:
            raise ValueError(f"{self.name}: the stream must have events, got none")
        self._learner, self._history, self._seconds = None, [], 0.0
        self._recorder = Recorder(total - math.ceil(total * self.config.reported))
        self.learner  # noqa: B018  settings are refused before the file is read
        file = self._checkpoint(stream, checkpoint_dir)
        state = file.load(resume=resume)
        if state is not None:
            self.load_state(state)
        for number, events in enumerate(self._batches(stream, progress=progress), 1):
            self.partial_fit(events)
            if self._recorder.events // self.config.window > len(self._history):
                self._history.append(self._record())
            if number % self.config.checkpoint_every == 0:
                file.save(self.state())
        self._compact()
        if not self._history or self._history[-1]["events"] < total:
            self._history.append(self._record())
        file.save(self.state())
        return self._result()

    def state(self) -> dict[str, Any]:
        """Everything that `load_state` continues from, as tensors and plain values."""
        return {
            "learner": self.learner.state(),
            "recorder": self._recorder.state(),
            "history": list(self._history),
            "seconds": self._seconds,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state` of a method with the same settings returned."""
        self.learner.load_state(state["learner"])
        self._recorder.load_state(state["recorder"])
        self._history, self._seconds = list(state["history"]), state["seconds"]

    def _checkpoint(self, stream: EventStream, folder: Path | None) -> Checkpoint:
        name = self.name.lower()
        identity = {"method": name, **asdict(self.config), "stream": stream.name}
        identity |= identify_events(stream.users, stream.items, stream.ratings)
        return Checkpoint.in_folder(folder, name, identity)

    def _batches(self, stream: EventStream, *, progress: bool) -> Iterator[Events]:
        """The batches that have not been learnt yet."""
        skipped, size = self._recorder.events, self.config.batch_size
        bar = make_bar(self.name, len(stream.users), initial=skipped, progress=progress)
        begin = 0
        with closing(bar):
            for number, events in enumerate(stream.batches(size)):
                begin += len(events.users)
                if begin <= skipped:
                    continue
                yield events
                if bar is not None:
                    bar.update(len(events.users))
                    if number % 20 == 0:
                        bar.set_postfix(self._progress())

    def _progress(self) -> dict[str, str]:
        sizes, sums = self._table_sizes(), self._recorder.sums[0]
        width = sizes["live_numbers"] / max(sum(map(len, self.learner.sides)), 1)
        weights = sizes["live_numbers"] * 4 / 1e6
        accuracy = sums[1] / max(sums[0], 1)
        return {"accuracy": f"{accuracy:.4f}", "mean dim": f"{width:.1f}", "MB": f"{weights:.2f}"}

    def _table_sizes(self) -> dict[str, float]:
        sides = self.learner.sides
        means = {
            f"mean_dim_{name}": side.numbers / max(len(side), 1)
            for name, side in zip(SIDES, sides, strict=True)
        }
        return {"live_numbers": sum(side.numbers for side in sides), **means}

    def nbytes(self) -> dict[str, int]:
        """Bytes of tables and of what else a live stream needs, by part."""
        learner = self.learner
        tables = nn.ModuleList(side.table for side in learner.sides)
        measured = memory_report(tables, learner.optimizers.values()).bytes
        parts = {part: measured[part] for part in ("weights", "index", "unify", "optimizer")}
        parts["unify"] = learner.unify_nbytes()
        notes = sum(side.nbytes for side in learner.sides) - learner.column_nbytes()
        return {**parts, "ids": notes, "search": learner.search_nbytes()}

    def _record(self) -> dict[str, Any]:
        sides, sizes = self.learner.sides, self.nbytes()
        return {
            **self._recorder.close_window(TASKS[self.config.task]),
            **self._table_sizes(),
            "bytes": sizes["weights"] + sizes["index"],
            "rows_user": len(sides[0]),
            "rows_item": len(sides[1]),
            "fragmentation": max(side.table.fragmentation for side in sides),
        }

    def _result(self) -> StreamResult:
        sides, loss = self.learner.sides, TASKS[self.config.task]
        dims = {name: side.dims().numpy() for name, side in zip(SIDES, sides, strict=True)}
        full = {name: side.table.embedding_dim for name, side in zip(SIDES, sides, strict=True)}
        widths = [
            {"side": name, "dim": int(dim), "rows": int(rows)}
            for name, each in dims.items()
            for dim, rows in zip(*np.unique(each, return_counts=True), strict=True)
        ]
        return StreamResult(
            plan=SizePlan(dims, full),
            metrics=self._recorder.metrics(loss),
            history=list(self._history),
            tables={**self._recorder.tables(loss), "widths": widths},
            params=sum(side.numbers for side in sides),
            params_full=sum(len(dims[name]) * full[name] for name in SIDES),
            bytes=self.nbytes(),
            seconds=self._seconds,
            rows_per_second=self._recorder.events / max(self._seconds, 1e-9),
        )
