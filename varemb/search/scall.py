"""SCALL: sizes of all rows from three numbers, under a budget that holds at every moment.

Y. Qu et al., *Scalable Dynamic Embedding Size Search for Streaming Recommendation*, CIKM 2024
(arXiv 2407.15411), as in the authors' code. A stream is cut into segments. For each, an agent names
the users' share of the budget and the shapes of two distributions (`search/size_shares.py`), whose
quantiles are the sizes, the largest for the most frequent row. So rows grow and shrink with their
frequencies, and unseen ids get a size at once. Before a segment, the agent learns on the one before
it (`search/scall_search.py`). A segment's model, LightGCN, then starts from the rows that were
there, and is tested on what follows (`search/segments.py`).

The budget is that of the table that serves: one for users and items, in a buffer that has exactly
the budget's bytes. A trial of the search trains a second table of the same budget.

DIFFERS: sizes are water-filled, so the budget is met exactly; the code exceeds it by up to 15 %.
DIFFERS: proposals are water-filled too, so that a trial has the budget that is deployed.
DIFFERS: the widest row is 255, not 256: one byte a row says how wide it is.
DIFFERS: new numbers of a row that grows are N(0, 0.01); the code starts them at 0 (`grown_std`).
DIFFERS: lo and hi, unless given, are 0.8 and 1.2 of the median of three uniform trials on the same
    segment, so that uniform sizes are worth 5 on any data.
DIFFERS: training pairs are uniform over interactions, not over users.
DIFFERS: a search ends after `max_trials` at the latest; the code's only once it has settled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from varemb.budget import Ints
from varemb.models.lightgcn import LightGCN
from varemb.nn import VarEmbedding
from varemb.search.base import Events, EventStream, StreamResult
from varemb.search.budget_table import make_table, move_table, table_from, table_state
from varemb.search.scall_config import SCALLConfig, check_scall
from varemb.search.scall_search import SizeSearch
from varemb.search.scall_state import Situation
from varemb.search.segment_records import SegmentLog, Segments
from varemb.search.segment_training import SegmentTask, train_table
from varemb.search.segments import Frame, Past, check_order, frame_from, frame_state


class SCALL:
    """SCALL (Y. Qu et al., CIKM 2024): sizes of users and items in a stream, under a budget.

    Args:
        config: its settings. `policy` may also be a baseline under the same budget: uniform,
            random (a row's chance is drawn when it comes) or frequency (in proportion).

    Example:
        >>> SCALL(SCALLConfig(memory=32)).config.numbers
        8000000
    """

    name = "SCALL"

    def __init__(self, config: SCALLConfig) -> None:
        self.config = config
        self._reset()

    def _reset(self) -> None:
        self._generator = torch.Generator().manual_seed(self.config.seed)
        self._past, self._log = Past(), SegmentLog()
        self._nodes: tuple[Ints, Ints] = (np.empty(0, np.int64), np.empty(0, np.int64))
        self._chances = np.empty(0)  # of each row, for the policy "random". [N]
        self._table: VarEmbedding | None = None
        self._frame: Frame | None = None
        self._reference = math.nan  # fitness of the last segment's first round
        self._search = SizeSearch(self.config, self._generator)
        self._seconds = 0.0  # beside the search's

    def fit(
        self,
        stream: EventStream,
        *,
        progress: bool = True,
        checkpoint_dir: Path | None = None,
        resume: bool = False,
    ) -> StreamResult:
        """Goes once through a stream, segment by segment, from new weights.

        Args:
            stream: all events, in the order of time.
            progress: show a bar with the ranking, the mean width, the bytes and the budget.
            checkpoint_dir: folder of scall.safetensors, written after every trial and segment.
            resume: continue from it; the metrics are those of an uninterrupted run.

        Returns:
            Dims, metrics (means over all segments but the first), one record per segment, chosen
            rows over the segments, bytes and times. `partial_fit` goes on from here.

        Raises:
            ValueError: settings or events that do not fit, a threshold that gives fewer than two
                segments, a budget below a number per row, a damaged or foreign checkpoint.
            FloatingPointError: the loss is not finite.

        Deterministic: yes, from config.seed, with one number of threads.
        """
        check_scall(self.config)
        self._reset()
        users, items = check_order(self.name, stream)
        identity = {"method": "scall", **asdict(self.config), "stream": stream.name}
        with Segments(
            users, items, self.config.threshold, identity, checkpoint_dir, progress=progress
        ) as segments:
            state = segments.file.load(resume=resume)
            if state is not None:
                self.load_state(state)

            def keep() -> None:
                segments.file.save(self.state())
                segments.show_trials(len(self._search.rewards))

            for part in segments.after(len(self._log)):
                segments.show(self._learn(part.users, part.items, keep))
                keep()
        assert self._table is not None  # there are at least two segments
        return self._log.result(self._table, self._nodes, self._past)

    def partial_fit(self, events: Events) -> dict[str, Any]:
        """Learns one segment of a live stream: searches, sizes the rows, trains, and is tested.

        Args:
            events: of the segment, in the order of time. The caller cuts the stream.

        Returns:
            The segment's record; its "recall@20" and "ndcg@20" are those of its test part.

        Raises:
            ValueError: settings or events that do not fit, or a budget below a number per row; the
                table is as it was.
            FloatingPointError: the loss is not finite.
        """
        check_scall(self.config)
        users, items = check_order(self.name, events)
        if len(users) < 2:
            raise ValueError(f"{self.name}: a segment needs at least 2 events, got {len(users)}")
        return self._learn(users, items, lambda: None)

    def _learn(self, users: Ints, items: Ints, keep: Callable[[], None]) -> dict[str, Any]:
        """One segment; `keep` is called after every trial."""
        config = self.config
        if config.policy == "scall" and self._table is not None and self._frame is not None:
            situation = self._situation()
            task = SegmentTask(self._frame, self._nodes, situation.budget, config)
            self._search.run(task, situation, self._table, self._reference, keep)
        began = time.perf_counter()
        frame = self._past.open_segment(users, items, config, self._generator, config.numbers)
        self._frame = frame
        self._add_nodes(frame)
        situation = self._situation()
        dims, action = self._choose(situation)
        self._table = self._fit_table(dims, situation.budget)
        task = SegmentTask(frame, self._nodes, situation.budget, config)
        trained = train_table(task, self._table, self._generator)
        quality = task.rank(LightGCN(self._table, task.adjacency, config.layers), "test")
        self._reference = trained.reference
        self._seconds += time.perf_counter() - began
        record = self._log.add(
            self._table, self._nodes, frame, quality,
            events=len(users), budget=situation.budget, action=action, rounds=trained.rounds,
            rewards=self._search.rewards, seconds=self._seconds + self._search.seconds,
        )  # fmt: skip
        self._search.close()
        return record

    def _add_nodes(self, frame: Frame) -> None:
        """Table rows for users and items that have none yet: the next ones, users first."""
        rows, grown = sum(map(len, self._nodes)), []
        for nodes, counts in zip(self._nodes, (frame.user_counts, frame.item_counts), strict=True):
            new = len(counts) - len(nodes)
            grown.append(np.append(nodes, np.arange(rows, rows + new)))
            rows += new
        self._nodes = (grown[0], grown[1])
        drawn = torch.rand(rows - len(self._chances), generator=self._generator)
        self._chances = np.append(self._chances, drawn.double().numpy())

    def _situation(self) -> Situation:
        """Rows, frequencies and budget of the segment in hand."""
        assert self._frame is not None
        counts = (self._frame.user_counts, self._frame.item_counts)
        if self.config.frequency == "all":
            events = self._past.events
            counts = (
                np.bincount(events.users, minlength=len(counts[0])),
                np.bincount(events.items, minlength=len(counts[1])),
            )
        budget = self.config.numbers or int(self.config.mean_dim * len(self._chances))
        return Situation(self._nodes, counts, budget, self.config)

    def _choose(self, situation: Situation) -> tuple[Ints, list[float] | None]:
        """Dims of all rows, [N], and the action behind them."""
        policy = self.config.policy
        if policy == "random":
            return situation.fill(self._chances), None
        if policy == "frequency":
            return situation.frequent_dims(), None
        if policy == "scall" and self._table is not None:
            action = self._search.choose(situation, self._table)
            if action is not None:
                return situation.dims_for(action), action.tolist()
        return situation.uniform_dims(), None

    def _fit_table(self, dims: Ints, budget: int) -> VarEmbedding:
        """The table with new dims, and rows for the new users and items."""
        config, table, generator = self.config, self._table, self._generator
        if table is None:
            return make_table(dims, config.width, budget, config.init_std, generator)
        move_table(
            table, dims, budget, generator, grown_std=config.grown_std, new_std=config.init_std
        )
        return table

    def state(self) -> dict[str, Any]:
        """Everything that `load_state` continues from, as tensors and plain values."""
        return {
            "generator": self._generator.get_state(),
            "past": self._past.state(),
            "log": self._log.state(),
            "nodes": [torch.from_numpy(each) for each in self._nodes],
            "chances": torch.from_numpy(self._chances),
            "table": None if self._table is None else table_state(self._table),
            "frame": None if self._frame is None else frame_state(self._frame),
            "search": self._search.state(),
            "reference": self._reference,
            "seconds": self._seconds,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state` of a method with the same settings returned."""
        self._reset()
        self._past.load_state(state["past"])
        self._log.load_state(state["log"])
        users, items = (each.numpy() for each in state["nodes"])
        self._nodes, self._chances = (users, items), state["chances"].numpy()
        self._reference, self._seconds = state["reference"], state["seconds"]
        if state["frame"] is not None:
            self._frame = frame_from(state["frame"])
            budget = self._situation().budget
            self._table = table_from(state["table"], self.config.width, budget)
        self._search.load_state(state["search"])
        self._generator.set_state(state["generator"])
