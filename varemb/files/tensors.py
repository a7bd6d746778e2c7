"""Tensors in safetensors files, with a checksum over names, dtypes, shapes, metadata and numbers,
so that a flipped bit is found as surely as a missing half.

Numbers go from memory to disk and from disk into the tensors that keep them, without a copy.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from varemb.files.atomic import replace

_CHECKSUM = "varemb.crc32"
_MAX_HEADER = 100_000_000  # the limit of the safetensors format
_PART = 16 << 20  # bytes read at a time


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

    replace(path, write)


def load_tensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, in memory of their own, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, corrupt or of another kind; the message names it and says
            why.
    """
    metadata, likes = _describe(path)
    return _read_new(path, metadata, likes)


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text that `save_tensors` put in the header; checks the whole file, as `load_tensors`."""
    metadata, likes = _describe(path)
    _read_new(path, metadata, likes)
    metadata.pop(_CHECKSUM, None)
    return metadata


def load_described(
    path: str | os.PathLike[str], kind: str, version: str
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file whose header says `format` = `kind` and `version` = `version`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or of another kind or version; the message names it.
    """
    likes, metadata = describe(path, kind, version)
    tensors = _read_new(path, metadata, likes)
    del metadata[_CHECKSUM]
    return tensors, metadata


def describe(
    path: str | os.PathLike[str], kind: str, version: str
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """As `load_described`, without the numbers: tensors on the meta device, checksum unchecked."""
    metadata, likes = _describe(path)
    found = metadata.get("format", "a safetensors file of another program")
    if found != kind:
        raise ValueError(f"load: {os.fspath(path)} must be a {kind} file, got {found}")
    if metadata.get("version") != version:
        got = metadata.get("version")
        raise ValueError(f"load: {os.fspath(path)} must have {kind} version {version}, got {got}")
    if _CHECKSUM not in metadata:
        raise ValueError(f"load: {os.fspath(path)} is corrupt: it has no checksum")
    return likes, metadata


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
    value = _checksum_of_header(tensors, metadata)
    for name in sorted(tensors):
        numbers = tensors[name].reshape(-1)  # 0-d tensors have no bytes to view
        if numbers.numel():
            value = zlib.crc32(numbers.view(torch.uint8).numpy().data, value)
    return value


def _checksum_of_header(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> int:
    notes = {name: text for name, text in metadata.items() if name != _CHECKSUM}
    shapes = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    return zlib.crc32(json.dumps([notes, shapes], sort_keys=True).encode())


def _describe(
    path: str | os.PathLike[str],
) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata with its checksum, and what the tensors are, on the meta device."""
    _check_start(path)
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            # A tensor of an open file is a view of the file: no number of it is read here.
            views = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            likes = {name: torch.empty_like(view, device="meta") for name, view in views.items()}
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"load: {os.fspath(path)} is truncated or corrupt: {error}") from None
    return metadata, likes


def _read_new(
    path: str | os.PathLike[str], metadata: Mapping[str, str], likes: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    tensors = {name: torch.empty_like(like, device="cpu") for name, like in likes.items()}
    read_into(path, metadata, tensors)
    return tensors


def read_into(
    path: str | os.PathLike[str], metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Reads the numbers of a described file into contiguous tensors of its dtypes and shapes.

    Raises:
        ValueError: the file is not what was described, or its checksum does not match; the tensors
            then hold numbers of no use.
    """
    value = _checksum_of_header(tensors, metadata)
    try:
        with open(path, "rb", buffering=0) as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            for name in sorted(tensors):
                begin, end = header[name]["data_offsets"]
                if end - begin != tensors[name].nbytes:
                    raise ValueError(f"{name} has {end - begin} bytes")
                file.seek(8 + size + begin)
                value = _read(file, tensors[name], value)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"load: {os.fspath(path)} is truncated or corrupt: {error!r}") from None
    stored = metadata.get(_CHECKSUM)
    if stored is not None and stored != f"{value:08x}":
        raise ValueError(f"load: {os.fspath(path)} is corrupt: its checksum does not match")


def _read(file: FileIO, tensor: torch.Tensor, value: int) -> int:
    """Fills a tensor from where the file stands, part by part; returns the checksum so far."""
    if not tensor.numel():
        return value
    numbers = tensor.detach().view(-1).view(torch.uint8)
    is_own = tensor.device.type == "cpu"
    staging = numbers if is_own else torch.empty(min(_PART, numbers.numel()), dtype=torch.uint8)
    for first in range(0, numbers.numel(), _PART):
        count = min(_PART, numbers.numel() - first)
        part = numbers[first : first + count] if is_own else staging[:count]
        memory = part.numpy().data
        filled = 0
        while filled < count:
            read = file.readinto(memory[filled:])
            if not read:
                raise ValueError("the file ends early")
            filled += read
        value = zlib.crc32(memory, value)
        if not is_own:
            numbers[first : first + count].copy_(part)
    return value


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
