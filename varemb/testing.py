"""Tables, backends and comparisons that tests and benchmarks share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from varemb.ops.backend import BACKENDS, why_not
from varemb.rows import Rows
from varemb.storage import PackedStorage

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# Largest difference from the reference in units of the dtype's epsilon, relative to the largest
# number of the expected tensor. Sums of repeated rows run in the same order in every backend, dot
# products do not.
ULPS = {torch.float32: 32.0, torch.float64: 32.0, torch.float16: 4.0, torch.bfloat16: 4.0}


def runnable_backends(device: str = "cpu") -> list[str]:
    """Backends that run on a device here, the reference last; on the CPU Triton is interpreted."""
    return [backend for backend in BACKENDS if why_not(backend, device) is None]


class Table(NamedTuple):
    """A table with the dense tensor that it stands for."""

    storage: PackedStorage
    dense: Tensor  # [N, D], zeros beyond each row's dim

    @property
    def values(self) -> Tensor:
        return self.storage.weight

    @property
    def rows(self) -> Rows:
        return self.storage.rows


def make_table(
    dims: Tensor, width: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Table:
    """A packed table with the given dims and random numbers."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(dims.numel(), width, generator=generator, dtype=torch.float64)
    storage = PackedStorage(dims, width, dtype=dtype)
    kept = torch.arange(width) < storage.dims[:, None]
    dense = torch.where(kept, dense, 0.0).to(dtype)
    with torch.no_grad():
        storage.weight.zero_()
    storage.copy_dense_(dense)
    return Table(storage, dense)


def dims_of(kind: str, rows: int, width: int, seed: int = 0) -> Tensor:
    """Dims [N] of a named kind: equal, uniform (0..D), ones, zeros, skewed or odd."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "equal":
        return torch.full((rows,), width)
    if kind == "uniform":
        return torch.randint(0, width + 1, (rows,), generator=generator)
    if kind == "ones":
        return torch.ones(rows, dtype=torch.int64)
    if kind == "zeros":
        return torch.zeros(rows, dtype=torch.int64)
    if kind == "skewed":
        dims = torch.ones(rows, dtype=torch.int64)
        dims[: max(1, rows // 50)] = width
        return dims
    if kind == "odd":
        return (torch.randint(0, width, (rows,), generator=generator) | 1).clamp(max=width)
    raise ValueError(f"dims_of: unknown kind {kind!r}")


def assert_agree(got: Tensor, expected: Tensor, *, dtype: torch.dtype | None = None) -> None:
    """Raises AssertionError when a result is further from the reference than the table allows.

    NaN agrees with NaN only.
    """
    dtype = dtype or expected.dtype
    if got.shape != expected.shape:
        raise AssertionError(f"shape {list(got.shape)} instead of {list(expected.shape)}")
    if got.numel() == 0:
        return
    got, expected = got.double(), expected.double()
    if not torch.equal(got.isnan(), expected.isnan()):
        raise AssertionError("NaN at other places than the reference")
    scale = expected.nan_to_num().abs().max().clamp(min=1.0)
    difference = (got - expected).nan_to_num().abs().max()
    allowed = ULPS[dtype] * torch.finfo(dtype).eps * scale
    if difference > allowed:
        raise AssertionError(f"largest difference {difference:.3g}, allowed {allowed:.3g}")
