"""What a stream's predictions were worth, recorded before their events are learnt.

Quality is the share of right predictions and the mean loss: over the whole stream, over its last
part, over windows, and by how often the event's user or item had occurred, itself included.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

CURVE = 100  # the quality is kept for frequencies 1..CURVE
DIMS_CURVE = 50  # the mean dim for frequencies 1..DIMS_CURVE

SIDES = ("user", "item")
_PARTS = ("_all", "")  # the whole stream, and its last part

Float = npt.NDArray[np.float64]


class Scored(NamedTuple):
    """Predictions of one batch, made before it was learnt."""

    losses: npt.NDArray[np.float32]  # [B]
    correct: npt.NDArray[np.bool_]  # [B]
    frequencies: npt.NDArray[np.int64]  # occurrences so far of user and item, itself included [2,B]
    dims: npt.NDArray[np.int64]  # dims that user and item were read with. [2, B]


class Recorder:
    """Sums over the events so far.

    Args:
        start: number of the first event that is reported; None reports none.

    Attributes:
        sums: events, right ones and losses of the whole stream and of the reported part. [2, 3]
        window: the same since the last record. [3]
        curves: the same by part, side and frequency; the last column is anything above. [2,2,3,C]
        dims: events and dims by side and frequency. [2, 2, C]

    Example:
        >>> recorder = Recorder(start=1)
        >>> ones = np.ones((2, 2), np.int64)
        >>> recorder.add(Scored(np.float32([0.5, 0.25]), np.array([False, True]), ones, 4 * ones))
        >>> recorder.metrics("mse")
        {'accuracy': 1.0, 'mse': 0.25, 'accuracy_all': 0.5, 'mse_all': 0.375}
    """

    def __init__(self, start: int | None = None) -> None:
        self.start = start
        self.sums: Float = np.zeros((2, 3))
        self.window: Float = np.zeros(3)
        self.curves: Float = np.zeros((2, 2, 3, CURVE + 2))
        self.dims: Float = np.zeros((2, 2, DIMS_CURVE + 2))

    @property
    def events(self) -> int:
        return int(self.sums[0, 0])

    def add(self, scored: Scored) -> None:
        """Takes in the predictions of the events that come next."""
        measures = np.stack([np.ones_like(scored.losses), scored.correct, scored.losses])
        measures = measures.astype(np.float64)  # [3, B]
        size = measures.shape[1]
        first = size if self.start is None else min(max(self.start - self.events, 0), size)
        total = measures.sum(1)
        self.window += total
        self.sums[0] += total
        self.sums[1] += measures[:, first:].sum(1)
        for side in range(2):
            columns = np.minimum(scored.frequencies[side], CURVE + 1)
            for part, begin in enumerate((0, first)):
                for number, measure in enumerate(measures):
                    self.curves[part, side, number] += np.bincount(
                        columns[begin:], measure[begin:], CURVE + 2
                    )
            columns = np.minimum(columns, DIMS_CURVE + 1)
            self.dims[side, 0] += np.bincount(columns, minlength=DIMS_CURVE + 2)
            self.dims[side, 1] += np.bincount(columns, scored.dims[side], DIMS_CURVE + 2)

    def metrics(self, loss: str) -> dict[str, float]:
        """Accuracy and loss of the reported part and of the whole stream; parts without events are
        left out."""
        found = {}
        for suffix, sums in (("", self.sums[1]), ("_all", self.sums[0])):
            if sums[0]:
                found[f"accuracy{suffix}"] = float(sums[1] / sums[0])
                found[f"{loss}{suffix}"] = float(sums[2] / sums[0])
        return found

    def close_window(self, loss: str) -> dict[str, Any]:
        """Quality so far and since the last record; begins a new window."""
        events, right, lost = self.window
        self.window = np.zeros(3)
        return {
            "events": self.events,
            "accuracy": float(self.sums[0, 1] / self.sums[0, 0]),
            loss: float(self.sums[0, 2] / self.sums[0, 0]),
            "accuracy_window": float(right / events),
            f"{loss}_window": float(lost / events),
        }

    def tables(self, loss: str) -> dict[str, list[dict[str, Any]]]:
        """Quality and mean dim by frequency; frequencies that did not occur are left out."""
        tables: dict[str, list[dict[str, Any]]] = {}
        for p, part in enumerate(_PARTS):
            tables[f"quality_by_frequency{part}"] = [
                {
                    "side": name,
                    "frequency": frequency,
                    "events": int(events),
                    "accuracy": float(right / events),
                    loss: float(lost / events),
                }
                for side, name in enumerate(SIDES)
                for frequency, (events, right, lost) in enumerate(self.curves[p, side].T)
                if events and 1 <= frequency <= CURVE
            ]
        tables["width_by_frequency"] = [
            {
                "side": name,
                "frequency": f,
                "events": int(events),
                "mean_dim": total / events,
            }
            for side, name in enumerate(SIDES)
            for f, (events, total) in enumerate(self.dims[side].T.tolist())
            if events and 1 <= f <= DIMS_CURVE
        ]
        return tables

    def state(self) -> dict[str, Any]:
        """What `load_state` continues from."""
        arrays = {"sums": self.sums, "window": self.window}
        arrays |= {"curves": self.curves, "dims": self.dims}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from a saved state."""
        for name, tensor in state.items():
            setattr(self, name, tensor.numpy().copy())
