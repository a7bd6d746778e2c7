"""The signature of every operation, defined once for every backend.

Each namespace has all operations: `varemb` is implemented by the native libraries, by device;
`varemb_triton` by `triton/`, in Python; `varemb_reference` by `reference/`, on any device. Letters:
N rows, D width, E stored numbers, L indices, G bags, F fields, O outputs, S matrix rows,
C projection groups, n touched numbers, M moves.
"""

from __future__ import annotations

import torch

NAMESPACES = ("varemb", "varemb_triton", "varemb_reference")

# index, packed [blocks, 4] or paged [words], and these say where the rows are
_ROWS = "int num_rows, int width, int granule"
# what was looked up; the gradient operations take the same, and derive the width from grad
_BAG = "Tensor indices, Tensor offsets, Tensor? per_sample_weights, Tensor? limit"
_GRADIENT = (
    "Tensor grad, Tensor index, Tensor indices, Tensor? offsets, Tensor? per_sample_weights, "
    "Tensor? limit, Tensor? winners, int num_rows, int granule, int pooling, int padding_idx, "
    "bool include_last_offset"
)
_LINEAR = "Tensor index, Tensor indices, Tensor groups, Tensor weight, Tensor bias"
# hyper [6] float64: lr, weight_decay, eps, beta1, beta2, step; rounding [2] int64: seed, offset of
# stochastic rounding, None rounds to nearest; both on the device of the values
_STATE = "Tensor(a!) values, Tensor(b!)? state1, Tensor(c!)? state2, Tensor hyper, Tensor? rounding"
# how the values are trained: form 0 dense, 1 sparse, 2 fused (then with all of these)
_TRAINED = (
    "Tensor values, Tensor? anchor, Tensor? state1, Tensor? state2, Tensor? hyper, Tensor? rounding"
)
_FORM = "int padding_idx, int form, int algorithm"

SCHEMAS = {
    # values [E], indices [L], limit [1] or [L] int32 -> [L, D]
    "lookup": f"(Tensor values, Tensor index, Tensor indices, Tensor? limit, {_ROWS}) -> Tensor",
    # offsets [G] or [G + 1], pooling 0 sum, 1 mean, 2 max -> [G, D], max's winners [G, D] int32
    "lookup_bag": (
        f"(Tensor values, Tensor index, {_BAG}, {_ROWS}, int pooling, int padding_idx, "
        "bool include_last_offset) -> (Tensor, Tensor)"
    ),
    # grad [G, D] -> [L]
    "lookup_bag_weights_backward": (
        "(Tensor grad, Tensor values, Tensor index, Tensor indices, Tensor offsets, Tensor? limit, "
        "int num_rows, int granule, int padding_idx, bool include_last_offset) -> Tensor"
    ),
    # groups [F, D + 1, 2]: first matrix row and bias row of a field's dim; weight [S, O],
    # bias [C, O] -> [L, O]
    "lookup_linear": f"(Tensor values, {_LINEAR}, {_ROWS}) -> Tensor",
    # grad [L, O] -> rows' gradient [L, D], weight's [S, O], bias's [C, O]
    "lookup_linear_backward": (
        f"(Tensor grad, Tensor values, {_LINEAR}, {_ROWS}) -> (Tensor, Tensor, Tensor)"
    ),
    # grad [L, D] or [G, D] -> [numbers]
    "coalesce_dense": f"({_GRADIENT}, int numbers) -> Tensor",
    # packed only -> positions [n] int64 ascending, their gradients [n]
    "coalesce": f"({_GRADIENT}, int numbers) -> (Tensor, Tensor)",
    # packed only; positions [n] int64 ascending: of each touched row the places of its first
    # numbers; grad [n]
    "update_": (
        f"({_STATE}, Tensor index, Tensor positions, Tensor grad, {_ROWS}, int algorithm) -> ()"
    ),
    "coalesce_update_": f"({_STATE}, {_GRADIENT}, int algorithm) -> ()",
    # moves [M, 4] int64: source, target, kept, dim; out[target + k] = values[source + k] for
    # k < kept, 0 for kept <= k < dim. No move writes what another one reads or writes.
    "repack_": "(Tensor(a!) out, Tensor values, Tensor moves) -> ()",
    # the differentiable forms
    "lookup_trained": (
        f"({_TRAINED}, Tensor index, Tensor indices, Tensor? limit, {_ROWS}, {_FORM}) -> Tensor"
    ),
    "lookup_bag_trained": (
        f"({_TRAINED}, Tensor index, {_BAG}, {_ROWS}, int pooling, bool include_last_offset, "
        f"{_FORM}) -> (Tensor, Tensor)"
    ),
    "lookup_linear_trained": f"({_TRAINED}, {_LINEAR}, {_ROWS}, {_FORM}) -> Tensor",
}

LIBRARIES = {namespace: torch.library.Library(namespace, "DEF") for namespace in NAMESPACES}

for _namespace, _library in LIBRARIES.items():
    for _name, _schema in SCHEMAS.items():
        # The flat index tensors are read as they lie in memory.
        _library.define(_name + _schema, tags=(torch.Tag.needs_fixed_stride_order,))
