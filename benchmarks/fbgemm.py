"""FBGEMM's table-batched embeddings (TBE) on CPU, padded or as size classes.

FBGEMM is optional: imported on first use, and where it is missing the table of results says so.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Batch, Case
from benchmarks.peers import (
    INITIAL_VALUE,
    LEARNING_RATE,
    Lookup,
    UnavailableError,
    first_line,
)
from benchmarks.size_classes import FoldSum, SizeClasses

FBGEMM_MISSING = "not installed (pip install --no-deps fbgemm-gpu-cpu==1.8.0)"


def _tbe(case: Case, tables: list[tuple[int, int]], optimizer: str, is_pooled: bool = True) -> Any:
    """A TBE with tables of (rows, width); its backward applies the optimizer."""
    try:
        configs = importlib.import_module("fbgemm_gpu.split_embedding_configs")
        common = importlib.import_module("fbgemm_gpu.split_table_batched_embeddings_ops_common")
        training = importlib.import_module("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    except (ImportError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError)
        raise UnavailableError(FBGEMM_MISSING if missing else f"does not load: {error}") from error
    precisions = {
        torch.float32: configs.SparseType.FP32,
        torch.float16: configs.SparseType.FP16,
        torch.bfloat16: configs.SparseType.BF16,
    }
    kinds = {
        "sgd": configs.EmbOptimType.EXACT_SGD,
        "adagrad": configs.EmbOptimType.EXACT_ADAGRAD,
        "rowwise_adagrad": configs.EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        "adam": configs.EmbOptimType.ADAM,
    }
    place = (common.EmbeddingLocation.HOST, training.ComputeDevice.CPU)
    try:
        tbe = training.SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, width, *place) for rows, width in tables],
            optimizer=kinds[optimizer],
            learning_rate=LEARNING_RATE,
            pooling_mode=common.PoolingMode.SUM if is_pooled else common.PoolingMode.NONE,
            weights_precision=precisions[case.spec.dtype],
        )
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise UnavailableError(f"FBGEMM refuses: {first_line(error)}") from error
    for weight in tbe.split_embedding_weights():
        weight.fill_(INITIAL_VALUE)
    return tbe


def _tbe_tensors(tbe: Any) -> list[Tensor]:
    """Weights and optimizer state, without the empty and the scalar ones."""
    return [
        t for t in [*tbe.parameters(), *tbe.buffers()] if t.numel() > 1 and t.is_floating_point()
    ]


def padded_tbe(case: Case, optimizer: str = "rowwise_adagrad", is_pooled: bool = True) -> Lookup:
    """One FBGEMM TBE table of the full width."""
    tbe = _tbe(case, [(case.spec.rows, case.spec.width)], optimizer, is_pooled)

    def call(batch: Batch) -> Tensor:
        out: Tensor = tbe(batch.indices, batch.offsets)
        return out

    return Lookup(call, lambda: _tbe_tensors(tbe))


def class_tbe(
    case: Case, optimizer: str = "rowwise_adagrad", *, by_sort: bool = False, is_pooled: bool = True
) -> Lookup:
    """Size classes as the tables of one FBGEMM TBE, fed by a remap.

    The lookups reach (class, bag) order by FBGEMM's own bucketizer, or by a stable sort in torch.
    Widths are rounded up to multiples of 4, which FBGEMM asks for.
    """
    classes = SizeClasses(case, multiple=4)
    tables = [(rows.numel(), size) for rows, size in zip(classes.rows, classes.sizes, strict=True)]
    tbe = _tbe(case, tables, optimizer, is_pooled)
    block = torch.tensor([case.spec.rows], dtype=torch.int32)
    starts = [classes.starts.to(torch.int32)]

    def bucketize(batch: Batch) -> tuple[Tensor, Tensor]:
        fbgemm = torch.ops.fbgemm
        places = classes.remap.index_select(0, batch.indices)  # [L]
        lengths, slots, *_ = fbgemm.block_bucketize_sparse_features(
            batch.offsets.diff().int(), places, False, False, block, len(tables),
            block_bucketize_pos=starts,
        )  # [C * G], [L]  # fmt: skip
        return slots, fbgemm.asynchronous_complete_cumsum(lengths)

    def call(batch: Batch) -> Tensor:
        slots, offsets = classes.sort(batch) if by_sort else bucketize(batch)
        out = tbe(slots, offsets)  # [G, sum of sizes]
        return FoldSum.apply(out, classes.sizes, case.spec.width)  # type: ignore[no-any-return, no-untyped-call]

    return Lookup(call, lambda: [*_tbe_tensors(tbe), classes.remap])
