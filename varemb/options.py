"""Command-line options that are the fields of config dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

_HELP = {
    "batch_size": "rows of a batch",
    "lr": "learning rate of Adam",
    "weight_decay": "L2 of the tables",
    "init_std": "of the tables' first numbers",
    "max_epochs": "epochs at most",
    "patience": "epochs without a better validation AUC before it stops",
}


def add_config(
    command: argparse.ArgumentParser,
    title: str,
    config: type[Any],
    option: Callable[[str], str],
    *,
    only: Sequence[str] | None = None,
    is_sparse: bool = False,
    defaults: Mapping[str, str] | None = None,
) -> None:
    """Adds an option per field of a config, the seed aside.

    Args:
        command: gets a group of options.
        title: of the group.
        config: a dataclass with defaults; `help` in a field's metadata is shown.
        option: the name of a field's option; it is also where argparse keeps the value.
        only: the fields; by default all.
        is_sparse: keep only what was given, so that no value is also an answer.
        defaults: what to call the default of a field that has several.
    """
    group = command.add_argument_group(title)
    for field in dataclasses.fields(config):
        if field.name == "seed" or (only is not None and field.name not in only):
            continue
        name, default = option(field.name), field.default
        kind = _kind(config, field)
        kept = argparse.SUPPRESS if is_sparse else default
        text = field.metadata.get("help") or _HELP.get(field.name, "")
        if kind is bool:
            shown = f"{text} (default {'on' if default else 'off'})" if is_sparse else text
            group.add_argument(
                name, dest=name, action=argparse.BooleanOptionalAction, default=kept, help=shown
            )
            continue
        value = ",".join(map(str, default)) if isinstance(default, tuple) else default
        value = (defaults or {}).get(field.name, value)
        is_choice = typing.get_origin(kind) is Literal
        group.add_argument(
            name,
            dest=name,
            type=str if is_choice else _READERS.get(kind, kind),
            choices=typing.get_args(kind) if is_choice else None,
            default=kept,
            metavar=None if is_choice else _metavar(kind),
            help=f"{text} (default {'none' if value is None else value})".strip(),
        )


def read_config(
    options: argparse.Namespace, config: type[Any], option: Callable[[str], str]
) -> dict[str, Any]:
    """Field -> value of the options that `add_config` added, the seed aside."""
    return {
        field.name: vars(options)[option(field.name)]
        for field in dataclasses.fields(config)
        if field.name != "seed"
    }


def read_given(
    options: argparse.Namespace, configs: Sequence[type[Any]], option: Callable[[str], str]
) -> dict[str, Any]:
    """Field -> value of those options that were given, of configs that were added as sparse."""
    names = dict.fromkeys(field.name for each in configs for field in dataclasses.fields(each))
    return {name: vars(options)[option(name)] for name in names if option(name) in vars(options)}


def _kind(config: type[Any], field: dataclasses.Field[Any]) -> Any:
    """What turns the option's text into the field's value."""
    kind = typing.get_type_hints(config)[field.name]
    if isinstance(kind, types.UnionType):  # X | None
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if typing.get_origin(kind) is tuple:
        return real_numbers if typing.get_args(kind)[0] is float else whole_numbers
    return kind


def _metavar(kind: Any) -> str:
    """What the help shows for a value."""
    shown = {float: "X", str: "NAME", real_numbers: "X,...", whole_numbers: "N,..."}
    return shown.get(kind, "N")


def whole_numbers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between.

    Example:
        >>> whole_numbers("2,4,8")
        (2, 4, 8)
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be whole numbers with commas between, such as 2,4,8, got {text!r}"
        ) from None


def real_numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between.

    Example:
        >>> real_numbers("0.1,1e-3")
        (0.1, 0.001)
    """
    try:
        return tuple(map(real_number, text.split(",")))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"must be numbers with commas between, such as 0.1,0.01, got {text!r}"
        ) from None


def real_number(text: str) -> float:
    """A number. NaN is none: it is neither too small nor too large, so that checks let it pass.

    Example:
        >>> real_number("1e-3"), real_number("inf")
        (0.001, inf)
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")
    return number


_READERS: dict[Any, Callable[[str], Any]] = {float: real_number}  # what reads a kind, if not itself


def names(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    return tuple(text.split(","))


def seed(text: str) -> int:
    """A seed that every generator of random numbers takes.

    Example:
        >>> seed("7")
        7
    """
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number in [0, 2^63), got {text!r}")
    return number


def seeds(text: str) -> tuple[int, ...]:
    """The first so many seeds, or those that are named.

    Example:
        >>> seeds("3"), seeds("7,1"), seeds("7,")
        ((0, 1, 2), (7, 1), (7,))
    """
    numbers = whole_numbers(text.removesuffix(","))
    if "," in text:
        return tuple(seed(str(number)) for number in numbers)
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return tuple(range(numbers[0]))


def seeds_of(methods: Sequence[str], default: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Method -> its seeds; one of its own is written behind a colon.

    Raises:
        ValueError: a method is given twice, or its seeds are no number.

    Example:
        >>> seeds_of(["fde:2", "mde"], (0,))
        {'fde': (0, 1), 'mde': (0,)}
    """
    found: dict[str, tuple[int, ...]] = {}
    for text in methods:
        name, colon, own = text.partition(":")
        if name in found:
            raise ValueError(f"compare: the method {name} is given twice")
        try:
            found[name] = seeds(own) if colon else default
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"compare: the seeds of {name} {error}") from None
    return found
