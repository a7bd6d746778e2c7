"""The numbers that a table begins with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from varemb.storage import PackedStorage, PagedStorage

_FILLED_AT_A_TIME = 1 << 24  # first numbers drawn with one seed: 90 ms of a thread
_ROWS_AT_A_TIME = 1 << 16


@torch.no_grad()
def fill_table(storage: PackedStorage | PagedStorage, padding_idx: int | None) -> None:
    """torch's initial values: normal, zeros for the padding row; what no row has stays as it is."""
    numbers = storage.weight.detach()
    if storage.used_numbers == storage.live_numbers:  # no gaps, as in every new table
        _fill_normal(numbers[: storage.live_numbers])
    else:
        for first in range(0, storage.used_rows, _ROWS_AT_A_TIME):
            rows = np.arange(first, min(first + _ROWS_AT_A_TIME, storage.used_rows))
            offset, dim = storage.spans(rows)
            before = np.cumsum(dim) - dim
            places = np.repeat(offset - before, dim) + np.arange(dim.sum())
            where = torch.from_numpy(places).to(numbers.device)
            numbers[where] = torch.empty_like(numbers[where]).normal_()
    if padding_idx is not None:
        storage.row(padding_idx).zero_()


def _fill_normal(numbers: Tensor) -> None:
    """`normal_`, on all threads where there are many numbers: torch draws those of a CPU on one.

    Each part has a seed drawn from torch's generator, so that the threads change nothing.
    """
    if not numbers.is_cpu or numbers.numel() <= _FILLED_AT_A_TIME:
        numbers.normal_()
        return

    def fill(part: Tensor, seed: int) -> None:
        part.normal_(generator=torch.Generator().manual_seed(seed))

    parts = numbers.split(_FILLED_AT_A_TIME)
    seeds: list[int] = torch.randint(2**62, (len(parts),)).tolist()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, parts, seeds))
