"""A table whose rows are codes of centroids: trained as a full table, served from packed codes.

Row r is cut into G groups of D / G numbers, and group g stands for the nearest centroid of its
codebook, c = C[f, g, code]. In training (VQ of `search/dpq.py`) a full table of queries q is kept
and the codes follow it:

    code = argmin_k norm(|q_g - C[f, g, k]|^2)      norm: batch normalisation, no affine
    out  = q + sg(c - q)                            gradient straight through to q
    loss = ... + mean |c - sg(q)|^2 + beta mean |sg(c) - q|^2

So training takes the memory of the full table and more; only what is served is small: log2 K bits
per group, without gaps, and the codebooks.

The squared distance is linear in u = (|q|^2, q), with the factors a_k = (1, -2 C_k), so that its
mean and variance over a batch follow from those of u, and the distances are normalised inside the
one product that computes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varemb.nn import VarEmbedding
from varemb.ops import field_rows
from varemb.search.epochs import first_rows
from varemb.search.statistics import first_share

_ROWS_AT_A_TIME = 16384  # while codes are made
# Of the normalisation. Squared distances of small first numbers vary by 1e-9: a common 1e-5 would
# drown them.
_EPS = 1e-14
_ROWS_PER_MARK = 64
_ONES = torch.tensor([f"{byte:b}".count("1") for byte in range(256)])


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
        block, slot = rows // _ROWS_PER_MARK, rows % _ROWS_PER_MARK
        places = torch.arange(_ROWS_PER_MARK // 8)
        found = self.bits[block[:, None] * len(places) + places].long()  # [n, 8]
        earlier = (slot[:, None] - 8 * places).clamp(0, 8)  # bits of each byte before the row
        ones = _ONES[found & ((1 << earlier) - 1)].sum(1)
        return read_bits(self.bits, rows, 1).bool(), self.before[block] + ones


class QuantizedTable(nn.Module):
    """Rows as codes of centroids. [B, F] -> [B, F, D]

    In training rows come from the queries, straight through the centroids; otherwise they are read
    from the packed codes, which follow every change of the weights. A field of fewer rows than K
    has as many centroids as rows.

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
        codebooks: C of each field. F parameters [G, K, D / G]
    """

    field_starts: Tensor
    limits: Tensor
    mean: Tensor
    var: Tensor
    batches: Tensor

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
        self.width, self.groups, self.beta = width, groups, beta
        self.queries = VarEmbedding.for_fields(list(cardinalities), width)
        nn.init.normal_(self.queries.weight, std=init_std)
        sizes = [min(centroids, rows) for rows in cardinalities]  # K of each field
        self.codebooks = nn.ParameterList(
            torch.randn(groups, size, width // groups) * init_std for size in sizes
        )
        self.register_buffer("field_starts", starts, persistent=False)
        marked = torch.ones(int(starts[-1]), dtype=torch.bool) if head is None else head
        # How many centroids each row may use: in training only. [N]
        limits = torch.where(marked, centroids, tail_centroids)
        self.register_buffer("limits", limits, persistent=False)
        self.spans = [groups * size for size in sizes]  # of each field in the statistics
        self.register_buffer("mean", torch.zeros(sum(self.spans)))
        self.register_buffer("var", torch.ones(sum(self.spans)))
        self.register_buffer("batches", torch.tensor(0))  # that both have seen
        self.marks = None if head is None else Marks(head)
        self.bits = bits_for(centroids), bits_for(tail_centroids)
        self.num_head = int(marked.sum())
        self.packed: tuple[Tensor, Tensor] | None = None
        self.packed_at: tuple[int, ...] = ()
        self.last_penalty: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor:  # [B, F] -> [B, F, D]
        rows = field_rows(ids, self.field_starts)
        if not self.training:
            return self._serve(rows)
        queries = self.queries(ids)
        q = queries.unflatten(2, (self.groups, -1))  # [B, F, G, w]
        codes = self._choose(q.detach(), self.limits[rows])
        c = self._centroids(codes)
        self.last_penalty = _squared(c - q.detach()) + self.beta * _squared(c.detach() - q)
        return queries + (c - q).detach().flatten(2)

    def decayed(self) -> list[nn.Parameter]:
        """The queries. Decay would draw centroids, which the loss moves but gently, to 0 from where
        their queries are."""
        return [self.queries.weight]

    def penalty(self) -> Tensor:
        """The terms of the loss that move centroids to queries and queries to centroids."""
        return torch.zeros(()) if self.last_penalty is None else self.last_penalty

    @torch.no_grad()
    def _choose(self, q: Tensor, limits: Tensor) -> Tensor:
        """Codes by the batch's own statistics. [B, F, G, w], [B, F] -> [B, F, G]"""
        found = []
        self.batches += 1
        share = first_share(self.batches)
        spans = zip(self.mean.split(self.spans), self.var.split(self.spans), strict=True)
        for f, (running_mean, running_var) in enumerate(spans):
            u, factors, constant = self._linear(q[:, f], f)
            center = u.mean(1, keepdim=True)  # [G, 1, 1 + w]
            covariance = (u - center).transpose(1, 2) @ (u - center) / len(q)
            mean = (factors @ center.transpose(1, 2)).squeeze(2) + constant  # [G, K]
            var = ((factors @ covariance) * factors).sum(2).clamp_min(0)
            running_mean.lerp_(mean.flatten(), share)
            unbiased = var.flatten() * (len(q) / max(len(q) - 1, 1))
            running_var.lerp_(unbiased, share)
            found.append(_nearest(u, factors, constant, mean, var, limits[:, f]))
        return torch.stack(found, 1)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The codes of all rows, by the running statistics. [N, G]"""
        dense = self.queries.weight.view(-1, self.groups, self.width // self.groups)
        ends = self.field_starts.tolist()
        spans = zip(self.mean.split(self.spans), self.var.split(self.spans), strict=True)
        found = []
        for f, (mean, var) in enumerate(spans):
            for start in range(ends[f], ends[f + 1], _ROWS_AT_A_TIME):
                part = slice(start, min(start + _ROWS_AT_A_TIME, ends[f + 1]))
                u, factors, constant = self._linear(dense[part], f)
                shape = constant.shape
                statistics = mean.view(shape), var.view(shape)
                found.append(_nearest(u, factors, constant, *statistics, self.limits[part]))
        return torch.cat(found)

    def _linear(self, q: Tensor, f: int) -> tuple[Tensor, Tensor, Tensor]:  # q [n, G, w]
        """|q - C_k|^2 = factors u + constant. [G, n, 1 + w], [G, K, 1 + w], [G, K]"""
        c = self.codebooks[f]
        u = torch.cat([q.square().sum(2, keepdim=True), q], 2).transpose(0, 1)
        return u, torch.cat([torch.ones_like(c[..., :1]), -2 * c], 2), c.square().sum(2)

    def _centroids(self, codes: Tensor) -> Tensor:  # [B, F, G] -> [B, F, G, w]
        found = []
        for f, codebook in enumerate(self.codebooks):
            line = torch.arange(self.groups) * codebook.shape[1] + codes[:, f]  # [B, G]
            found.append(codebook.flatten(0, 1).index_select(0, line.flatten()))
        return torch.stack([part.view(-1, self.groups, part.shape[1]) for part in found], 1)

    def _pack(self) -> tuple[Tensor, Tensor]:
        """Packed codes of the head and of the tail, made again when a weight has changed."""
        sources = [self.queries.weight, *self.codebooks, self.mean, self.var]
        now = tuple(source._version for source in sources)
        if self.packed is None or self.packed_at != now:
            codes = self.codes()
            head = torch.ones(len(codes), dtype=torch.bool)
            if self.marks is not None:
                head = self.marks.find(torch.arange(len(codes)))[0]
            self.packed = (
                pack_bits(codes[head].flatten(), self.bits[0]),
                pack_bits(codes[~head].flatten(), self.bits[1]),
            )
            self.packed_at = now
        return self.packed

    def _serve(self, rows: Tensor) -> Tensor:  # [B, F] -> [B, F, D]
        self.last_penalty = None
        packed, flat, line = self._pack(), rows.flatten(), torch.arange(self.groups)
        if self.marks is None:
            codes = read_bits(packed[0], flat[:, None] * self.groups + line, self.bits[0])
        else:
            is_head, before = self.marks.find(flat)
            codes = torch.empty(len(flat), self.groups, dtype=torch.int64)
            tiers = (is_head, before), (~is_head, flat - before)
            for (mask, rank), part, bits in zip(tiers, packed, self.bits, strict=True):
                codes[mask] = read_bits(part, rank[mask][:, None] * self.groups + line, bits)
        return self._centroids(codes.view(*rows.shape, self.groups)).flatten(2)

    @property
    def num_params(self) -> int:
        """What is served, as numbers of 32 bits: codes and centroids."""
        num_tail = len(self.limits) - self.num_head
        bits = self.groups * (self.num_head * self.bits[0] + num_tail * self.bits[1])
        return self._num_centroid_numbers() + -(-bits // 32)

    @property
    def num_params_training(self) -> int:
        """Numbers that training needs: all queries and centroids."""
        return self._num_centroid_numbers() + self.queries.weight.numel()

    def _num_centroid_numbers(self) -> int:
        return sum(codebook.numel() for codebook in self.codebooks)

    def stored(self) -> dict[str, Tensor]:
        codebooks = {f"codebook_{f}": c.detach() for f, c in enumerate(self.codebooks)}
        found = {"codes": self._pack()[0], **codebooks, "field_starts": self.field_starts}
        if self.marks is not None:
            found |= {"tail_codes": self._pack()[1], "marks": self.marks.bits}
            found |= {"marks_before": self.marks.before}
        return found

    def num_bytes(self) -> dict[str, int]:
        sizes = {name: tensor.nbytes for name, tensor in self.stored().items()}
        index = sum(sizes.pop(name, 0) for name in ("field_starts", "marks", "marks_before"))
        return {"weights": sum(sizes.values()), "index": index, "unify": 0}


def _nearest(
    u: Tensor, factors: Tensor, constant: Tensor, mean: Tensor, var: Tensor, limits: Tensor
) -> Tensor:
    """argmin_k (factors_k u + constant_k - mean_k) / sqrt(var_k + eps), k < limit. -> [n, G]"""
    scale = torch.rsqrt(var + _EPS)  # [G, K]
    shift = (constant - mean) * scale
    scores = torch.baddbmm(shift[:, None], u, (factors * scale[..., None]).transpose(1, 2))
    if int(limits.min()) < scores.shape[2]:
        beyond = torch.arange(scores.shape[2]) >= limits[:, None]  # [n, K]
        scores = scores.masked_fill_(beyond, torch.inf)
    return scores.argmin(2).T


def _squared(difference: Tensor) -> Tensor:
    """Mean of the vectors' squared lengths. [.., w] -> []"""
    return difference.square().sum(-1).mean()
