"""Hyperparameters: which there are, what they may be, and how tables get to know of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from torch import Tensor

HYPER = ("lr", "weight_decay", "eps", "beta1", "beta2")  # places in the hyper tensor, then step
STEP = len(HYPER)
_NUMBERS = HYPER[:3]
_FIXED = ("params", *_NUMBERS, "betas")


def check_hyperparameters(name: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError when a hyperparameter is out of range; `name` is the optimizer's."""
    for key in _NUMBERS:
        if key in options and not options[key] >= 0:
            raise ValueError(f"{name}: {key} must not be negative, got {options[key]}")
    if "betas" in options:
        betas = tuple(options["betas"])
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"{name}: betas must be in [0, 1), two of them, got {betas}")


class Group(dict[str, Any]):
    """A parameter group that writes through to its tables' hyper tensors, so that a scheduler's or
    a user's `group["lr"] = ...` or `group.update(lr=...)` holds for the next backward.

    A copy of a group is a plain dict.

    Args:
        values: hyperparameters, "params" and whatever else.
        hypers: the hyper tensor of each table. [6] each

    Raises:
        ValueError: when "params" or a hyperparameter is removed.

    Example:
        >>> import torch
        >>> hyper = torch.zeros(6)
        >>> group = Group({"params": [], "lr": 1.0}, [hyper])
        >>> group |= {"lr": 0.5}
        >>> hyper[0].item()
        0.5
    """

    # dict's own do not pass through __setitem__ and __delitem__; these do.
    update = MutableMapping.update
    setdefault = MutableMapping.setdefault
    popitem = MutableMapping.popitem
    clear = MutableMapping.clear

    def __init__(self, values: Mapping[str, Any], hypers: Iterable[Tensor]) -> None:
        super().__init__()
        self._hypers = list(hypers)
        self.update(values)

    def __setitem__(self, key: str, value: Any) -> None:
        # Numbers instead of tensors: a scheduler would change these in place, unnoticed.
        if key in _NUMBERS:
            value = float(value)
        elif key == "betas":
            beta1, beta2 = value
            value = (float(beta1), float(beta2))
        super().__setitem__(key, value)
        # Through `data`: a lookup made before may still go backward, with the new value.
        for hyper in self._hypers:
            if key in _NUMBERS:
                hyper.data[HYPER.index(key)] = value
            elif key == "betas":
                hyper.data[3], hyper.data[4] = value

    def __delitem__(self, key: str) -> None:
        if key in _FIXED:
            raise ValueError(f"group: {key} must stay, tables are trained with it; set it instead")
        super().__delitem__(key)

    def pop(self, key: str, *default: Any) -> Any:
        if key not in self:
            return super().pop(key, *default)
        value = self[key]
        del self[key]
        return value

    def __ior__(self, other: Any) -> Group:  # type: ignore[misc, override]
        self.update(other)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)
