"""Tables trained fully, one after the other, and compared on the validation rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from varemb.search.base import FieldData, MakeModel, MakeTable
from varemb.search.training import TrainConfig, seeded_from, train_model


@dataclass(frozen=True)
class Trials:
    """What the trainings gave, in the order of the tables."""

    valid: list[dict[str, float]]  # auc and logloss of each table's best epoch
    history: list[dict[str, Any]]  # one record per epoch
    seconds: float

    @property
    def best(self) -> int:
        """The table with the best validation AUC; of several the first."""
        return max(range(len(self.valid)), key=lambda trial: self.valid[trial]["auc"])


def train_trials(
    name: str,
    make_model: MakeModel,
    tables: Sequence[MakeTable],
    train: FieldData,
    valid: FieldData,
    config: TrainConfig,
    *,
    progress: bool,
    checkpoint_dir: Path | None,
    resume: bool,
) -> Trials:
    """Trains the model around each table; every trial starts from config.seed.

    Args:
        name: of the method, in the names of the checkpoints.
        make_model: builds a model around a table.
        tables: build them, with new weights.
        train, valid: rows to learn from, and rows that decide.
        config: how each is trained.
        progress: show a bar per epoch.
        checkpoint_dir: folder of a file per trial, written after every epoch.
        resume: continue from them.

    Deterministic: yes, from config.seed.
    """
    results, history, seconds = [], [], 0.0
    for trial, make_table in enumerate(tables):
        with seeded_from(torch.Generator().manual_seed(config.seed)):
            model = make_model(make_table())
        file = None if checkpoint_dir is None else checkpoint_dir / f"{name}-{trial}.safetensors"
        result = train_model(
            model, train, valid, config, progress=progress, checkpoint=file, resume=resume
        )
        results.append(result.valid)
        history += [{**record, "phase": "trial", "trial": trial} for record in result.history]
        seconds += result.seconds
        del model, result  # before the next one is made
    return Trials(results, history, seconds)
