"""Events as a learner takes them, checked and with labels, and what their predictions cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from varemb.files import checksum
from varemb.search.base import Events
from varemb.search.settings import check_choice, check_positive, check_rates, check_share, option

CLASSES = 5  # stars of the multiclass task
TASKS = {"binary": "mse", "multiclass": "cross_entropy"}  # task -> name of its loss

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StreamConfig:
    """Settings that all methods of one comparison on a stream share (ESAPN, Section 3.2)."""

    task: str = option("binary", "binary (MSE of the sigmoid) or multiclass (5 stars)")
    threshold: float = option(3.5, "ratings above it are positive in the binary task")
    lowest: float = option(0.5, "smallest rating that may come")
    highest: float = option(5.0, "largest rating that may come")
    batch_size: int = option(500, "events that are predicted and then learnt together")
    hidden: int = option(512, "outputs of hidden layers")
    lr: float = option(0.001, "learning rate of the recommender")
    table_lr: float = option(0.001, "learning rate of the tables, whose Adam is lazy")
    reported: float = option(0.25, "last part of the stream that metrics are reported for")
    window: int = option(50_000, "events per record of the history")
    checkpoint_every: int = option(200, "batches between checkpoints")
    compact_above: float = option(1.15, "allocated over live numbers at which tables are compacted")
    seed: int = option(0, "of all randomness")


class Batch(NamedTuple):
    """Checked events."""

    ids: tuple[Ids, Ids]  # raw, of users and items. 2 [B]
    labels: Tensor  # [B], float32 0 or 1, or int64 class


def check_stream_config(method: str, config: StreamConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_choice(method, config, "task", TASKS)
    if config.task == "multiclass" and not 0.5 <= config.lowest <= config.highest < CLASSES + 0.5:
        raise ValueError(
            f"{method}: the {CLASSES} classes need ratings within [0.5, {CLASSES + 0.5}), "
            f"got [{config.lowest}, {config.highest}]"
        )
    check_positive(method, config, "batch_size", "hidden", "window", "checkpoint_every")
    check_share(method, config, "reported")
    check_positive(method, config, "compact_above")
    check_rates(method, config)


def check_events(method: str, events: Events, config: StreamConfig) -> Batch:
    """The events with labels.

    Raises:
        ValueError: arrays of different lengths, ids that are negative, above 2^63 - 1 or not whole,
            ratings that are no numbers or out of range. The message names the first such event.
    """
    users = check_ids(method, "user", events.users)
    items = check_ids(method, "item", events.items)
    ratings = np.asarray(events.ratings)
    if not users.shape == items.shape == ratings.shape:
        raise ValueError(
            f"{method}: users, items and ratings must be equally long, got shapes "
            f"{list(users.shape)}, {list(items.shape)} and {list(ratings.shape)}"
        )
    if ratings.dtype.kind not in "iuf":
        raise ValueError(f"{method}: ratings must be numbers, got {ratings.dtype}")
    # A comparison with NaN is false.
    bad = ~((ratings >= config.lowest) & (ratings <= config.highest))
    if bad.any():
        first = int(bad.argmax())
        raise ValueError(
            f"{method}: ratings must be within [{config.lowest}, {config.highest}], "
            f"got {ratings[first]} at event {first}"
        )
    return Batch((users, items), _labels(ratings, config))


def identify_events(
    users: Ids, items: Ids, ratings: npt.NDArray[Any] | None = None
) -> dict[str, int | str]:
    """What tells events from others in a checkpoint: how many, and a checksum of them."""
    columns = [users, items] if ratings is None else [users, items, ratings]
    return {"events": len(users), "content": checksum(columns)}


def check_ids(method: str, side: str, ids: Any) -> Ids:
    """Raw ids as int64.

    Raises:
        ValueError: not a vector of whole numbers in [0, 2^63 - 1]; the message names the first bad
            one and its event.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{method}: {side} ids must be a vector of whole numbers, "
            f"got {array.dtype} of shape {list(array.shape)}"
        )
    bad = (array < 0) | (array > np.iinfo(np.int64).max)
    if bad.any():
        first = int(bad.argmax())
        raise ValueError(
            f"{method}: {side} ids must be in [0, 2^63 - 1], got {array[first]} at event {first}"
        )
    return array.astype(np.int64, copy=False)


def _labels(ratings: npt.NDArray[Any], config: StreamConfig) -> Tensor:  # [B]
    if config.task == "binary":
        return torch.from_numpy((ratings > config.threshold).astype(np.float32))
    # Half a star counts as the star below: 0.5 and 1 -> 0, ..., 4.5 and 5 -> 4.
    return torch.from_numpy(np.floor(ratings - 0.5).astype(np.int64))


def num_outputs(config: StreamConfig) -> int:
    """Logits of an event."""
    return 1 if config.task == "binary" else CLASSES


def losses(logits: Tensor, labels: Tensor) -> Tensor:  # [B, O], [B] -> [B]
    """Loss of each event: squared error of the sigmoid (Eq. 3) or cross-entropy (Eq. 4)."""
    if logits.shape[1] == 1:
        return (torch.sigmoid(logits[:, 0]) - labels).square()
    return F.cross_entropy(logits, labels, reduction="none")


def loss_slopes(logits: Tensor, labels: Tensor) -> Tensor:  # [B, O], [B] -> [B, O]
    """Derivative of each event's loss by its logits."""
    if logits.shape[1] == 1:
        p = torch.sigmoid(logits[:, 0])
        return (2 * (p - labels) * p * (1 - p))[:, None]
    return torch.softmax(logits, 1) - F.one_hot(labels, logits.shape[1])


def is_correct(logits: Tensor, labels: Tensor) -> Tensor:  # [B, O], [B] -> [B], bool
    """Whether the likeliest class is the label."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0) == (labels > 0.5)
    return logits.argmax(1) == labels
