"""A table that stores only the numbers of an irregular mask: compressed sparse rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from varemb.ops import field_rows
from varemb.search.epochs import first_rows


class CsrTable(nn.Module):
    """Rows whose stored numbers stand in any columns; the others are 0. [B, F] -> [B, F, D]

    Row r has the numbers values[offsets[r] : offsets[r + 1]], in the columns of the same places.
    Offsets are int32 below 2^31 numbers; a column takes one byte up to a width of 256, else two.

    Args:
        cardinalities: rows of each field. [F]
        dense: the numbers. [N, D]
        mask: which of them are stored. [N, D] bool

    Attributes:
        values: the stored numbers, row by row. Parameter [E]

    Raises:
        ValueError: dense or mask is not [N, D].

    Example:
        >>> dense = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        >>> table = CsrTable([2, 1], dense, torch.tensor([[0, 1], [0, 0], [1, 1]]).bool())
        >>> table(torch.tensor([[0, 0], [1, 0]])).tolist()
        [[[0.0, 2.0], [5.0, 6.0]], [[0.0, 0.0], [5.0, 6.0]]]
        >>> table.num_params, table.num_bytes()["weights"]
        (3, 12)
    """

    offsets: Tensor
    columns: Tensor
    field_starts: Tensor

    def __init__(self, cardinalities: Sequence[int], dense: Tensor, mask: Tensor) -> None:
        super().__init__()
        starts = first_rows(cardinalities)
        if dense.dim() != 2 or dense.shape != mask.shape or len(dense) != int(starts[-1]):
            raise ValueError(
                f"CsrTable: numbers and mask must be [{int(starts[-1])}, D], got "
                f"{list(dense.shape)} and {list(mask.shape)}"
            )
        self.width = dense.shape[1]
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
        is_small = int(ends[-1]) < 2**31
        self.register_buffer("offsets", ends.int() if is_small else ends)
        columns = mask.nonzero()[:, 1].to(torch.uint8 if self.width <= 256 else torch.int16)
        self.register_buffer("columns", columns)
        self.register_buffer("field_starts", starts, persistent=False)
        self.values = nn.Parameter(dense.detach()[mask])

    def forward(self, ids: Tensor) -> Tensor:  # [B, F] -> [B, F, D]
        rows = field_rows(ids, self.field_starts).flatten()  # [L]
        first = self.offsets[rows].long()
        counts = self.offsets[rows + 1].long() - first
        line = torch.repeat_interleave(counts)  # which lookup each number belongs to. [T]
        shift = first - (counts.cumsum(0) - counts)
        places = torch.arange(len(line), device=line.device) + shift[line]
        targets = line * self.width + self.columns[places].long()
        out = self.values.new_zeros(len(rows) * self.width)
        # A target occurs once: nothing is added up.
        out = out.index_put((targets,), self.values.index_select(0, places))
        return out.view(*ids.shape, self.width)

    @property
    def num_params(self) -> int:
        """E, the numbers; columns and offsets are index."""
        return self.values.numel()

    def stored(self) -> dict[str, Tensor]:
        return {
            "values": self.values.detach(),
            "columns": self.columns,
            "offsets": self.offsets,
            "field_starts": self.field_starts,
        }

    def num_bytes(self) -> dict[str, int]:
        sizes = {name: tensor.nbytes for name, tensor in self.stored().items()}
        weights = sizes.pop("values")
        return {"weights": weights, "index": sum(sizes.values()), "unify": 0}
