"""What a search needs from data and models, what it returns, and the state it leaves for a resume.

A model is made around an embedding and maps ids [B, F] to logits [B]; nothing else is known of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from varemb.files import checksum, load_state, save_state
from varemb.plan import SizePlan

MakeModel = Callable[[nn.Module], nn.Module]  # embedding [B, F] -> [B, F, D] in, model out
MakeTable = Callable[[], nn.Module]  # a table [B, F] -> [B, F, D] with new weights

_COMPARED_ROWS = 100_000  # of data that may be larger than memory


class FieldData(Protocol):
    """Rows of categorical ids with a label 0 or 1."""

    @property
    def ids(self) -> Tensor:
        """[R, F], ids of field f in [0, cardinalities[f])."""

    @property
    def labels(self) -> Tensor:
        """[R], float32."""

    @property
    def field_names(self) -> tuple[str, ...]:
        """[F]"""

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Rows of each field. [F]"""


@runtime_checkable
class StoredTable(Protocol):
    """A table [B, F] -> [B, F, D] that is no VarEmbedding, such as CSR or codebooks.

    A table may also have `penalty() -> Tensor`, a term added to every training loss. Weight decay
    acts on all of its parameters, or on those of `decayed()` where it has that.
    """

    @property
    def num_params(self) -> int:
        """Stored numbers as the papers count them; codes count as bits / 32."""

    def stored(self) -> dict[str, Tensor]:
        """What serving the table needs, by a name of one's own."""

    def num_bytes(self) -> dict[str, int]:
        """Bytes of the tensors of `stored`, as weights, index and unify."""


def state_nbytes(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of an optimizer's state for some parameters, its step counts aside."""
    return sum(
        value.nbytes
        for parameter in parameters
        for name, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor) and name != "step"
    )


@dataclass(frozen=True)
class TrainResult:
    """A trained model, with the weights of its best epoch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    valid: dict[str, float]  # auc and logloss of the best epoch
    history: list[dict[str, Any]]  # one record per epoch
    seconds: float
    rows_per_second: float  # rows trained on, evaluations aside


@dataclass(frozen=True)
class SearchResult:
    """What a search found: a plan, a table to train from new weights, or a trained model.

    Exactly one of these says what is measured: `trained` if it is set, else `make_table` if it is
    set, else `plan`.
    """

    plan: SizePlan | None  # None if the storage is no plan
    score: float  # AUC on the validation rows, of the model that was searched with
    history: list[dict[str, Any]]  # one record per epoch
    seconds: float
    unify: str = "linear"  # how rows of the plan reach the width when they are trained again
    make_table: MakeTable | None = None  # for storage that is no plan
    trained: TrainResult | None = None  # the method chooses while it trains: nothing follows
    table: nn.Module | None = None  # the embedding module inside trained.model


class Events(Protocol):
    """Interactions in the order in which they happened; ids are raw, in [0, 2^63)."""

    @property
    def users(self) -> npt.NDArray[np.int64]:
        """[R]"""

    @property
    def items(self) -> npt.NDArray[np.int64]:
        """[R]"""

    @property
    def ratings(self) -> npt.NDArray[np.float32]:
        """1 where feedback is implicit. [R]"""

    @property
    def times(self) -> npt.NDArray[np.int64] | None:
        """[R]"""


class EventStream(Events, Protocol):
    """All events of a stream whose length is known."""

    @property
    def name(self) -> str:
        """What the stream is called in results."""

    def batches(self, size: int) -> Iterator[Events]:
        """The events in order, `size` at a time; the last batch may be shorter."""


@dataclass(frozen=True)
class StreamResult:
    """What a method that learns from a stream ends with.

    Attributes:
        plan: dims of the rows at the end, tables "user" and "item"; a row per id that was seen.
        metrics: quality of predictions made before their events were learnt.
        history: one record per window of events or per segment: at least events, live_numbers,
            bytes, mean_dim_user, mean_dim_item and the quality so far.
        tables: curves, histograms and chosen rows, by name; lists of records.
        params: numbers of all rows at the end.
        params_full: the same at full width.
        bytes: at the end, as weights, index, unify and optimizer.
        seconds: spent on the stream, the time before a resume included.
        rows_per_second: events per second.
    """

    plan: SizePlan
    metrics: dict[str, float]
    history: list[dict[str, Any]]
    tables: dict[str, list[dict[str, Any]]]
    params: int
    params_full: int
    bytes: dict[str, int]
    seconds: float
    rows_per_second: float


def identify_data(*parts: FieldData) -> dict[str, Any]:
    """What tells data from others in a checkpoint: rows, and a checksum of some, evenly spaced."""
    spaced = []
    for part in parts:
        step = max(len(part.labels) // _COMPARED_ROWS, 1)
        spaced += [part.ids[::step].numpy(), part.labels[::step].numpy()]
    return {"rows": [len(part.labels) for part in parts], "content": checksum(spaced)}


@dataclass(frozen=True)
class Checkpoint:
    """The file a run continues from; it is rewritten as a whole each time.

    Attributes:
        path: the file, or None to keep nothing.
        identity: what decides the result of the run; a file with another identity is refused.
    """

    path: Path | None
    identity: Mapping[str, Any]

    @classmethod
    def in_folder(cls, folder: Path | None, name: str, identity: Mapping[str, Any]) -> Checkpoint:
        """The file `name`.safetensors of a folder; without a folder nothing is kept."""
        return cls(None if folder is None else Path(folder) / f"{name}.safetensors", identity)

    def save(self, state: Mapping[str, Any]) -> None:
        """Writes the state, atomically."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_state(self.path, {"identity": dict(self.identity), "state": state})

    def load(self, *, resume: bool) -> dict[str, Any] | None:
        """The state to continue from; None when nothing is resumed or nothing was saved yet.

        Raises:
            ValueError: the file is damaged or belongs to a run with other options.
        """
        if not resume or self.path is None or not self.path.exists():
            return None
        stored = load_state(self.path)
        found = stored.get("identity")
        if not isinstance(found, dict) or not isinstance(stored.get("state"), dict):
            raise ValueError(f"resume: {self.path} holds no state of a search or training")
        for name in [*self.identity, *found]:
            if found.get(name) != self.identity.get(name):
                raise ValueError(
                    f"resume: {self.path} was written with {name} = {found.get(name)}, "
                    f"got {self.identity.get(name)}"
                )
        state: dict[str, Any] = stored["state"]
        return state
