"""What users have today in plain PyTorch: padded and masked tables, six full tables.

A peer is built from a ``Case`` and gives a ``Lookup``: a function from a batch to its output, and
the tensors it keeps. ``bench_<op>.py`` says which peers an operation has and which of ours each is
compared with. Others are in ``size_classes.py`` and ``fbgemm.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import Batch, Case, six_widths
from benchmarks.timing import Runner

LEARNING_RATE = 1e-3
INITIAL_VALUE = 0.01
MOST_DENSE = 1 << 24  # numbers of a table whose every step passes over all of them
_ROWS_AT_A_TIME = 1 << 18  # of a mask, made without a second copy of it


class UnavailableError(Exception):
    """A peer cannot do what is asked; the message is the reason that the table prints."""


@dataclasses.dataclass(frozen=True)
class Lookup:
    """A table ready to be asked.

    Attributes:
        call: a batch's output, [G, D] pooled or [L, D] in sequence.
        tensors: weights, whatever index or mask they need, and optimizer state kept inside.
        trained: parameters that a torch optimizer has to update; empty if the backward does it.
    """

    call: Callable[[Batch], Tensor]
    tensors: Callable[[], list[Tensor]]
    trained: tuple[Tensor, ...] = ()


Build = Callable[[Case], Lookup]
MakeOptimizer = Callable[[Sequence[Tensor]], torch.optim.Optimizer]


def forward_runner(lookup: Lookup) -> Runner:
    """Times the forward without autograd."""
    kept: list[Tensor] = []

    @torch.no_grad()
    def forward(batch: Batch) -> None:
        kept.append(lookup.call(batch))

    return Runner((("forward", forward),), lookup.tensors, kept.clear)


def step_runner(
    lookup: Lookup, optimizers: Sequence[torch.optim.Optimizer], grad: Tensor
) -> Runner:
    """Times forward, backward from a given gradient of the output, and the optimizers' steps.

    grad: gradient of the output, the same for every contender. [G, D]
    """
    kept: list[Tensor] = []

    def forward(batch: Batch) -> None:
        kept.append(lookup.call(batch))

    def backward(_: Batch) -> None:
        kept[0].backward(grad)  # type: ignore[no-untyped-call]

    def update(_: Batch) -> None:
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def tensors() -> list[Tensor]:
        states = [s for o in optimizers for s in o.state.values()]
        numbers = [v for s in states for v in s.values() if isinstance(v, Tensor) and v.numel() > 1]
        return lookup.tensors() + numbers

    stages = (("forward", forward), ("backward", backward), ("optimizer", update))
    return Runner(stages, tensors, kept.clear)


def torch_sgd(params: Sequence[Tensor]) -> torch.optim.Optimizer:
    """torch.optim.SGD; takes sparse gradients."""
    return torch.optim.SGD(params, lr=LEARNING_RATE)


def torch_adagrad(params: Sequence[Tensor]) -> torch.optim.Optimizer:
    """torch.optim.Adagrad; takes sparse gradients."""
    return torch.optim.Adagrad(params, lr=LEARNING_RATE)


def torch_sparse_adam(params: Sequence[Tensor]) -> torch.optim.Optimizer:
    """torch.optim.SparseAdam."""
    return torch.optim.SparseAdam(params, lr=LEARNING_RATE)


def torch_adam(params: Sequence[Tensor]) -> torch.optim.Optimizer:
    """torch.optim.Adam; wants dense gradients and moves every row in every step."""
    return torch.optim.Adam(params, lr=LEARNING_RATE)


# Padded tables: every row as wide as the widest.


def _padded_weight(case: Case) -> nn.Parameter:
    spec = case.spec
    return nn.Parameter(case.full((spec.rows, spec.width), INITIAL_VALUE))


def padded_embedding(case: Case) -> Lookup:
    """nn.Embedding of the full width."""
    module = nn.Embedding(
        case.spec.rows, case.spec.width, sparse=True, _weight=_padded_weight(case)
    )
    return Lookup(lambda batch: module(batch.indices), lambda: [module.weight], (module.weight,))


def summed_embedding(case: Case) -> Lookup:
    """nn.Embedding of the full width, its rows summed over the bags afterwards."""
    weight = _padded_weight(case)
    return Lookup(
        lambda batch: _sum_bags(F.embedding(batch.indices, weight, sparse=True), case),
        lambda: [weight],
        (weight,),
    )


def _sum_bags(
    rows: Tensor,  # [L, D]
    case: Case,
) -> Tensor:  # [G, D]
    """Sums of bags that are equally long; of single rows there is nothing to sum."""
    spec = case.spec
    if spec.pooling == 1:
        return rows
    return rows.view(spec.bags, spec.pooling, spec.width).sum(dim=1)


def dense_bag(case: Case) -> Lookup:
    """nn.EmbeddingBag(mode="sum") of the full width with a gradient as large as the table.

    Raises:
        UnavailableError: the table is so large that one round would take seconds.
    """
    numbers = case.spec.rows * case.spec.width
    if numbers > MOST_DENSE:
        raise UnavailableError(
            f"not run: every step passes over all {numbers / 1e6:,.0f} million numbers"
        )
    return padded_bag(case, is_sparse=False)


def padded_bag(case: Case, *, is_sparse: bool = True) -> Lookup:
    """nn.EmbeddingBag(mode="sum") of the full width, with sparse gradients unless told not to."""
    module = sum_bag(_padded_weight(case), is_sparse=is_sparse)
    return Lookup(
        lambda batch: module(batch.indices, batch.offsets),
        lambda: [module.weight],
        (module.weight,),
    )


def sum_bag(weight: nn.Parameter, *, is_sparse: bool = True) -> nn.EmbeddingBag:
    """nn.EmbeddingBag(mode="sum") that owns this weight."""
    rows, width = weight.shape
    return nn.EmbeddingBag(
        rows, width, mode="sum", sparse=is_sparse, include_last_offset=True, _weight=weight
    )


def _masked(case: Case) -> tuple[nn.Parameter, Tensor]:
    """Padded weight and its mask, int32 as CIESS has it: 1 for k < d[r], else 0. [N, D] each."""
    columns = torch.arange(case.spec.width, device=case.device)
    weight = _padded_weight(case)
    mask = torch.empty(weight.shape, dtype=torch.int32, device=case.device)  # [N, D]
    for part, dims in zip(
        mask.split(_ROWS_AT_A_TIME), case.dims.split(_ROWS_AT_A_TIME), strict=True
    ):
        part.copy_(columns < dims[:, None])
    return weight, mask


def masked_embedding(case: Case) -> Lookup:
    """Padded table times a mask gathered by row, as CIESS's code does."""
    weight, mask = _masked(case)
    return Lookup(
        lambda batch: F.embedding(batch.indices, weight, sparse=True) * mask[batch.indices],
        lambda: [weight, mask],
        (weight,),
    )


