"""Who owns a table's numbers: storages."""

from varemb.storage.base import LaidOut, RowMap, State, Storage, storage_of, tensors_of
from varemb.storage.freezing import freeze, thaw
from varemb.storage.packed import MAX_WIDTH, PackedStorage
from varemb.storage.paged import PagedStorage
from varemb.storage.pages import prefer_huge_pages

__all__ = [
    "MAX_WIDTH",
    "LaidOut",
    "PackedStorage",
    "PagedStorage",
    "RowMap",
    "State",
    "Storage",
    "freeze",
    "prefer_huge_pages",
    "storage_of",
    "tensors_of",
    "thaw",
]
