"""Matrices that bring rows of different dims to one width: AutoDim Eq. 1, ESAPN Eq. 1.

A projection group is a field and a size; fields share nothing. A table without fields has one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from varemb.storage import LaidOut


def _groups(dims: Tensor, starts: list[int], width: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """groups [F, D + 1, 2] of `ops.lookup_linear`, and the (field, size) of each group."""
    shape = (len(starts) - 1, width + 1, 2)
    groups = torch.full(shape, -1, dtype=torch.int64, device="cpu")
    members: list[tuple[int, int]] = []
    matrix_rows = 0
    for field in range(len(starts) - 1):
        for size in dims[starts[field] : starts[field + 1]].unique().tolist():
            groups[field, size, 0], groups[field, size, 1] = matrix_rows, len(members)
            members.append((field, size))
            matrix_rows += size
    return groups, members


class LinearUnify(LaidOut):
    """One matrix [d, D] and bias [D] per projection group (AutoDim Eq. 1).

    Initial matrices are those of `nn.Linear(d, D)`, uniform in +-1 / sqrt(d); biases start at 0.
    A bias is the same for all rows of a field: with first ones as large as nn.Linear's, what a
    model adds up over fields (FM's products) would start far from 0.

    Args:
        dims: dim of each row. [N]
        starts: first row of each field, then N.
        width: D.

    Attributes:
        weight: the matrices, one below the other. [S, D]
        bias: [C, D]
    """

    groups: Tensor

    def __init__(
        self,
        dims: Tensor,
        starts: list[int],
        width: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        groups, self.members = _groups(dims, starts, width)
        rows = sum(size for _, size in self.members)
        self.weight = nn.Parameter(torch.empty(rows, width, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(len(self.members), width, device=device, dtype=dtype))
        self.keep("groups", groups, self.weight.device)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """First matrices and biases, as at the start."""
        first = 0
        self.bias.zero_()
        for _, size in self.members:
            bound = 1 / math.sqrt(size) if size else 0.0
            self.weight[first : first + size].uniform_(-bound, bound)
            first += size

    def matrices(self) -> tuple[Tensor, Tensor]:
        """weight [S, D] and bias [C, D] of the groups."""
        return self.weight, self.bias

    def extra_repr(self) -> str:
        return f"{len(self.members)} groups, {self.weight.shape[1]} wide"


class ChainUnify(LaidOut):
    """Consecutive maps from each size to the next (ESAPN Eq. 1); the largest size is D.

    A chain of affine maps is affine: a row of size s_k is multiplied once, with
    W_k W_(k+1) ... W_(n-1), computed from the maps at each call.

    Args: as LinearUnify.
    """

    groups: Tensor

    def __init__(
        self,
        dims: Tensor,
        starts: list[int],
        width: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        groups, self.members = _groups(dims, starts, width)
        self.keep("groups", groups, device)
        self.sizes = [
            sorted({size for field, size in self.members if field == f} | {width})
            for f in range(len(starts) - 1)
        ]
        self.maps = nn.ModuleList(
            nn.ModuleList(
                nn.Linear(sizes[j], sizes[j + 1], device=device, dtype=dtype)
                for j in range(len(sizes) - 1)
            )
            for sizes in self.sizes
        )
        self.keep("identity", torch.eye(width, device="cpu", dtype=dtype), device)

    identity: Tensor

    def reset_parameters(self) -> None:
        """The maps' first numbers, those of `nn.Linear`."""
        for maps in self.maps:
            for linear in maps.children():
                linear.reset_parameters()  # type: ignore[operator]

    @torch.no_grad()
    def raise_rows(self, old: Tensor, old_dims: Tensor, new_dims: Tensor) -> Tensor:
        """Rows of larger sizes with the same unified vector: the maps between the sizes, applied.

        Args:
            old: rows of a table without fields, zero-padded. [n, D]
            old_dims: their sizes. [n]
            new_dims: sizes that they shall have. [n]

        Returns:
            [n, D]

        Raises:
            ValueError: a row would shrink.
        """
        if bool((new_dims < old_dims).any()):
            at = int((new_dims < old_dims).nonzero()[0, 0])
            raise ValueError(
                f'resize: init="map" makes rows larger, got {int(old_dims[at])} to '
                f"{int(new_dims[at])} at position {at}"
            )
        rows, (sizes,), maps = old.clone(), self.sizes, list(self.maps[0].children())
        for j in range(len(sizes) - 1):
            raised = ((old_dims <= sizes[j]) & (new_dims > sizes[j])).nonzero()[:, 0]
            if raised.numel():
                rows[raised, : sizes[j + 1]] = maps[j](rows[raised, : sizes[j]])
        return rows

    def matrices(self) -> tuple[Tensor, Tensor]:
        """weight [S, D] and bias [C, D] of the groups, differentiable in the maps."""
        weights: dict[tuple[int, int], Tensor] = {}
        biases: dict[tuple[int, int], Tensor] = {}
        first = next(self.parameters(), self.identity)
        identity = self.identity.to(first.device)  # on meta too
        for field, (sizes, maps) in enumerate(zip(self.sizes, self.maps, strict=True)):
            weight, bias = identity, identity.new_zeros(identity.shape[0])
            weights[field, sizes[-1]], biases[field, sizes[-1]] = weight, bias
            for j in reversed(range(len(sizes) - 1)):
                bias = maps[j].bias @ weight + bias  # type: ignore[index]
                weight = maps[j].weight.T @ weight  # type: ignore[index]
                weights[field, sizes[j]], biases[field, sizes[j]] = weight, bias
        order = self.members
        return torch.cat([weights[m] for m in order]), torch.stack([biases[m] for m in order])
