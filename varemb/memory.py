"""The memory report: bytes of a model's tables as allocated, and if every row were D wide."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from varemb.storage import Storage, tensors_of

PARTS = ("weights", "index", "unify", "gradient", "optimizer")


@dataclass(frozen=True)
class TableMemory:
    """One table. Bytes are those of the allocated buffers."""

    name: str
    num_rows: int  # N; of a resizable table the rows that are there
    width: int  # D
    params: int  # E, the sum of the dims
    allocated: int  # numbers that the weight has room for; more than E in a resizable table
    params_full: int  # N * D
    bytes: dict[str, int]  # by part, see PARTS
    bytes_full: int  # weights, gradient and optimizer state if every row were D wide


@dataclass(frozen=True)
class MemoryReport:
    """What a model's tables take, in bytes and in numbers.

    Attributes:
        tables: each of them, in the order of the model's modules.

    Example:
        >>> import varemb
        >>> emb = varemb.VarEmbedding(1000, 64, dims=16)
        >>> report = varemb.memory_report(emb)
        >>> report.bytes["weights"], report.bytes["index"], report.bytes_full
        (64000, 1344, 256000)
    """

    tables: tuple[TableMemory, ...]

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of all tables, by part."""
        return {part: sum(table.bytes[part] for table in self.tables) for part in PARTS}

    @property
    def total(self) -> int:
        """Bytes of all parts of all tables."""
        return sum(self.bytes.values())

    @property
    def bytes_full(self) -> int:
        """Bytes of weights, gradients and optimizer state if every row were D wide."""
        return sum(table.bytes_full for table in self.tables)

    @property
    def params(self) -> int:
        """Numbers stored: the sum of the dims of all rows that are there."""
        return sum(table.params for table in self.tables)

    @property
    def params_full(self) -> int:
        """Numbers if every row were D wide."""
        return sum(table.params_full for table in self.tables)

    @property
    def ratio(self) -> float:
        """Bytes now over bytes if uniform; index and matrices count on our side only."""
        return self.total / max(self.bytes_full, 1)

    def __str__(self) -> str:
        head = [
            "table",
            "rows",
            "width",
            "numbers",
            "allocated",
            *PARTS,
            "total",
            "uniform",
            "ratio",
        ]
        lines = [head]
        for t in self.tables:
            total = sum(t.bytes.values())
            counts = [
                t.num_rows,
                t.width,
                t.params,
                t.allocated,
                *(t.bytes[part] for part in PARTS),
            ]
            ratio = f"{total / max(t.bytes_full, 1):.3f}"
            lines.append([t.name, *map(str, [*counts, total, t.bytes_full]), ratio])
        if len(self.tables) > 1:
            allocated = sum(table.allocated for table in self.tables)
            counts = [self.params, allocated, *self.bytes.values(), self.total, self.bytes_full]
            lines.append(["all", "", "", *map(str, counts), f"{self.ratio:.3f}"])
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in lines
        )


def memory_report(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
) -> MemoryReport:
    """Bytes of every jagged table in a model, measured on the buffers that hold them.

    Args:
        model: any module; its VarEmbedding and VarEmbeddingBag tables are reported.
        optimizer: one or several whose state for the tables is counted.

    Example:
        >>> import varemb
        >>> emb = varemb.VarEmbedding(1000, 64, dims=16)
        >>> memory_report(emb, varemb.optim.RowWiseAdagrad(emb.parameters())).bytes["optimizer"]
        4000
    """
    optimizers = (
        [] if optimizer is None
        else [optimizer] if isinstance(optimizer, torch.optim.Optimizer)
        else list(optimizer)
    )  # fmt: skip
    tables = []
    for name, module in model.named_modules():
        for storage in module.children():
            if isinstance(storage, Storage):
                label = name or "table"
                tables.append(_table(label, storage, getattr(module, "unify", None), optimizers))
    if isinstance(model, Storage):
        tables.append(_table("table", model, None, optimizers))
    return MemoryReport(tuple(tables))


def _nbytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the distinct buffers behind the tensors."""
    buffers = {}
    for tensor in tensors:
        if tensor is None:
            continue
        parts = [tensor._indices(), tensor._values()] if tensor.is_sparse else [tensor]
        for part in parts:
            buffers[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
    return sum(buffers.values())


def _table(
    name: str,
    storage: Storage,
    unify: nn.Module | None,
    optimizers: list[torch.optim.Optimizer],
) -> TableMemory:
    weight, rows = storage.weight, storage.rows
    state = [
        value
        for optimizer in optimizers
        for key, value in optimizer.state.get(weight, {}).items()
        if isinstance(value, Tensor) and key != "step"
    ]
    matrices = [] if unify is None else tensors_of(unify)
    full = storage.num_present * rows.width
    per_row = {id(tensor) for each in storage.states() for tensor in each.per_row}

    def is_per_number(tensor: Tensor) -> bool:
        return tensor.numel() == rows.numbers and id(tensor) not in per_row

    held = [tensor for tensor in (weight, weight.grad, *state) if tensor is not None]
    return TableMemory(
        name=name,
        num_rows=storage.num_present,
        width=rows.width,
        params=storage.live_numbers,
        allocated=weight.untyped_storage().nbytes() // weight.element_size(),
        params_full=full,
        bytes={
            "weights": _nbytes([weight]),
            "index": storage.index_nbytes(),
            "unify": _nbytes(matrices),
            "gradient": _nbytes([weight.grad]),
            "optimizer": _nbytes(state),
        },
        bytes_full=sum(
            tensor.element_size() * (full if is_per_number(tensor) else tensor.numel())
            for tensor in held
            if not tensor.is_sparse
        ),
    )
