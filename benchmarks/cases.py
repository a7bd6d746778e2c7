"""Benchmark cases: how wide the rows are, how often each is asked for, the bytes that must move.

Letters as in the package: N rows, d[r] dim of row r, D width, L lookups, G bags, U distinct rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.dense_esapn import SIZES

# Share of the rows and their dim as a share of the width, the most popular rows first.
# "power" has mean 11.2 at D = 64; "mean22" doubles each dim of it, capped at D, and has mean 22.1;
# "mean12" has mean 12.0 at D = 128.
POWER_LAWS: Mapping[str, tuple[tuple[float, float], ...]] = {
    "power": ((0.04, 1.0), (0.08, 1 / 2), (0.13, 1 / 4), (0.25, 1 / 8), (0.50, 1 / 16)),
    "mean22": ((0.16, 1.0), (0.13, 1 / 2), (0.25, 1 / 4), (0.46, 1 / 8)),
    "mean12": (
        (0.01, 1.0), (0.03, 1 / 2), (0.07, 1 / 4), (0.16, 1 / 8), (0.27, 1 / 16), (0.46, 1 / 32)
    ),
}  # fmt: skip
DIMS = (*POWER_LAWS, "uniform", "equal")
LOOKUPS = 81_920  # of a call where nothing else is asked for, however long its bags


def bags_of(pooling: int) -> int:
    """Bags of so many lookups in a call of about ``LOOKUPS``."""
    return max(1, LOOKUPS // pooling)


class Batch(NamedTuple):
    """The lookups of one call, the same for every contender."""

    indices: Tensor  # [L], int64
    offsets: Tensor  # [G + 1], int64


@dataclasses.dataclass(frozen=True)
class Spec:
    """One benchmark case in numbers and words; ``Case`` makes the tensors."""

    dims: str = "mean22"  # one of DIMS
    zipf: float = 1.05  # exponent s of the access law 1 / rank^s; 0 asks for all rows alike
    popular_wide: bool = (
        True  # wide rows are the popular rows; else dims and popularity are unrelated
    )
    rows: int = 1_000_000  # N
    width: int = 64  # D
    dtype: torch.dtype = torch.float32
    bags: int = 4096  # G
    pooling: int = 20  # lookups in a bag
    seed: int = 0

    @property
    def lookups(self) -> int:
        """L, lookups in one call."""
        return self.bags * self.pooling

    @property
    def is_target(self) -> bool:
        """Whether the targets of the design are stated for this case."""
        return self == Spec(seed=self.seed)

    @property
    def short(self) -> str:
        """The case as a line of a summary names it."""
        law = self.dims if self.popular_wide else f"{self.dims}, unrelated"
        dtype = "" if self.dtype is torch.float32 else f", {str(self.dtype)[6:]}"
        rows = f"{self.rows / 1e6:g} M rows" if self.rows >= 10**6 else f"{self.rows:,} rows"
        return (
            f"{law}, D {self.width}, {rows}, Zipf {self.zipf:g}, "
            f"{self.bags:,} x {self.pooling}{dtype}"
        )

    def __str__(self) -> str:
        law = "popular rows wide" if self.popular_wide else "dims unrelated to popularity"
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{self.dims} dims ({law}), Zipf {self.zipf:g}, N {self.rows:,}, D {self.width}, "
            f"{self.lookups:,} lookups in {self.bags:,} bags, {dtype}"
        )


def key_of(op: str, spec: Spec) -> str:
    """What a record is known by when a run is resumed."""
    return f"{op} / {spec}"


# What differs from the targets' case, one thing at a time.
AXES: tuple[Mapping[str, Any], ...] = (
    {},
    {"zipf": 0.0},
    {"zipf": 0.6},
    {"width": 16},
    {"width": 128},
    {"width": 256},
    {"pooling": 1, "bags": bags_of(1)},
    {"pooling": 100, "bags": bags_of(100)},
)


def standard_specs(op: str, quick: bool = False) -> list[Spec]:
    """Cases that run when none is asked for: the targets' case first, the cold one last."""
    target = Spec()
    if op == "overhead":
        laws = ("mean22",) if quick else ("mean22", "equal")
        return of_one_index([dataclasses.replace(target, dims=dims) for dims in laws])
    if quick:
        return [target]
    # 20 million padded rows of 128 take 10 GB, but 31 GB with Adam's two numbers for each: a step
    # is compared where the padded table and its optimizer fit into 24 GB of memory.
    rows = 10_000_000 if op == "update" else 20_000_000
    return [
        *(
            dataclasses.replace(target, dims=dims, **axis)
            for dims in ("mean22", "equal")
            for axis in AXES
        ),
        Spec(popular_wide=False),
        Spec(dims="power"),
        Spec(dims="uniform", popular_wide=False),
        Spec(dims="mean12", zipf=0.0, width=128, rows=rows),
    ]


