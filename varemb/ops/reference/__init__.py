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
from varemb.ops.reference.rows import ROWS_PER_BLOCK, locate, stored_dims
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
    "MAX",
    "MEAN",
    "ROWS_PER_BLOCK",
    "ROW_WISE_ADAGRAD",
    "SGD",
    "SUM",
    "coalesce",
    "coalesce_dense",
    "coalesce_update_",
    "locate",
    "lookup",
    "lookup_bag",
    "lookup_bag_weights_backward",
    "lookup_linear",
    "lookup_linear_backward",
    "philox",
    "repack_",
    "round_stochastically",
    "stored_dims",
    "update_",
]
