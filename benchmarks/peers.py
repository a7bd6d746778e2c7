"""What users have today, each doing the same lookups: padded, size-class and masked tables.

A peer is built from a ``Case`` and gives a ``Lookup``: a function from a batch to its output, and
the tensors it keeps. ``bench_<op>.py`` says which peers an operation has and which of ours each is
compared with. FBGEMM is optional: imported on first use, and where it is missing the table says so.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import Batch, Case
from benchmarks.timing import Runner

FBGEMM_MISSING = "not installed (pip install --no-deps fbgemm-gpu-cpu==1.8.0)"
LEARNING_RATE = 1e-3
INITIAL_VALUE = 0.01


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


def padded_bag(case: Case) -> Lookup:
    """nn.EmbeddingBag(mode="sum", sparse=True) of the full width."""
    module = _sum_bag(_padded_weight(case))
    return Lookup(
        lambda batch: module(batch.indices, batch.offsets),
        lambda: [module.weight],
        (module.weight,),
    )


def _sum_bag(weight: nn.Parameter) -> nn.EmbeddingBag:
    rows, width = weight.shape
    return nn.EmbeddingBag(
        rows, width, mode="sum", sparse=True, include_last_offset=True, _weight=weight
    )


def _masked(case: Case) -> tuple[nn.Parameter, Tensor]:
    """Padded weight and its mask, int32 as CIESS has it: 1 for k < d[r], else 0. [N, D] each."""
    columns = torch.arange(case.spec.width, device=case.device)
    mask = (columns < case.dims[:, None]).to(torch.int32)  # [N, D]
    return _padded_weight(case), mask


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
        return rows.view(case.spec.bags, case.spec.pooling, case.spec.width).sum(dim=1)

    return Lookup(call, lambda: [weight, mask], (weight,))


# Size-class tables and a remap of rows.


class SizeClasses:
    """Rows grouped by dim: one table per distinct dim (rounded up), widest first.

    Attributes:
        sizes: width of each class's table. C whole numbers, descending
        rows: the rows of each class in slot order. C tensors
        starts: first number of each class in the remapped order, N at the end. [C + 1], int64
        remap: a row's place when all rows are sorted by class. [N], int32 (int64 from 2^31 rows on)
    """

    def __init__(self, case: Case, multiple: int) -> None:
        rounded = (case.dims + multiple - 1) // multiple * multiple  # [N]
        self.sizes: list[int] = rounded.unique().flip(0).tolist()
        self.rows = [(rounded == size).nonzero().squeeze(1) for size in self.sizes]
        counts = torch.tensor([0] + [rows.numel() for rows in self.rows])
        self._bounds: list[int] = counts.cumsum(0).tolist()
        self.starts = torch.tensor(self._bounds, device=case.device)
        self.remap = torch.empty(case.spec.rows, dtype=torch.int32, device=case.device)
        places = torch.arange(case.spec.rows, dtype=torch.int32, device=case.device)
        self.remap[torch.cat(self.rows)] = places
        self.bags = case.spec.bags

    def positions(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Remapped rows [L] and, for each class, the positions of its lookups, in order."""
        places = self.remap.index_select(0, batch.indices)  # [L]
        return places, [
            ((places >= start) & (places < stop)).nonzero().squeeze(1)
            for start, stop in itertools.pairwise(self._bounds)
        ]

    def sort(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Lookups in (class, bag) order by one stable sort: slots [L] and offsets [C * G + 1]."""
        places = self.remap.index_select(0, batch.indices).long()  # [L]
        classes = torch.bucketize(places, self.starts[1:-1], right=True)  # [L]
        numbers = torch.arange(self.bags, device=places.device)
        bags = torch.repeat_interleave(numbers, batch.offsets.diff(), output_size=places.numel())
        keys, order = torch.sort(classes * self.bags + bags, stable=True)
        counts = torch.bincount(keys, minlength=len(self.sizes) * self.bags)  # [C * G]
        slots = (places - self.starts[classes]).index_select(0, order)
        return slots, F.pad(counts.cumsum(0), (1, 0))


class FoldSum(torch.autograd.Function):
    """Sum of the classes' zero-padded outputs: [G, sum of sizes] -> [G, D]."""

    @staticmethod
    def forward(ctx: Any, concatenated: Tensor, sizes: list[int], width: int) -> Tensor:
        """Adds block k, [G, sizes[k]], to the first sizes[k] columns."""
        ctx.sizes = sizes
        blocks = torch.split(concatenated, sizes, dim=1)
        out = F.pad(blocks[0], (0, width - sizes[0]))  # [G, D]
        for size, block in zip(sizes[1:], blocks[1:], strict=True):
            out[:, :size] += block
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Gives every block the gradient's first columns."""
        return torch.cat([grad[:, :size] for size in ctx.sizes], dim=1), None, None


def _class_weights(classes: SizeClasses, case: Case) -> list[nn.Parameter]:
    return [
        nn.Parameter(case.full((rows.numel(), size), INITIAL_VALUE))
        for rows, size in zip(classes.rows, classes.sizes, strict=True)
    ]


def class_embeddings(case: Case, multiple: int = 1) -> Lookup:
    """One nn.Embedding per size class; each class's rows are copied into the padded block."""
    classes = SizeClasses(case, multiple)
    weights = _class_weights(classes, case)
    starts = classes.starts.tolist()

    def call(batch: Batch) -> Tensor:
        places, positions = classes.positions(batch)
        out = weights[0].new_zeros(places.numel(), case.spec.width)  # [L, D]
        for weight, size, start, where in zip(
            weights, classes.sizes, starts[:-1], positions, strict=True
        ):
            out[where, :size] = F.embedding(places[where] - start, weight, sparse=True)
        return out

    return Lookup(call, lambda: [*weights, classes.remap], tuple(weights))


def class_bags(case: Case, multiple: int = 1) -> Lookup:
    """One nn.EmbeddingBag per size class, fed by the remap and a stable sort, outputs added up."""
    classes = SizeClasses(case, multiple)
    modules = [_sum_bag(weight) for weight in _class_weights(classes, case)]
    bags = case.spec.bags

    def call(batch: Batch) -> Tensor:
        slots, offsets = classes.sort(batch)
        bounds = offsets[::bags].tolist()
        outs = []
        for k, module in enumerate(modules):
            first, last = bounds[k], bounds[k + 1]
            own = offsets[k * bags : (k + 1) * bags + 1] - first  # [G + 1]
            outs.append(module(slots[first:last], own))
        return FoldSum.apply(torch.cat(outs, dim=1), classes.sizes, case.spec.width)  # type: ignore[no-any-return, no-untyped-call]

    weights = [module.weight for module in modules]
    return Lookup(call, lambda: [*weights, classes.remap], tuple(weights))


# FBGEMM table-batched embeddings, on CPU.


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


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 120 characters."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:120]
