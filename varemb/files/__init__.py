"""Files that survive a kill and are safe to open: atomic writes, safetensors, JSON, no pickle."""

from varemb.files.atomic import (
    atomic_write,
    checksum,
    load_json,
    load_jsonl,
    save_json,
    save_jsonl,
)
from varemb.files.state import load_state, load_state_into, save_state
from varemb.files.tensors import load_described, load_metadata, load_tensors, save_tensors

__all__ = [
    "atomic_write",
    "checksum",
    "load_described",
    "load_json",
    "load_jsonl",
    "load_metadata",
    "load_state",
    "load_state_into",
    "load_tensors",
    "save_json",
    "save_jsonl",
    "save_state",
    "save_tensors",
]
