"""Fields of a search's config: the texts that explain them, and the checks of their values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import field
from typing import Any


def option(default: Any, text: str) -> Any:
    """A field of a config with the text that explains it."""
    return field(default=default, metadata={"help": text})


def check_positive(method: str, config: Any, *names: str) -> None:
    """Raises ValueError unless these settings are at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{method}: {name} must be at least 1, got {getattr(config, name)}")


def check_share(method: str, config: Any, name: str) -> None:
    """Raises ValueError unless a setting is in (0, 1]."""
    if not 0 < getattr(config, name) <= 1:
        raise ValueError(f"{method}: {name} must be in (0, 1], got {getattr(config, name)}")


def check_choice(method: str, config: Any, name: str, allowed: Iterable[str]) -> None:
    """Raises ValueError unless a setting is one of the allowed ones."""
    value, names = getattr(config, name), tuple(allowed)
    if value not in names:
        raise ValueError(f"{method}: {name} must be one of {', '.join(names)}, got {value!r}")


def check_candidates(method: str, candidates: Sequence[int]) -> None:
    """Raises ValueError unless the candidate dims are positive and increasing."""
    if not candidates or candidates[0] < 1 or sorted(set(candidates)) != list(candidates):
        raise ValueError(
            f"{method}: candidates must be positive and increasing, got {tuple(candidates)}"
        )
