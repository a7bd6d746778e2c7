"""What a search needs from data and models, what it returns, and the state it leaves for a resume.

A model is made around an embedding and maps ids [B, F] to logits [B]; nothing else is known of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from varemb.files import load_state, save_state
from varemb.plan import SizePlan

MakeModel = Callable[[nn.Module], nn.Module]  # embedding [B, F] -> [B, F, D] in, model out


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


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    plan: SizePlan
    score: float  # AUC on the validation rows, of the model that was searched with
    history: list[dict[str, Any]]  # one record per epoch
    seconds: float


@dataclass(frozen=True)
class Checkpoint:
    """The file a run continues from; it is rewritten as a whole after every epoch.

    Attributes:
        path: the file, or None to keep nothing.
        identity: what decides the result of the run; a file with another identity is refused.
    """

    path: Path | None
    identity: Mapping[str, Any]

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