def of_one_index(specs: Sequence[Spec]) -> list[Spec]:
    """The same tables asked for one row, each once."""
    return list(dict.fromkeys(dataclasses.replace(spec, bags=1, pooling=1) for spec in specs))


def ranked_dims(dims: str, rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Dims by rank, widest first, so that rank 0 can be the most popular row.

    Returns: [N], int64, each at least 1.
    """
    if dims == "equal":
        return torch.full((rows,), width, dtype=torch.int64)
    if dims == "uniform":
        return torch.randint(1, width + 1, (rows,), generator=generator).sort(descending=True)[0]
    if dims not in POWER_LAWS:
        raise ValueError(f"cases: dims must be one of {', '.join(DIMS)}, got {dims!r}")
    out = torch.empty(rows, dtype=torch.int64)  # [N]
    start, share_so_far = 0, 0.0
    for share, fraction in POWER_LAWS[dims]:
        share_so_far += share
        stop = round(share_so_far * rows)
        out[start:stop] = max(1, round(fraction * width))
        start = stop
    return out


class Case:
    """A spec with its dims and a source of fresh batches.

    Attributes:
        device: where the batches and the peers' tables are.
        dims: dim of every row. [N], int64
    """

    def __init__(self, spec: Spec, device: torch.device | str = "cpu") -> None:
        self.spec, self.device = spec, torch.device(device)
        generator = torch.Generator().manual_seed(spec.seed)
        ranked = ranked_dims(spec.dims, spec.rows, spec.width, generator)
        # Popular rows lie anywhere in the table, as they do where ids are not sorted by frequency.
        row_of_rank = torch.randperm(spec.rows, generator=generator)  # [N]
        if not spec.popular_wide:
            ranked = ranked[torch.randperm(spec.rows, generator=generator)]
        self._row_of_rank = row_of_rank.to(self.device)
        self.dims = torch.empty_like(ranked, device=self.device)
        self.dims[self._row_of_rank] = ranked.to(self.device)
        self._random = torch.Generator(self.device).manual_seed(spec.seed)
        ranks = torch.arange(1, spec.rows + 1, dtype=torch.float64, device=self.device)
        self._cdf = (ranks**-spec.zipf).cumsum(0)  # [N]

    def full(self, shape: tuple[int, ...], value: float) -> Tensor:
        """A tensor of one value, in the case's dtype and on its device."""
        return torch.full(shape, value, dtype=self.spec.dtype, device=self.device)

    @property
    def mean_dim(self) -> float:
        """Mean of d[r] over the rows: what memory is proportional to."""
        return float(self.dims.double().mean())

    def batches(self, count: int) -> list[Batch]:
        """``count`` batches of fresh indices, made outside of any timed region."""
        spec = self.spec
        offsets = torch.arange(0, spec.lookups + 1, spec.pooling, device=self.device)  # [G + 1]
        shape = {"dtype": torch.float64, "device": self.device, "generator": self._random}
        out = []
        for _ in range(count):
            draws = torch.rand(spec.lookups, **shape) * self._cdf[-1]  # [L]
            ranks = torch.searchsorted(self._cdf, draws, right=True)
            out.append(Batch(self._row_of_rank[ranks.clamp_(max=spec.rows - 1)], offsets))
        return out

    def facts(self, batches: list[Batch]) -> Facts:
        """What the batches ask for, as medians over the batches."""
        access, distinct, distinct_dim = [], [], []
        for batch in batches:
            unique = torch.unique(batch.indices)  # [U]
            access.append(float(self.dims[batch.indices].double().mean()))
            distinct.append(unique.numel())
            distinct_dim.append(float(self.dims[unique].double().mean()))
        return Facts(
            zipf=self.spec.zipf,
            mean_dim=self.mean_dim,
            access_dim=float(np.median(access)),
            distinct_rows=int(np.median(distinct)),
            distinct_dim=float(np.median(distinct_dim)),
        )


@dataclasses.dataclass(frozen=True)
class Facts:
    """What to say beside every speed: wide rows are the popular ones, so bytes are not memory."""

    zipf: float
    mean_dim: float  # over the rows
    access_dim: float  # over the lookups
    distinct_rows: int  # U
    distinct_dim: float  # over the distinct rows


# Numbers of optimizer state read and written per number of a row; row-wise Adagrad has one per row.
STATE_PER_NUMBER = {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 0, "adam": 2}
LAYOUTS = ("jagged", "classes", "padded", "masked", "six")


def six_widths(width: int) -> list[int]:
    """Widths of ESAPN's six tables where the widest has D numbers a row."""
    return [max(1, size * width // SIZES[-1]) for size in SIZES]


def row_numbers(spec: Spec, dim: float, layout: str) -> float:
    """Numbers stored for a row of this dim, or for rows of this mean dim."""
    if layout == "six":
        return sum(six_widths(spec.width))
    return dim if layout in ("jagged", "classes") else spec.width


def state_bytes(optimizer: str | None, rows: float, numbers: float) -> float:
    """Bytes of float32 optimizer state for that many rows with that many numbers together."""
    if optimizer is None:
        return 0.0
    return 4 * (rows if optimizer == "rowwise_adagrad" else STATE_PER_NUMBER[optimizer] * numbers)


def table_bytes(case: Case, layout: str, optimizer: str | None) -> float:
    """About how much memory a table and its optimizer's state take: which ones fit together."""
    spec = case.spec
    numbers = spec.rows * row_numbers(spec, case.mean_dim, layout)
    index = {"jagged": 1.34, "classes": 4.0, "padded": 0.0, "six": 8.0}  # bytes of a row
    # A mask is as large as the table.
    extra = 4.0 * numbers if layout == "masked" else index[layout] * spec.rows
    return numbers * spec.dtype.itemsize + extra + state_bytes(optimizer, spec.rows, numbers)


def bytes_per_lookup(
    spec: Spec, facts: Facts, *, layout: str, out_rows: int, is_step: bool
) -> float:
    """Bytes counted once per lookup plus the output, as FBGEMM does; a step counts three times."""
    numbers = spec.lookups * row_numbers(spec, facts.access_dim, layout)
    forward = (numbers + out_rows * spec.width) * spec.dtype.itemsize
    return forward * (3 if is_step else 1)


def bytes_per_distinct_row(
    spec: Spec, facts: Facts, *, layout: str, out_rows: int, optimizer: str | None
) -> float:
    """Bytes that memory must move when each distinct row is read once, in a step also written once.

    Forward: distinct rows, int64 indices, output, and for each distinct row its entry of the index
    (a 32-byte block), of the remap (4 bytes), of the sizes (8) or of the int32 mask. A step adds
    the gradient of the output, indices and entries again, and the rows and the optimizer's state
    read and written.
    """
    item, distinct = spec.dtype.itemsize, facts.distinct_rows
    numbers = distinct * row_numbers(spec, facts.distinct_dim, layout)
    entries = {"jagged": 32.0, "classes": 4.0, "padded": 0.0, "six": 8.0}  # bytes of a row
    entry = 4.0 * numbers if layout == "masked" else entries[layout] * distinct
    index = entry + spec.lookups * 8
    out = out_rows * spec.width * item
    forward = numbers * item + index + out
    if optimizer is None:
        return forward
    return forward + out + index + 2 * (numbers * item + state_bytes(optimizer, distinct, numbers))


def coalesce_bytes(spec: Spec, facts: Facts, *, layout: str) -> tuple[float, float]:
    """Bytes of adding up repeated rows' gradients: by lookup, then those that memory must move.

    By lookup: the kept numbers of every gradient read, the sums written. Must move: these once, the
    int64 indices, and the places of the sums, 8 bytes a number jagged and a row padded.
    """
    is_jagged = layout == "jagged"
    read = spec.lookups * (facts.access_dim if is_jagged else spec.width) * spec.dtype.itemsize
    numbers = facts.distinct_rows * (facts.distinct_dim if is_jagged else spec.width)
    written = numbers * spec.dtype.itemsize
    places = 8 * (numbers if is_jagged else facts.distinct_rows)
    return read + written, read + written + spec.lookups * 8 + places
