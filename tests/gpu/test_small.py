"""Every operation once on small tables: what compute-sanitizer watches."""

import pytest
import torch
from gpu.where import BACKENDS, DEVICE, there

import varemb
from varemb.ops import coalesce, lookup, lookup_bag, repack
from varemb.storage import PackedStorage
from varemb.testing import dims_of

pytestmark = pytest.mark.gpu
on_backends = pytest.mark.parametrize("backend", BACKENDS)
ROWS, WIDTH = 77, 37


def indices_of(lookups=300):
    """Many distinct rows and one long run."""
    own = torch.cat([torch.randint(0, ROWS, (lookups,)), torch.full((lookups,), 5)])
    return there(own[torch.randperm(own.numel())])


def make_storage(dtype, seed=0):
    storage = PackedStorage(
        dims_of("uniform", ROWS, WIDTH, seed), WIDTH, device=DEVICE, dtype=dtype
    )
    with torch.no_grad():
        storage.weight.normal_()
    return storage


@on_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_small_forward_and_gradient(backend, dtype):
    storage, indices = make_storage(dtype), indices_of()
    offsets = there(torch.tensor([0, 0, 3, 250, 600]))
    rows = storage.rows
    lookup(storage.weight, rows, indices, padding_idx=2, backend=backend).sum().backward()
    for mode in ("sum", "mean", "max"):
        out = lookup_bag(
            storage.weight, rows, indices, offsets, mode=mode, include_last_offset=True, limit=20,
            backend=backend,
        )  # fmt: skip
        out.sum().backward()
    weights = torch.ones(600, device=DEVICE, dtype=dtype, requires_grad=True)
    lookup_bag(
        storage.weight, rows, indices, offsets, mode="sum", per_sample_weights=weights,
        include_last_offset=True, backend=backend,
    ).sum().backward()  # fmt: skip
    block = torch.ones(600, WIDTH, device=DEVICE, dtype=dtype)
    coalesce(block, rows, indices, backend=backend)
    for tensor in (storage.weight.grad, weights.grad):
        assert bool(tensor.isfinite().all())


@on_backends
@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RowWiseAdagrad", "Adam"])
@pytest.mark.parametrize("is_fused", [True, False])
def test_small_step(backend, name, is_fused):
    table = varemb.VarEmbedding(
        ROWS, WIDTH, dims=dims_of("uniform", ROWS, WIDTH), device=DEVICE, dtype=torch.bfloat16,
        sparse=not is_fused, backend=backend,
    )  # fmt: skip
    optimizer = getattr(varemb.optim, name)(table.parameters(), fused=is_fused)
    table(indices_of()).square().sum().backward()
    optimizer.step()
    assert bool(table.weight.isfinite().all())


@on_backends
def test_small_lookup_linear_and_repack(backend):
    dims = torch.tensor([0, 4, 16, 37]).repeat(20)[:ROWS]
    table = varemb.VarEmbedding(
        ROWS, WIDTH, dims=dims, unify="linear", device=DEVICE, backend=backend
    )
    table(indices_of()).square().sum().backward()
    assert bool(table.weight.grad.isfinite().all())
    old, new = make_storage(torch.float32, 1), make_storage(torch.float32, 2)
    (out,) = repack([old.weight.detach()], old.rows, new.rows, backend=backend)
    assert out.numel() == new.numbers and bool(out.isfinite().all())
