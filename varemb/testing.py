"""Tables, backends and comparisons that tests and benchmarks share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from varemb.ops.backend import BACKENDS, why_not
from varemb.ops.reference import DIM_BITS, SLOT_BITS, locate
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


class PagedNumbers(NamedTuple):
    """The numbers of a paged table that no storage manages."""

    weight: Tensor  # [E]
    rows: Rows
    dims: Tensor  # [N]


class Table(NamedTuple):
    """A table with the dense tensor that it stands for."""

    storage: PackedStorage | PagedNumbers
    dense: Tensor  # [N, D], zeros beyond each row's dim

    @property
    def values(self) -> Tensor:
        return self.storage.weight

    @property
    def rows(self) -> Rows:
        return self.storage.rows


def make_table(
    dims: Tensor,
    width: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    *,
    layout: str = "packed",
) -> Table:
    """A table with the given dims and random numbers, the same in every layout.

    A paged one lacks the rows of a negative dim, and has NaN where no row is.
    """
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(dims.numel(), width, generator=generator, dtype=torch.float64)
    packed = PackedStorage(dims, width, dtype=dtype) if layout == "packed" else None
    stored = dims if packed is None else packed.dims
    dense = torch.where(torch.arange(width) < stored[:, None], dense, 0.0).to(dtype)
    if packed is None:
        rows = make_paged_rows(dims, width, generator)
        weight = flat_of(dense, rows, float("nan")).requires_grad_()
        return Table(PagedNumbers(weight, rows, dims), dense)
    with torch.no_grad():
        packed.weight.zero_()
    packed.copy_dense_(dense)
    return Table(packed, dense)


def make_paged_rows(dims: Tensor, width: int, generator: torch.Generator) -> Rows:
    """A paged index as long use leaves it behind: full and nearly empty chunks, rows in any slot.

    Chunks of a dim lie anywhere, with unused numbers between them and unused words behind them.
    Rows of a negative dim are absent.
    """
    chunks = [(0, torch.tensor([], dtype=torch.int64), 0)]  # dim, its rows, slots
    chunk_of, slot_of = torch.zeros_like(dims), torch.zeros_like(dims)
    for dim in dims[dims > 0].unique().tolist():
        rows = (dims == dim).nonzero()[:, 0]
        parts = rows[torch.randperm(rows.numel(), generator=generator)].split(256)
        for part in (piece for whole in parts for piece in (whole[:1], whole[1:])):
            spare = int(torch.randint(0, 9, (), generator=generator))
            chunks.append((dim, part, min(256, part.numel() + spare)))
    used = 1 + torch.randperm(len(chunks) - 1, generator=generator)
    words = torch.zeros(len(chunks) + 3, dtype=torch.int64)
    numbers = 5
    for chunk, at in enumerate([0, *used.tolist()]):
        dim, rows, slots = chunks[at]
        words[chunk] = numbers << DIM_BITS | dim if dim else 0
        chunk_of[rows] = chunk
        slot_of[rows] = torch.randperm(slots, generator=generator)[: rows.numel()]
        numbers += dim * slots + chunk % 3
    handles = chunk_of << SLOT_BITS | slot_of
    handles = torch.cat([handles.where(dims >= 0, -1), handles[:0].new_zeros(dims.numel() % 2)])
    index = torch.cat([handles.int().view(torch.int64), words])
    return Rows(index, dims.numel(), width, 1, numbers)


def _inside(rows: Rows) -> tuple[Tensor, Tensor]:  # [N, D] int64, [N, D] bool
    """Where each number of a table lies in the flat values, and which of them there are."""
    every = torch.arange(rows.num_rows, device=rows.index.device)
    offset, dim = locate(rows.index, every, rows.num_rows, rows.width, rows.granule)
    column = torch.arange(rows.width, device=rows.index.device)
    return offset[:, None] + column, column < dim[:, None]


def flat_of(dense: Tensor, rows: Rows, fill: float = 0.0) -> Tensor:  # [N, D] -> [E]
    """The flat numbers of a table; `fill` where no row has one."""
    places, inside = _inside(rows)
    flat = dense.new_full((rows.numbers,), fill)
    flat[places[inside]] = dense[inside]
    return flat


def dense_of(flat: Tensor, rows: Rows) -> Tensor:  # [E] -> [N, D]
    """The rows of flat numbers, such as a gradient; zeros beyond each row's dim."""
    places, inside = _inside(rows)
    dense = flat.new_zeros(places.shape)
    dense[inside] = flat[places[inside]]
    return dense


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
