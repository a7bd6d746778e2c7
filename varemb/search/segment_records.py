"""What is kept of every segment of a stream: its record, and counts and dims of all rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from varemb.budget import Ints
from varemb.memory import memory_report
from varemb.nn import VarEmbedding
from varemb.search.base import Checkpoint, StreamResult
from varemb.search.budget_table import make_plan
from varemb.search.progress import make_bar
from varemb.search.segment_training import TOP, Quality
from varemb.search.segments import Frame, Part, Past, cut_segments
from varemb.search.stream_events import identify_events

SIDES = ("user", "item")
_CASES = 4  # rows of a side in the case study


@dataclass(frozen=True)
class _Snapshot:
    """One segment: how often each row is in its train part, and how wide it then is."""

    counts: tuple[Ints, Ints]  # [U], [V]
    dims: tuple[Ints, Ints]


class SegmentLog:
    """Records of the segments so far."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self._snapshots: list[_Snapshot] = []

    def __len__(self) -> int:
        return len(self.records)

    def add(
        self,
        table: VarEmbedding,
        nodes: tuple[Ints, Ints],
        frame: Frame,
        quality: Quality,
        *,
        events: int,
        budget: int,
        action: list[float] | None,
        rounds: int,
        rewards: list[float],
        seconds: float,
    ) -> dict[str, Any]:
        """The record of a segment that has been learnt and tested.

        Args:
            table: as it now is.
            nodes: table row of each user and item. [U], [V]
            frame: of the segment.
            quality: of the test part.
            events: of the segment.
            budget: numbers that the table may hold.
            action: what the agent chose.
            rounds: of training.
            rewards: of the search before.
            seconds: so far.
        """
        dims = table.dims.numpy()
        sides = (dims[nodes[0]], dims[nodes[1]])
        grown, shrunk = self._changes(sides)
        weight = table.weight
        record = {
            "segment": len(self.records),
            "events": events + (self.records[-1]["events"] if self.records else 0),
            "segment_events": events,
            "users": len(nodes[0]),
            "items": len(nodes[1]),
            "live_numbers": int(dims.sum()),
            "bytes": weight.untyped_storage().nbytes(),
            "budget_bytes": budget * weight.element_size(),
            "mean_dim": float(dims.mean()),
            "mean_dim_user": float(sides[0].mean()),
            "mean_dim_item": float(sides[1].mean()),
            "widest": int(dims.max()),
            f"recall@{TOP}": quality.recall,
            f"ndcg@{TOP}": quality.ndcg,
            "test_users": quality.users,
            "unknown_events": frame.unknown,
            "grown": grown,
            "shrunk": shrunk,
            "action": action,
            "trials": len(rewards),
            "reward": float(np.mean(rewards)) if rewards else None,
            "rounds": rounds,
            "seconds": seconds,
        }
        self.records.append(record)
        self._snapshots.append(_Snapshot((frame.user_counts, frame.item_counts), sides))
        return record

    def _changes(self, dims: tuple[Ints, Ints]) -> tuple[float, float]:
        """Shares of the rows of the last segment that are now wider, and narrower."""
        if not self._snapshots:
            return 0.0, 0.0
        old = self._snapshots[-1].dims
        moved = np.concatenate(
            [new[: len(each)] - each for new, each in zip(dims, old, strict=True)]
        )
        return float((moved > 0).mean()), float((moved < 0).mean())

    def result(self, table: VarEmbedding, nodes: tuple[Ints, Ints], past: Past) -> StreamResult:
        """Means over all segments but the first, curves, chosen rows and bytes.

        Segments without anything to find count in no mean of quality. The metrics "..._users" are
        means over all tested users, where a segment counts by how many it has.
        """
        later = self.records[1:]
        metrics = {"segments": float(len(self.records))}
        for name in ("grown", "shrunk", "mean_dim"):
            metrics[name] = float(np.mean([record[name] for record in later]))
        tested = [record for record in later if record["test_users"]]
        users = [record["test_users"] for record in tested]
        for name in (f"recall@{TOP}", f"ndcg@{TOP}"):
            values = [record[name] for record in tested]
            metrics[name] = float(np.mean(values)) if tested else float("nan")
            metrics[f"{name}_users"] = (
                float(np.average(values, weights=users)) if tested else float("nan")
            )
        plan, seconds = make_plan(table, nodes), self.records[-1]["seconds"]
        sizes = memory_report(table).bytes
        # Adam's two moments of every number, while a segment is trained; then they are discarded.
        sizes["optimizer"] = 2 * table.weight.element_size() * table.live_numbers
        return StreamResult(
            plan=plan,
            metrics=metrics,
            history=list(self.records),
            tables={**self._curves(), "case_study": self._cases(past)},
            params=plan.num_params,
            params_full=plan.num_params_full,
            bytes={part: sizes[part] for part in ("weights", "index", "unify", "optimizer")},
            seconds=seconds,
            rows_per_second=self.records[-1]["events"] / max(seconds, 1e-9),
        )

    def _curves(self) -> dict[str, list[dict[str, Any]]]:
        """How many rows have which dim, and the mean dim by frequency, in the last segment."""
        widths, by_frequency = [], []
        last = self._snapshots[-1]
        for side, counts, dims in zip(SIDES, last.counts, last.dims, strict=True):
            for dim, rows in zip(*np.unique(dims, return_counts=True), strict=True):
                widths.append({"side": side, "dim": int(dim), "rows": int(rows)})
            for frequency in np.unique(counts):
                those = dims[counts == frequency]
                by_frequency.append({
                    "side": side, "frequency": int(frequency), "rows": len(those),
                    "mean_dim": float(those.mean()),
                })  # fmt: skip
        return {"widths": widths, "width_by_frequency": by_frequency}

    def _cases(self, past: Past) -> list[dict[str, Any]]:
        """Interactions and dims over the segments, of the rows whose interactions vary most."""
        records = []
        for place, (side, ids) in enumerate(zip(SIDES, (past.users, past.items), strict=True)):
            rows = len(self._snapshots[-1].counts[place])
            counts = np.zeros((len(self._snapshots), rows))
            for segment, snapshot in enumerate(self._snapshots):
                counts[segment, : len(snapshot.counts[place])] = snapshot.counts[place]
            chosen = np.argsort(-counts.std(0), kind="stable")[:_CASES]
            raw = ids.ids()
            for row in chosen.tolist():
                records += [
                    {
                        "side": side, "id": int(raw[row]), "segment": segment,
                        "interactions": int(snapshot.counts[place][row]),
                        "dim": int(snapshot.dims[place][row]),
                    }
                    for segment, snapshot in enumerate(self._snapshots)
                    if row < len(snapshot.dims[place])
                ]  # fmt: skip
        return records

    def state(self) -> dict[str, Any]:
        """Everything that `load_state` continues from."""
        return {
            "records": list(self.records),
            "snapshots": [
                [torch.from_numpy(each.copy()) for each in (*one.counts, *one.dims)]
                for one in self._snapshots
            ],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state."""
        self.records = list(state["records"])
        snapshots = [[each.numpy() for each in one] for one in state["snapshots"]]
        self._snapshots = [_Snapshot((one[0], one[1]), (one[2], one[3])) for one in snapshots]


class Segments:
    """The segments of a whole stream, their checkpoint file, and a bar of progress; a context.

    Args:
        users, items: raw ids of all events, in order. [R]
        threshold: new users and items of a segment.
        identity: what decides the result, beside the events.
        checkpoint_dir: folder of the file, or None.
        progress: show the bar.

    Raises:
        ValueError: fewer than two segments.
    """

    def __init__(
        self,
        users: Ints,
        items: Ints,
        threshold: int,
        identity: Mapping[str, Any],
        checkpoint_dir: Path | None,
        *,
        progress: bool,
    ) -> None:
        self._events, self._cuts = Part(users, items), cut_segments(users, items, threshold)
        self.file = Checkpoint.in_folder(
            checkpoint_dir, identity["method"], {**identity, **identify_events(users, items)}
        )
        self._shown: dict[str, str] = {}
        self._bar = make_bar(str(identity["method"]), len(self._cuts), progress=progress)

    def __enter__(self) -> Segments:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()  # before an error is printed on the same line

    def after(self, done: int) -> Iterator[Part]:
        """Raw events of the segments behind the first `done` ones."""
        if self._bar is not None:
            self._bar.update(done)
        starts = [0, *self._cuts[:-1]]
        for first, end in list(zip(starts, self._cuts, strict=True))[done:]:
            yield self._events[first:end]

    def show(self, record: Mapping[str, Any]) -> None:
        """Moves the bar on by a segment and shows its record."""
        if self._bar is not None:
            self._bar.update(1)
            self._shown = {
                f"R@{TOP}": f"{record[f'recall@{TOP}']:.4f}",
                f"N@{TOP}": f"{record[f'ndcg@{TOP}']:.4f}",
                "mean dim": f"{record['mean_dim']:.1f}",
                "MB": f"{record['bytes'] / 1e6:.2f} of {record['budget_bytes'] / 1e6:.2f}",
            }  # fmt: skip
            self._bar.set_postfix(self._shown)

    def show_trials(self, count: int) -> None:
        """Shows how many trials the search in hand has made."""
        if self._bar is not None and count:
            self._bar.set_postfix({**self._shown, "trials": count})