def masked_bag(case: Case) -> Lookup:
    """Padded table times a mask gathered by row, summed over the bags, which are equally long."""
    weight, mask = _masked(case)

    def call(batch: Batch) -> Tensor:
        rows = F.embedding(batch.indices, weight, sparse=True) * mask[batch.indices]  # [L, D]
        return _sum_bags(rows, case)

    return Lookup(call, lambda: [weight, mask], (weight,))


# Six full tables: every row has a place in every table, and all six are looked up.


def six_embeddings(case: Case) -> Lookup:
    """What ESAPN's published code does, without its matrices: pad each row, pick by a one-hot.

    A row's numbers are in the narrowest table that holds its dim.
    """
    spec, widths = case.spec, six_widths(case.spec.width)
    weights = [nn.Parameter(case.full((spec.rows, width), INITIAL_VALUE)) for width in widths]
    sizes = torch.bucketize(case.dims, torch.tensor(widths, device=case.device))  # [N], int64

    def call(batch: Batch) -> Tensor:
        picked = F.one_hot(sizes[batch.indices], len(widths)).to(spec.dtype)  # [L, 6]
        total = torch.zeros((), dtype=spec.dtype, device=case.device)
        for k, weight in enumerate(weights):
            row = F.embedding(batch.indices, weight, sparse=True)  # [L, widths[k]]
            total = total + picked[:, k, None] * F.pad(row, (0, spec.width - widths[k]))
        return total  # [L, D]

    return Lookup(call, lambda: [*weights, sizes], tuple(weights))


def six_bags(case: Case) -> Lookup:
    """Rows of six full tables, summed over the bags."""
    rows = six_embeddings(case)
    return Lookup(lambda batch: _sum_bags(rows.call(batch), case), rows.tensors, rows.trained)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 120 characters."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:120]
