"""`update_`: an optimizer step on the rows that a batch touched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varemb.ops import reference
from varemb.ops.backend import choose, namespace
from varemb.ops.schemas import LIBRARIES
from varemb.rows import Rows

ALGORITHMS = {
    "sgd": reference.SGD,
    "adagrad": reference.ADAGRAD,
    "row_wise_adagrad": reference.ROW_WISE_ADAGRAD,
    "adam": reference.ADAM,
}


def update_(
    values: Tensor,  # [E], changed
    state1: Tensor | None,  # [E] or [N], changed
    state2: Tensor | None,  # [E], changed
    hyper: Tensor,  # [6]
    rounding: Tensor | None,  # [2]
    rows: Rows,
    grad: Tensor,  # sparse [E]
    *,
    algorithm: int,
    backend: str | None = None,
) -> None:
    """Changes the touched numbers and their state in place; nothing else is read or written.

    Args:
        values: the flat numbers. [E]
        state1: Adagrad's sum of squares or Adam's mean [E]; row-wise Adagrad's [N]. float32, or
            float64 for float64 values.
        state2: Adam's mean of squares. [E]
        hyper: lr, weight_decay, eps, beta1, beta2, step (from 1). [6], float64.
        rounding: seed and offset of stochastic rounding, for float16 and bfloat16 rows; None
            rounds to nearest. [2], int64.
        rows: where each row's numbers are, packed.
        grad: sparse gradient of values: of each touched row its numbers from the first on.
        algorithm: one of ALGORITHMS.
        backend: as in `lookup`.

    Raises:
        ValueError: the gradient is not sparse, or its places are not whole beginnings of rows;
            rounding is given for rows of more than 16 bits; the table is paged.

    Deterministic: yes, whatever the number of threads.
    """
    reference.refuse_paged("update", rows.index)
    if not grad.is_sparse:
        raise ValueError("update: grad must be sparse (tables built with sparse=True), got dense")
    grad = grad.coalesce()
    ops = namespace(choose(backend, values.device.type))
    ops.update_(
        values,
        state1,
        state2,
        hyper,
        rounding,
        rows.index,
        grad.indices()[0].contiguous(),
        grad.values(),
        rows.num_rows,
        rows.width,
        rows.granule,
        algorithm,
    )


def _fake(*arguments: Any) -> None:
    return None


for _name, _library in LIBRARIES.items():
    torch.library.register_fake(f"{_name}::update_", _fake, lib=_library)
    torch.library.register_fake(f"{_name}::coalesce_update_", _fake, lib=_library)
