"""Who owns a table's numbers: storages."""

from varemb.storage.base import Storage, storage_of
from varemb.storage.packed import MAX_WIDTH, PackedStorage

__all__ = ["MAX_WIDTH", "PackedStorage", "Storage", "storage_of"]
