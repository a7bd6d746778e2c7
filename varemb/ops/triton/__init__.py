"""The operations as Triton kernels, for any GPU that Triton compiles for, or its interpreter."""

from collections.abc import Callable
from typing import Any

from varemb.ops.triton.coalesce import coalesce, coalesce_dense
from varemb.ops.triton.lookup import lookup
from varemb.ops.triton.lookup_bag import lookup_bag, lookup_bag_weights_backward
from varemb.ops.triton.lookup_linear import lookup_linear, lookup_linear_backward
from varemb.ops.triton.repack import repack_
from varemb.ops.triton.update import coalesce_update_, update_

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "lookup": lookup,
    "lookup_bag": lookup_bag,
    "lookup_bag_weights_backward": lookup_bag_weights_backward,
    "lookup_linear": lookup_linear,
    "lookup_linear_backward": lookup_linear_backward,
    "coalesce": coalesce,
    "coalesce_dense": coalesce_dense,
    "update_": update_,
    "coalesce_update_": coalesce_update_,
    "repack_": repack_,
}
