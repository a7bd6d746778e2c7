"""Paged tables on the GPU: every operation gives the bits that it gives there on a packed table."""

import pytest
import torch
from gpu.where import BACKENDS, moved, there
from ops.cases import CASES
from ops.test_layouts import (
    both,
    check_fused_update,
    check_lookup,
    check_lookup_bag,
    check_lookup_linear,
    on_pairs,
)
from ops.test_lookup_linear import problem

from varemb.ops.update import ALGORITHMS
from varemb.testing import make_table

pytestmark = pytest.mark.gpu
on_backends = pytest.mark.parametrize("backend", BACKENDS)


def both_there(name, dtype):
    return [moved(table) for table in both(name, dtype)]


@on_backends
@on_pairs
@pytest.mark.parametrize("has_limit", [False, True])
def test_lookup_of_a_paged_table_on_the_gpu(backend, name, dtype, has_limit):
    _, width, indices = CASES[name]
    limit = there(torch.randint(0, width + 1, indices.shape)) if has_limit else None
    check_lookup(backend, both_there(name, dtype), there(indices), limit)


@on_backends
@on_pairs
@pytest.mark.parametrize("mode", ["sum", "mean", "max", "weighted"])
def test_lookup_bag_of_a_paged_table_on_the_gpu(backend, name, dtype, mode):
    check_lookup_bag(backend, both_there(name, dtype), there(CASES[name].indices), mode)


@on_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lookup_linear_of_a_paged_table_on_the_gpu(backend, dtype):
    packed, groups, weight, bias, indices = problem(dtype, 16)
    paged = make_table(packed.storage.dims, 9, dtype, layout="paged")
    tables = [moved(table) for table in (packed, paged)]
    check_lookup_linear(backend, tables, *there(indices, groups, weight, bias))


@on_backends
@on_pairs
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_fused_update_of_a_paged_table_on_the_gpu(backend, name, dtype, algorithm):
    tables = both_there(name, dtype)
    check_fused_update(backend, tables, there(CASES[name].indices), algorithm)
