"""The operations: one name each, the same in every backend."""

from varemb.ops.coalesce import coalesce
from varemb.ops.field_rows import field_rows
from varemb.ops.lookup import lookup
from varemb.ops.lookup_bag import lookup_bag
from varemb.ops.lookup_linear import lookup_linear
from varemb.ops.repack import move_, repack
from varemb.ops.training import Fused
from varemb.ops.update import update_

__all__ = [
    "Fused",
    "coalesce",
    "field_rows",
    "lookup",
    "lookup_bag",
    "lookup_linear",
    "move_",
    "repack",
    "update_",
]
