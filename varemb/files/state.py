"""Nested state, such as an optimizer's, as one file of tensors and their place in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from varemb.files.tensors import describe, load_described, read_into, save_tensors

_STATE_FORMAT = "varemb.state"
_STATE_VERSION = "1"


def save_state(path: str | os.PathLike[str], state: Mapping[Any, Any]) -> None:
    """Writes nested state, such as an optimizer's `state_dict()`, as one file, atomically.

    Args:
        path: the file to write; its folder must exist.
        state: dicts with text or whole-number keys, lists, tuples, tensors, numbers, text, booleans
            and None, nested at will.

    Raises:
        TypeError: anything else is inside; the message says where.
        OSError: the disk is full or the folder cannot be written; `path` is unchanged.

    Example:
        >>> import pathlib, tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "state.safetensors")
        ...     save_state(file, {"epoch": 3, "moments": {0: torch.zeros(2)}, "betas": (0.9, 0.99)})
        ...     load_state(file)
        {'epoch': 3, 'moments': {0: tensor([0., 0.])}, 'betas': (0.9, 0.99)}
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _encode(state, "state", tensors)
    metadata = {"format": _STATE_FORMAT, "version": _STATE_VERSION, "tree": json.dumps(tree)}
    save_tensors(path, tensors, metadata)


def load_state(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """The state that `save_state` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, corrupt or of another kind; the message names it and says
            why.
    """
    tensors, metadata = load_described(path, _STATE_FORMAT, _STATE_VERSION)
    return _decode_state(path, metadata, tensors)


def load_state_into(path: str | os.PathLike[str], state: Mapping[Any, Any]) -> dict[Any, Any]:
    """The state that `save_state` wrote, its numbers read into the tensors of a state like it.

    A `state_dict()` shares the memory of its table or optimizer: a table that just fits into memory
    is loaded without a second one beside it. Give the result to `load_state_dict`, which checks
    what else must fit, as always.

    Args:
        path: a file of `save_state`.
        state: nested as what was saved, with tensors of the same places, shapes and dtypes, all
            contiguous, on any device; they are overwritten. Values of other kinds do not matter.

    Returns:
        As `load_state`; the tensors are those of `state`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `load_state`; or the file has other tensors than `state`, which is unchanged
            then. Where the checksum does not match, the tensors hold numbers of no use.

    Example:
        >>> import pathlib, tempfile, torch
        >>> weight = torch.ones(2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "state.safetensors")
        ...     save_state(file, {"epoch": 3, "weight": weight})
        ...     _ = weight.zero_()
        ...     load_state_into(file, {"epoch": 0, "weight": weight})["epoch"]
        3
        >>> weight
        tensor([1., 1.])
    """
    likes, metadata = describe(path, _STATE_FORMAT, _STATE_VERSION)
    saved = dict(_tensors(_decode_state(path, metadata, likes), "state"))
    own = dict(_tensors(state, "state"))
    for place in [*saved, *own]:
        reason = _misfit(saved.get(place), own.get(place))
        if reason is not None:
            raise ValueError(f"load: {os.fspath(path)} does not fit: {place} {reason}")
    place_of = {id(like): place for place, like in saved.items()}
    if not len(place_of) == len(saved) == len(likes):
        raise ValueError(f"load: {os.fspath(path)} holds a damaged description of its tensors")
    tensors = {name: own[place_of[id(like)]] for name, like in likes.items()}
    read_into(path, metadata, tensors)
    return _decode_state(path, metadata, tensors)


def _tensors(value: Any, where: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors inside nested state, and their places."""
    if isinstance(value, torch.Tensor):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _tensors(item, f"{where}[{i}]")


def _misfit(saved: torch.Tensor | None, own: torch.Tensor | None) -> str | None:
    """Why a saved tensor cannot be read into one's own, or None."""
    if saved is None or own is None:
        return "is in the file alone" if own is None else "is not in the file"
    if (saved.dtype, saved.shape) != (own.dtype, own.shape):
        return (
            f"is {saved.dtype} of shape {list(saved.shape)} in the file, "
            f"got {own.dtype} of shape {list(own.shape)}"
        )
    return None if own.is_contiguous() else "must be contiguous"


def _decode_state(
    path: str | os.PathLike[str], metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]
) -> dict[Any, Any]:
    try:
        state = _decode(json.loads(metadata["tree"]), tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"load: {os.fspath(path)} holds a damaged description: {error!r}"
        ) from None
    if not isinstance(state, dict):
        raise ValueError(f"load: {os.fspath(path)} must hold a dict, got {type(state).__name__}")
    return state


def _encode(value: Any, where: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided:
            raise TypeError(f"save_state: {where} must be a dense tensor, got {value.layout}")
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{where}[{i}]", tensors) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        pairs = []
        for key, item in value.items():
            if isinstance(key, bool) or not isinstance(key, str | int):
                raise TypeError(
                    f"save_state: keys of {where} must be text or whole numbers, got {key!r}"
                )
            pairs.append([key, _encode(item, f"{where}[{key!r}]", tensors)])
        return {"dict": pairs}
    raise TypeError(
        f"save_state: {where} must be a tensor, number, text, list, tuple or dict, "
        f"got {type(value).__name__}"
    )


def _decode(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content}
    raise ValueError(f"unknown kind {kind!r}")
