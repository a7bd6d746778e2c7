"""What every operation means, in plain PyTorch. Kernels must agree with it, output and gradient.

Arguments are those of `schemas.py`. Sums run in the order of the lookups, in float32 for 16-bit
rows (float64 for float64), like the kernels'.
"""

from varemb.ops.reference.coalesce import coalesce, coalesce_dense
from varemb.ops.reference.lookup import lookup
from varemb.ops.reference.lookup_bag import MAX, MEAN, SUM, lookup_bag, lookup_bag_weights_backward
from varemb.ops.reference.lookup_linear import lookup_linear, lookup_linear_backward
from varemb.ops.reference.repack import repack_
from varemb.ops.reference.rounding import philox, round_stochastically
from varemb.ops.reference.rows import (
    DIM_BITS,
    ROWS_PER_BLOCK,
    SLOT_BITS,
    is_paged,
    locate,
    refuse_paged,
    stored_dims,
)
from varemb.ops.reference.update import (
    ADAGRAD,
    ADAM,
    ROW_WISE_ADAGRAD,
    SGD,
    coalesce_update_,
    update_,
)

__all__ = [
    "ADAGRAD",
    "ADAM",
    "DIM_BITS",
    "MAX",
    "MEAN",
    "ROWS_PER_BLOCK",
    "ROW_WISE_ADAGRAD",
    "SGD",
    "SLOT_BITS",
    "SUM",
    "coalesce",
    "coalesce_dense",
    "coalesce_update_",
    "is_paged",
    "locate",
    "lookup",
    "lookup_bag",
    "lookup_bag_weights_backward",
    "lookup_linear",
    "lookup_linear_backward",
    "philox",
    "refuse_paged",
    "repack_",
    "round_stochastically",
    "stored_dims",
    "update_",
]
