"""varemb's own tables as contenders."""

from __future__ import annotations

from collections.abc import Callable

import torch

import varemb
from benchmarks.cases import Case
from benchmarks.peers import LEARNING_RATE, Lookup
from varemb.storage import tensors_of

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": varemb.optim.SGD,
    "adagrad": varemb.optim.Adagrad,
    "rowwise_adagrad": varemb.optim.RowWiseAdagrad,
    "adam": varemb.optim.Adam,
}


def jagged_embedding(case: Case) -> Lookup:
    """VarEmbedding with the case's dims."""
    spec = case.spec
    module = varemb.VarEmbedding(spec.rows, spec.width, dtype=spec.dtype, dims=case.dims)
    return _lookup(module, lambda batch: module(batch.indices))


def jagged_bag(case: Case) -> Lookup:
    """VarEmbeddingBag(mode="sum") with the case's dims."""
    spec = case.spec
    module = varemb.VarEmbeddingBag(
        spec.rows,
        spec.width,
        mode="sum",
        include_last_offset=True,
        dtype=spec.dtype,
        dims=case.dims,
    )
    return _lookup(module, lambda batch: module(batch.indices, batch.offsets))


def fused_optimizer(lookup: Lookup, optimizer: str) -> torch.optim.Optimizer:
    """varemb's optimizer of that name, applied inside the backward."""
    return OPTIMIZERS[optimizer](lookup.trained, lr=LEARNING_RATE, fused=True)


def _lookup(module: torch.nn.Module, call: Callable[..., torch.Tensor]) -> Lookup:
    def tensors() -> list[torch.Tensor]:
        return tensors_of(module)

    return Lookup(call, tensors, tuple(module.parameters()))
