"""Files that survive a kill and are safe to open: atomic writes, safetensors and JSON, no pickle.

A save goes to a temporary file in the same folder, reaches the disk, and then takes the place of
the old file in one step. A full disk, an exception or a kill in the middle leaves the previous file
as it was.

Tensor files carry a checksum over names, dtypes, shapes, metadata and numbers, so that a flipped
bit is found as surely as a missing half.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_CHECKSUM = "varemb.crc32"
_STATE_FORMAT = "varemb.state"
_STATE_VERSION = "1"
_STALE_SECONDS = 3600.0
_MAX_HEADER = 100_000_000  # the limit of the safetensors format


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes `data` to `path` so that a reader sees the old file or the new one, never a part.

    Args:
        path: the file to write; its folder must exist.
        data: the whole content.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is unchanged.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "note.txt")
        ...     atomic_write(file, b"one")
        ...     file.read_bytes()
        b'one'
    """

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.write(data)

    _replace(path, write)


def save_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    atomic_write(path, (json.dumps(value, indent=2) + "\n").encode())


def load_json(path: str | os.PathLike[str]) -> Any:
    """The value stored in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"load: {os.fspath(path)} is not a JSON file: {error}") from None


def save_jsonl(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one line of JSON per record, atomically."""
    atomic_write(path, "".join(json.dumps(record) + "\n" for record in records).encode())


def load_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a file written by `save_jsonl`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a JSON object; the message names file and line.
    """
    records = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"load: {os.fspath(path)}, line {number} is not JSON: {error}"
            ) from None
        if not isinstance(record, dict):
            raise ValueError(f"load: {os.fspath(path)}, line {number} is not a JSON object")
        records.append(record)
    return records


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes named tensors as one safetensors file, atomically.

    Args:
        path: the file to write; its folder must exist.
        tensors: any shapes and dtypes that safetensors knows; views and shared memory are stored as
            copies.
        metadata: text kept in the header of the file.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is unchanged.
        TypeError: a value is not a dense tensor.
    """
    plain = _as_plain(tensors)
    notes = dict(metadata or {})
    notes[_CHECKSUM] = f"{_checksum(plain, notes):08x}"

    def write(temporary: Path) -> None:
        try:
            save_file(plain, temporary, metadata=notes)
        except SafetensorError as error:
            raise OSError(f"save: cannot write {os.fspath(path)}: {error}") from None

    _replace(path, write)


def load_tensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, in memory of their own, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, corrupt or of another kind; the message names it and says
            why.
    """
    return _load(path)[0]


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text that `save_tensors` put in the header; checks the whole file, as `load_tensors`."""
    metadata = _load(path)[1]
    metadata.pop(_CHECKSUM, None)
    return metadata


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
    try:
        state = _decode(json.loads(metadata["tree"]), tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"load: {os.fspath(path)} holds a damaged description: {error!r}"
        ) from None
    if not isinstance(state, dict):
        raise ValueError(f"load: {os.fspath(path)} must hold a dict, got {type(state).__name__}")
    return state


def load_described(
    path: str | os.PathLike[str], kind: str, version: str
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file whose header says `format` = `kind` and `version` = `version`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or of another kind or version; the message names it.
    """
    tensors, metadata = _load(path)
    found = metadata.get("format", "a safetensors file of another program")
    if found != kind:
        raise ValueError(f"load: {os.fspath(path)} must be a {kind} file, got {found}")
    if metadata.get("version") != version:
        got = metadata.get("version")
        raise ValueError(f"load: {os.fspath(path)} must have {kind} version {version}, got {got}")
    if _CHECKSUM not in metadata:
        raise ValueError(f"load: {os.fspath(path)} is corrupt: it has no checksum")
    del metadata[_CHECKSUM]
    return tensors, metadata


def _replace(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    # A link keeps pointing to its file: the file is replaced, not the link.
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"save: {os.fspath(path)} is a folder, not a file")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"save: folder {target.parent} does not exist")
    _remove_stale(target)
    temporary = target.parent / f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        temporary.touch()
        # safetensors makes files that only their owner can read.
        mode = (target if target.exists() else temporary).stat().st_mode & 0o777
        write(temporary)
        os.chmod(temporary, mode)
        _sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale(target: Path) -> None:
    # A killed save leaves its temporary file behind. One being written now is never this old.
    for leftover in target.parent.glob(f".{_escape(target.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                leftover.unlink()


def _escape(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _as_plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    plain: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            kind = tensor.layout if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"save: {name} must be a dense tensor, got {kind}")
        copy = tensor.detach().to("cpu").contiguous()
        # safetensors refuses tensors that share memory.
        if copy.untyped_storage().data_ptr() in storages:
            copy = copy.clone()
        storages.add(copy.untyped_storage().data_ptr())
        plain[name] = copy
    return plain


def _checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> int:
    notes = {name: text for name, text in metadata.items() if name != _CHECKSUM}
    shapes = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    value = zlib.crc32(json.dumps([notes, shapes], sort_keys=True).encode())
    for name in sorted(tensors):
        numbers = tensors[name].reshape(-1)  # 0-d tensors have no bytes to view
        if numbers.numel():
            value = zlib.crc32(numbers.view(torch.uint8).numpy().data, value)
    return value


def _load(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    _check_start(path)
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"load: {os.fspath(path)} is truncated or corrupt: {error}") from None
    stored = metadata.get(_CHECKSUM)
    if stored is not None and stored != f"{_checksum(tensors, metadata):08x}":
        raise ValueError(f"load: {os.fspath(path)} is corrupt: its checksum does not match")
    return tensors, metadata


def _check_start(path: str | os.PathLike[str]) -> None:
    # Says plainly what a foreign file is; safetensors itself refuses everything else that is wrong.
    name = os.fspath(path)
    if os.path.isdir(path):
        raise ValueError(f"load: {name} is a folder, not a file")
    with open(path, "rb") as file:
        start = file.read(9)
    size = os.path.getsize(path)
    header = int.from_bytes(start[:8], "little")
    if size > 8 and header <= min(size - 8, _MAX_HEADER) and start[8:9] == b"{":
        return
    if start[:4] == b"PK\x03\x04":
        raise ValueError(f"load: {name} is a zip archive (torch.save or numpy), not safetensors")
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise ValueError(f"load: {name} is a pickle file, which is never opened")
    raise ValueError(
        f"load: {name} is truncated or not a safetensors file: "
        f"its first 8 bytes announce a header of {header} bytes in a file of {size}"
    )


def _encode(value: Any, where: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
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
