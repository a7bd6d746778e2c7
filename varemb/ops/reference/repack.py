"""`repack`: rows moved to other places and other dims."""

from __future__ import annotations

import torch
from torch import Tensor


def repack_(out: Tensor, values: Tensor, moves: Tensor) -> None:
    """out[target + k] = values[source + k] for k < kept, 0 for kept <= k < dim, per move."""
    source, target, kept, dim = moves.unbind(1)
    bad = (kept < 0) | (dim < kept) | (source < 0) | (target < 0)
    bad |= (source > values.numel() - kept) | (target > out.numel() - dim)
    if bool(bad.any()):
        at = int(bad.nonzero()[0, 0])
        raise IndexError(
            f"repack: move {at} leaves the tensors of {values.numel()} and {out.numel()} numbers: "
            f"source, target, kept, dim are {', '.join(map(str, moves[at].tolist()))}"
        )
    move = torch.arange(moves.shape[0], device=moves.device).repeat_interleave(dim)
    column = torch.arange(move.numel(), device=moves.device) - (dim.cumsum(0) - dim)[move]
    inside = column < kept[move]
    numbers = out.new_zeros(move.numel())
    numbers[inside] = values[(source[move] + column)[inside]]
    out[target[move] + column] = numbers
