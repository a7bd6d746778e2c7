"""Swaps a model's nn.Embedding and nn.EmbeddingBag modules for tables with the plan's dims."""

from __future__ import annotations

from torch import nn

from varemb.nn import VarEmbedding, VarEmbeddingBag
from varemb.plan import SizePlan


def convert(model: nn.Module, plan: SizePlan) -> nn.Module:
    """Replaces, in place, the modules that the plan names; each row keeps its first d[r] numbers.

    Make optimizers afterwards: they would hold on to the old weights.

    Args:
        model: contains an `nn.Embedding` or `nn.EmbeddingBag` at every path the plan names, such
            as "user" or "towers.0.item".
        plan: dims per table.

    Returns:
        The model. Modules that the plan does not name stay as they are.

    Raises:
        ValueError: a name is not in the model, is another kind of module, or has another number of
            rows or width; nothing has been replaced then.

    Example:
        >>> model = nn.Sequential(nn.Embedding(3, 4))
        >>> convert(model, SizePlan({"0": [1, 4, 2]}, width=4))[0]
        VarEmbedding(
          3, 4
          (storage): PackedStorage(3 rows, width 4, 7 numbers)
        )
    """
    found = {name: _checked(model, plan, name) for name in plan}
    for name, module in found.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _jagged(module, plan, name))
    return model


def _checked(model: nn.Module, plan: SizePlan, name: str) -> nn.Embedding | nn.EmbeddingBag:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise ValueError(
            f"convert: the plan names {name!r}, the model has no such module"
        ) from None
    if not isinstance(module, nn.Embedding | nn.EmbeddingBag):
        raise ValueError(
            f"convert: {name!r} must be nn.Embedding or nn.EmbeddingBag, "
            f"got {type(module).__name__}"
        )
    planned = (len(plan[name]), plan.widths[name])
    own = (module.num_embeddings, module.embedding_dim)
    if planned != own:
        raise ValueError(f"convert: the plan has {planned} rows and width for {name!r}, got {own}")
    return module


def _jagged(
    module: nn.Embedding | nn.EmbeddingBag, plan: SizePlan, name: str
) -> VarEmbedding | VarEmbeddingBag:
    kind = VarEmbedding if isinstance(module, nn.Embedding) else VarEmbeddingBag
    table = kind.from_pretrained(module, not module.weight.requires_grad, dims=plan[name])
    return table.train(module.training)
