"""What of a state dict an optimizer takes: its own as well as torch's of the same rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

# How torch's optimizers compute, and what their state began with: no part of the rule.
_LEFT_OUT = {"params", "foreach", "capturable", "differentiable", "fused"}
_LEFT_OUT |= {"initial_accumulator_value"}


def saved_group(
    name: str, saved: Mapping[str, Any], needed: Mapping[str, Any], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """Hyperparameters and other entries of a saved group.

    Args:
        name: the optimizer's, for messages.
        saved: the group.
        needed: hyperparameters that it must have.
        fixed: options of torch's rule, with the values that make it this one.

    Raises:
        ValueError: one is missing or another rule's.
    """
    missing = [key for key in needed if key not in saved]
    if missing:
        raise ValueError(
            f"{name}: a saved group must have {', '.join(needed)}, got none of {', '.join(missing)}"
        )
    for key, value in fixed.items():
        if saved.get(key, value) != value:
            raise ValueError(f"{name}: saved {key} must be {value}, got {saved[key]}")
    return {k: v for k, v in saved.items() if k not in _LEFT_OUT and k not in fixed}


def saved_state(
    name: str, key: int, saved: Mapping[str, Any] | None, own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """State of a parameter, in the shapes of the own; empty where no step has been made.

    Raises:
        ValueError: it is another rule's or another table's.
    """
    found = {part: value for part, value in (saved or {}).items() if value is not None}
    if not found:
        return {}
    if found.keys() != own.keys():
        raise ValueError(
            f"{name}: saved state of parameter {key} has {', '.join(found)}, "
            f"this optimizer needs {', '.join(own)}"
        )
    for part, ours in own.items():
        if found[part].shape != ours.shape:
            raise ValueError(
                f"{name}: saved {part} of parameter {key} has shape {list(found[part].shape)}, "
                f"this table needs {list(ours.shape)}"
            )
    return found
