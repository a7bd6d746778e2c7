"""Swaps a model's nn.Embedding and nn.EmbeddingBag modules for tables with the plan's dims."""

from __future__ import annotations

import numpy as np
from torch import nn

from varemb.nn import VarEmbedding, VarEmbeddingBag
from varemb.nn.pretrained import refuse_own_forward
from varemb.plan import SizePlan


def convert(model: nn.Module, plan: SizePlan) -> nn.Module:
    """Replaces, in place, the modules that the plan names; each row keeps its first d[r] numbers.

    Make optimizers afterwards: they would hold on to the old weights. A module that the model has
    under several names is replaced under all of them by one table. The old tables are held until
    all new ones are made.

    Args:
        model: contains an `nn.Embedding` or `nn.EmbeddingBag` at every path the plan names, such
            as "user" or "towers.0.item".
        plan: dims per table.

    Returns:
        The model. Modules that the plan does not name stay as they are.

    Raises:
        TypeError: the plan is no SizePlan.
        ValueError: a name is not in the model, is another kind of module or a subclass with a
            forward of its own, has hooks, or has another number of rows or width, an option that
            tables of jagged rows lack, or a weight that another module has too; two names of one
            module have different dims. Nothing has been replaced then.

    Example:
        >>> model = nn.Sequential(nn.Embedding(3, 4))
        >>> convert(model, SizePlan({"0": [1, 4, 2]}, width=4))[0]
        VarEmbedding(
          3, 4
          (storage): PackedStorage(3 rows, width 4, 7 numbers)
        )
    """
    if not isinstance(plan, SizePlan):
        raise TypeError(f"convert: the plan must be a SizePlan, got {type(plan).__name__}")
    planned = {name: _checked(model, plan, name) for name in plan}
    first_names: dict[int, str] = {}  # by id: modules need not be hashable
    for name, module in planned.items():
        first = first_names.setdefault(id(module), name)
        if not np.array_equal(plan[first], plan[name]):
            raise ValueError(
                f"convert: {first!r} and {name!r} are one module and must have the same dims, "
                "the plan has others"
            )
    tables = {key: _jagged(planned[name], plan, name) for key, name in first_names.items()}
    for path, found in list(model.named_modules(remove_duplicate=False)):
        if id(found) in tables:
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, tables[id(found)])
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
    refuse_own_forward("convert", module, repr(name))
    planned = (len(plan[name]), plan.widths[name])
    own = (module.num_embeddings, module.embedding_dim)
    if planned != own:
        raise ValueError(f"convert: the plan has {planned} rows and width for {name!r}, got {own}")
    for path, weight in model.named_parameters(remove_duplicate=False):
        if weight is module.weight and model.get_submodule(path.rpartition(".")[0]) is not module:
            raise ValueError(
                f"convert: the weight of {name!r} must be its own, got one that is {path!r} too: "
                "untie them or leave it out of the plan"
            )
    return module


def _jagged(
    module: nn.Embedding | nn.EmbeddingBag, plan: SizePlan, name: str
) -> VarEmbedding | VarEmbeddingBag:
    kind = VarEmbedding if isinstance(module, nn.Embedding) else VarEmbeddingBag
    try:
        table = kind.from_pretrained(module, not module.weight.requires_grad, dims=plan[name])
    except ValueError as error:
        raise ValueError(f"convert: {name!r}: {error}") from None
    return table.train(module.training)
