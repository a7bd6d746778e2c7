"""Who owns a table's numbers: storages."""

from varemb.storage.base import Storage, storage_of
from varemb.storage.packed import MAX_WIDTH, PackedStorage
from varemb.storage.pages import prefer_huge_pages

__all__ = ["MAX_WIDTH", "PackedStorage", "Storage", "prefer_huge_pages", "storage_of"]
