"""A table whose rows are codes of centroids: trained as a full table, served from packed codes.

Row r is cut into G groups of D / G numbers, and group g stands for the nearest centroid of its
codebook, c = C[f, g, code]. In training (VQ of `search/dpq.py`) a full table of queries q is kept
and the codes follow it:

    code = argmin_k norm(|q_g - C[f, g, k]|^2)     norm: batch normalisation, no affine
    out  = q + sg(c - q)                            gradient straight through to q
    loss = ... + mean |c - sg(q)|^2 + beta mean |sg(c) - q|^2

So training takes the memory of the full table and more; only what is served is small: log2 K bits
per group, without gaps, and the codebooks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varemb.nn import VarEmbedding
from varemb.ops import field_rows
from varemb.search.epochs import first_rows

_ROWS_AT_A_TIME = 16384  # while codes are made
_ROWS_PER_MARK = 64


def bits_for(centroids: int) -> int:
    """Bits of a code.

    Example:
        >>> [bits_for(k) for k in (2, 32, 33, 256)]
        [1, 5, 6, 8]
    """
    return (centroids - 1).bit_length()


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Codes below 2^bits one after another, lowest bit first. [n] int64 -> uint8

    Two bytes follow the last code, so that every code can be read with three.

    Example:
        >>> pack_bits(torch.tensor([1, 2, 3]), 4).tolist()
        [33, 3, 0, 0]
    """
    padded = F.pad(codes, (0, -len(codes) % 8)).view(-1, 8)  # 8 codes take `bits` bytes
    places = torch.arange(bits)
    values = 2 ** torch.arange(8)
    parts = []
    for part in padded.split(_ROWS_AT_A_TIME):
        ones = (part[..., None] >> places) & 1  # [n / 8, 8, bits]
        parts.append((ones.view(len(part), bits, 8) * values).sum(2).to(torch.uint8).flatten())
    used = -(-len(codes) * bits // 8)
    return F.pad(torch.cat(parts)[:used] if parts else torch.zeros(0, dtype=torch.uint8), (0, 2))


def read_bits(packed: Tensor, places: Tensor, bits: int) -> Tensor:
    """The codes at some places of `pack_bits`. [*] -> [*] int64"""
    first = places * bits
    byte = first >> 3
    word = packed[byte].long() | packed[byte + 1].long() << 8 | packed[byte + 2].long() << 16
    return (word >> (first & 7)) & (2**bits - 1)


class Marks:
    """Which rows are marked, and the how-manieth of them a row is: a bit a row and 4 bytes per 64.

    Args:
        marked: [N] bool
    """

    def __init__(self, marked: Tensor) -> None:
        blocks = F.pad(marked, (0, -len(marked) % _ROWS_PER_MARK)).view(-1, _ROWS_PER_MARK)
        self.bits = pack_bits(blocks.flatten().long(), 1)
        sums = blocks.sum(1)
        self.before = (sums.cumsum(0) - sums).int()

    def find(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Whether rows are marked, and how many marked rows come before each. [n] -> [n], [n]"""
        block = rows // _ROWS_PER_MARK
        line = torch.arange(_ROWS_PER_MARK)
        ones = read_bits(self.bits, block[:, None] * _ROWS_PER_MARK + line, 1)
        earlier = (ones * (line < (rows % _ROWS_PER_MARK)[:, None])).sum(1)
        return read_bits(self.bits, rows, 1).bool(), self.before[block] + earlier


class QuantizedTable(nn.Module):
    """Rows as codes of centroids. [B, F] -> [B, F, D]

    In training rows come from the queries, straight through the centroids; otherwise they are read
    from the packed codes, which follow every change of the weights.

    Args:
        cardinalities: rows of each field. [F]
        width: D.
        groups: G, a divisor of D.
        centroids: K, of each field's and group's codebook.
        beta: weight of the term that ties queries to their centroids.
        init_std: of the first queries and centroids.
        head: rows that may use all centroids; None is all rows. [N] bool
        tail_centroids: how many of the same centroids the other rows may use.

    Attributes:
        queries: the full table, needed in training only.
        codebook: C. Parameter [F, G, K, D / G]
    """

    field_starts: Tensor
    limits: Tensor

    def __init__(
        self,
        cardinalities: Sequence[int],
        width: int,
        groups: int,
        centroids: int,
        beta: float,
        init_std: float,
        head: Tensor | None = None,
        tail_centroids: int = 2,
    ) -> None:
        super().__init__()
        starts = first_rows(cardinalities)
        self.cardinalities, self.width, self.beta = tuple(cardinalities), width, beta
        self.queries = VarEmbedding.for_fields(list(cardinalities), width)
        nn.init.normal_(self.queries.weight, std=init_std)
        numbers = torch.randn(len(cardinalities), groups, centroids, width // groups)
        self.codebook = nn.Parameter(numbers * init_std)
        lines = len(cardinalities) * groups * centroids
        self.norm = nn.BatchNorm1d(lines, affine=False)
        self.register_buffer("field_starts", starts, persistent=False)
        marked = torch.ones(int(starts[-1]), dtype=torch.bool) if head is None else head
        # How many centroids each row may use: in training only. [N]
        limits = torch.where(marked, centroids, tail_centroids)
        self.register_buffer("limits", limits, persistent=False)
        self.marks = None if head is None else Marks(head)
        self.tail_centroids = tail_centroids
        self.packed: tuple[Tensor, Tensor] | None = None
        self.packed_at: tuple[int, ...] = ()
        self.last_penalty: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor:  # [B, F] -> [B, F, D]
        rows = field_rows(ids, self.field_starts)
        if not self.training:
            return self._serve(rows)
        queries = self.queries(ids)
        with torch.no_grad():
            distances = self.norm(self._distances(queries).flatten(1)).view(
                *ids.shape, *self.codebook.shape[1:3]
            )
            codes = self._nearest(distances, self.limits[rows])
        centroids = self._centroids(codes, torch.arange(ids.shape[1]))
        groups = queries.view_as(centroids)
        self.last_penalty = _squared(centroids - groups.detach()) + self.beta * _squared(
            centroids.detach() - groups
        )
        return queries + (centroids - groups).detach().view_as(queries)

    def penalty(self) -> Tensor:
        """The terms of the loss that move centroids to queries and queries to centroids."""
        return torch.zeros(()) if self.last_penalty is None else self.last_penalty

    def _distances(self, queries: Tensor) -> Tensor:  # [B, F, D] -> [B, F, G, K]
        fields, groups, _, size = self.codebook.shape
        q = queries.view(-1, fields, groups, size)
        dots = torch.einsum("bfgw,fgkw->bfgk", q, self.codebook)
        return q.square().sum(3)[..., None] - 2 * dots + self.codebook.square().sum(3)

    def _nearest(self, distances: Tensor, limits: Tensor) -> Tensor:  # [.., G, K], [..] -> [.., G]
        beyond = torch.arange(distances.shape[-1]) >= limits[..., None, None]
        return distances.masked_fill(beyond, torch.inf).argmin(-1)

    def _centroids(self, codes: Tensor, fields: Tensor) -> Tensor:  # [B, F, G] -> [B, F, G, w]
        _, groups, centroids, size = self.codebook.shape
        line = (fields[:, None] * groups + torch.arange(groups)) * centroids + codes
        return self.codebook.view(-1, size).index_select(0, line.flatten()).view(*line.shape, size)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The codes of all rows, by the statistics of `norm`. [N, G]"""
        shape = self.codebook.shape[:3]
        mean, var = self.norm.running_mean, self.norm.running_var
        assert mean is not None and var is not None
        dense = self.queries.weight.view(-1, self.width)
        found = []
        for f, (first, end) in enumerate(
            zip(self.field_starts[:-1].tolist(), self.field_starts[1:].tolist(), strict=True)
        ):
            center, scale = mean.view(shape)[f], (var.view(shape)[f] + self.norm.eps).rsqrt()
            for start in range(first, end, _ROWS_AT_A_TIME):
                part = slice(start, min(start + _ROWS_AT_A_TIME, end))
                q = dense[part].view(-1, shape[1], 1, self.codebook.shape[3])
                size, c = q.square().sum(3), self.codebook[f]
                dots = torch.einsum("bgxw,gkw->bgk", q, c)
                distances = (size - 2 * dots + c.square().sum(2) - center) * scale
                found.append(self._nearest(distances, self.limits[part]))
        return torch.cat(found)

    def _pack(self) -> tuple[Tensor, Tensor]:
        """Packed codes of the head and of the tail, made again when a weight has changed."""
        running = [t for t in (self.norm.running_mean, self.norm.running_var) if t is not None]
        sources = [self.queries.weight, self.codebook, *running]
        now = tuple(source._version for source in sources)
        if self.packed is None or self.packed_at != now:
            codes, centroids = self.codes(), self.codebook.shape[2]
            head = torch.ones(len(codes), dtype=torch.bool)
            if self.marks is not None:
                head = self.marks.find(torch.arange(len(codes)))[0]
            self.packed = (
                pack_bits(codes[head].flatten(), bits_for(centroids)),
                pack_bits(codes[~head].flatten(), bits_for(self.tail_centroids)),
            )
            self.packed_at = now
        return self.packed

    def _serve(self, rows: Tensor) -> Tensor:  # [B, F] -> [B, F, D]
        self.last_penalty = None
        head_codes, tail_codes = self._pack()
        groups, centroids = self.codebook.shape[1:3]
        flat, line = rows.flatten(), torch.arange(groups)
        if self.marks is None:
            codes = read_bits(head_codes, flat[:, None] * groups + line, bits_for(centroids))
        else:
            is_head, before = self.marks.find(flat)
            codes = torch.empty(len(flat), groups, dtype=torch.int64)
            for mask, packed, rank, size in (
                (is_head, head_codes, before, centroids),
                (~is_head, tail_codes, flat - before, self.tail_centroids),
            ):
                places = rank[mask][:, None] * groups + line
                codes[mask] = read_bits(packed, places, bits_for(size))
        fields = torch.arange(rows.shape[1])
        return self._centroids(codes.view(*rows.shape, groups), fields).flatten(2)

    @property
    def num_params(self) -> int:
        """What is served, as numbers of 32 bits: codes and centroids."""
        limits, rows = self.limits.unique(return_counts=True)
        per_group = sum(int(n) * bits_for(int(k)) for k, n in zip(limits, rows, strict=True))
        bits = per_group * self.codebook.shape[1]
        return self.codebook.numel() + -(-bits // 32)

    @property
    def num_params_training(self) -> int:
        """Numbers that training needs: all queries and centroids."""
        return self.codebook.numel() + self.queries.weight.numel()

    def stored(self) -> dict[str, Tensor]:
        head_codes, tail_codes = self._pack()
        found = {"codes": head_codes, "codebook": self.codebook.detach()}
        if self.marks is not None:
            found |= {"tail_codes": tail_codes, "marks": self.marks.bits}
            found |= {"marks_before": self.marks.before}
        return {**found, "field_starts": self.field_starts}

    def num_bytes(self) -> dict[str, int]:
        sizes = {name: tensor.nbytes for name, tensor in self.stored().items()}
        weights = sum(sizes.pop(name, 0) for name in ("codes", "tail_codes", "codebook"))
        return {"weights": weights, "index": sum(sizes.values()), "unify": 0}


def _squared(difference: Tensor) -> Tensor:
    """Mean of the vectors' squared lengths. [.., w] -> []"""
    return difference.square().sum(-1).mean()
