"""Generated clicks whose fields need dims that are known: the ground truth of a search.

Every row has one of K hours. An id of field f answers the K hours with numbers that lie in a
subspace whose dimension is the field's planted dim d_f:

    logit = scale * sum_f <u_f[id_f], c_f[hour]>,   u_f [N_f, d_f],  c_f [K, d_f] orthogonal

and label ~ Bernoulli(sigmoid(logit)). A field of planted dim 2 gains nothing from a third number,
and one of planted dim 8 loses with fewer than eight. The hour itself has no planted dim: an MLP
tells 16 hours apart by any few numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from varemb.data.base import ClickData

HOURS = 16
PLANTED_DIMS = {"user": 8, "item": 4, "city": 2, "device": 2}


def planted_clicks(
    rows: int,
    *,
    dims: Mapping[str, int] | None = None,
    ids_per_field: int = 200,
    scale: float = 1.5,
    seed: int = 0,
) -> ClickData:
    """Clicks whose fields need `dims` numbers per id, and a last field, hour.

    Args:
        rows: clicks to generate, R.
        dims: planted dim of each field but the hour; by default PLANTED_DIMS.
        ids_per_field: rows of each field but the hour.
        scale: standard deviation of a field's part of the logit.
        seed: of all randomness.

    Raises:
        ValueError: a planted dim is not in 1..16.

    Deterministic: yes, from the seed.

    Example:
        >>> clicks = planted_clicks(1000)
        >>> clicks.field_names, clicks.cardinalities
        (('user', 'item', 'city', 'device', 'hour'), (200, 200, 200, 200, 16))
    """
    planted = PLANTED_DIMS if dims is None else dims
    if not all(1 <= dim <= HOURS for dim in planted.values()):
        raise ValueError(f"planted_clicks: dims must be in 1..{HOURS}, got {dict(planted)}")
    generator = torch.Generator().manual_seed(seed)
    hours = torch.randint(HOURS, (rows,), generator=generator)
    columns, logits = [], torch.zeros(rows)
    for dim in planted.values():
        ids = torch.randint(ids_per_field, (rows,), generator=generator)
        answers = torch.randn(ids_per_field, dim, generator=generator) / math.sqrt(dim)
        axes = torch.linalg.qr(torch.randn(HOURS, HOURS, generator=generator))[0][:, :dim]
        logits += scale * (answers[ids] * axes[hours] * math.sqrt(HOURS)).sum(1)
        columns.append(ids)
    labels = torch.bernoulli(torch.sigmoid(logits), generator=generator)
    return ClickData(
        torch.stack([*columns, hours], 1).int(),
        labels,
        (*planted, "hour"),
        (*[ids_per_field] * len(planted), HOURS),
    )
