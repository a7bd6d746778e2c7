"""Generated clicks whose fields need dims that are known: the ground truth of a search.

Every id of field f has a latent vector z in a random subspace of R^K whose dimension is the field's
planted dim, and

    logit = scale * sum_(f < g) <z_f, z_g>,    label ~ Bernoulli(sigmoid(logit))

so a field of planted dim 2 gains nothing from a third number, and a field of planted dim 8 loses with
fewer than eight. Popular ids are drawn more often (probability falling with the rank of the id).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch

from varemb.data.base import ClickData

PLANTED_DIMS = {"user": 8, "item": 8, "city": 2, "device": 2, "hour": 2}
_CARDINALITIES = {"user": 400, "item": 400, "city": 400, "device": 400, "hour": 400}


def planted_clicks(
    rows: int,
    *,
    dims: Mapping[str, int] | None = None,
    cardinalities: Mapping[str, int] | None = None,
    scale: float = 2.0,
    zipf: float = 0.0,
    seed: int = 0,
) -> ClickData:
    """Clicks whose fields need `dims` numbers per id.
    """
    dims = dict(PLANTED_DIMS if dims is None else dims)
    sizes = dict(_CARDINALITIES if cardinalities is None else cardinalities)
    generator = torch.Generator().manual_seed(seed)
    width = max(dims.values())
    ids, vectors = [], []
    for name, dim in dims.items():
        popularity = torch.arange(1, sizes[name] + 1, dtype=torch.float64).pow(-zipf)
        ids.append(torch.multinomial(popularity, rows, True, generator=generator))
        axes, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
        latent = torch.randn(sizes[name], dim, generator=generator) / math.sqrt(dim)
        vectors.append((latent @ axes[:dim])[ids[-1]])  # [R, K]
    pairs = itertools.combinations(vectors, 2)
    logits = scale * sum((left * right).sum(1) for left, right in pairs)
    labels = torch.bernoulli(torch.sigmoid(logits), generator=generator)
    return ClickData(
        torch.stack(ids, 1).int(), labels, tuple(dims), tuple(sizes[name] for name in dims)
    )
