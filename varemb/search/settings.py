"""Fields of a search's config: the texts that explain them, and the checks of their values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field, fields
from typing import Any

from varemb.plan import MAX_WIDTH
from varemb.rows import granule_for

_RATES = ("lr", "weight_decay", "init_std")  # and names that end with them


def option(default: Any, text: str) -> Any:
    """A field of a config with the text that explains it."""
    return field(default=default, metadata={"help": text})


def check_positive(method: str, config: Any, *names: str) -> None:
    """Raises ValueError unless these settings are at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{method}: {name} must be at least 1, got {getattr(config, name)}")


def check_not_negative(method: str, config: Any, *names: str) -> None:
    """Raises ValueError unless these settings are at least 0."""
    for name in names:
        if getattr(config, name) < 0:
            raise ValueError(f"{method}: {name} must not be negative, got {getattr(config, name)}")


def check_exact(method: str, width: int) -> None:
    """Raises ValueError for a width to which packed rows would be rounded up: above 255."""
    if width % granule_for(width):
        raise ValueError(
            f"{method}: a width of {width} must be a multiple of {granule_for(width)}, "
            "in which rows so wide are stored"
        )


def check_share(method: str, config: Any, name: str) -> None:
    """Raises ValueError unless a setting is in (0, 1]."""
    if not 0 < getattr(config, name) <= 1:
        raise ValueError(f"{method}: {name} must be in (0, 1], got {getattr(config, name)}")


def check_choice(method: str, config: Any, name: str, allowed: Iterable[str]) -> None:
    """Raises ValueError unless a setting is one of the allowed ones."""
    value, names = getattr(config, name), tuple(allowed)
    if value not in names:
        raise ValueError(f"{method}: {name} must be one of {', '.join(names)}, got {value!r}")


def check_candidates(method: str, candidates: Sequence[int], name: str = "candidates") -> None:
    """Raises ValueError unless the candidate dims, a setting of that name, are positive,
    increasing and at most 2048."""
    if not candidates or candidates[0] < 1 or sorted(set(candidates)) != list(candidates):
        raise ValueError(
            f"{method}: {name} must be positive and increasing, got {tuple(candidates)}"
        )
    if candidates[-1] > MAX_WIDTH:
        raise ValueError(f"{method}: {name} must be at most {MAX_WIDTH}, got {candidates[-1]}")


def check_rates(method: str, config: Any) -> None:
    """Raises ValueError unless learning rates, L2 weights and first deviations are finite and at
    least 0."""
    for each in fields(config):
        value = getattr(config, each.name)
        if each.name.endswith(_RATES) and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{method}: {each.name} must be finite and at least 0, got {value}")


@contextmanager
def naming_options(config: type[Any], option: Callable[[str], str]) -> Iterator[None]:
    """Lets the error of a check inside name options of the command line, not fields of a config.

    Args:
        config: whose fields the error may name, before what it says they must be.
        option: the name of a field's option.

    Example:
        >>> from varemb.search import UniformConfig
        >>> with naming_options(UniformConfig, "--uniform-{}".format):
        ...     check_positive("uniform", UniformConfig(width=0), "width")
        Traceback (most recent call last):
        ValueError: uniform: --uniform-width must be at least 1, got 0
    """
    names = {each.name for each in fields(config)}
    try:
        yield
    except ValueError as error:
        method, colon, text = str(error).partition(": ")
        before = re.split(" must |, got ", text, maxsplit=1)[0]
        words = (option(word) if word in names else word for word in re.split(r"(\W)", before))
        raise ValueError(f"{method}{colon}{''.join(words)}{text[len(before) :]}") from error
