"""What `from_pretrained` takes over: a dense table's numbers, and the options of its module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def refuse_own_forward(op: str, module: nn.Module, what: str) -> None:
    """Raises ValueError where a module computes something else than the torch class it is of.

    Args:
        op: who asks, for messages.
        module: an `nn.Embedding` or `nn.EmbeddingBag`, perhaps of a subclass.
        what: the module's name, for messages.
    """
    kind = nn.Embedding if isinstance(module, nn.Embedding) else nn.EmbeddingBag
    if type(module).forward is not kind.forward or "forward" in vars(module):
        raise ValueError(
            f"{op}: {what} must look rows up as nn.{kind.__name__} does, got a "
            f"{type(module).__name__} with a forward of its own, which would be lost"
        )
    if parametrize.is_parametrized(module):
        raise ValueError(f"{op}: {what} must have a weight of its own, got a parametrized one")
    hooks = [getattr(module, name) for name in _HOOKS]
    hooks += [module.weight._backward_hooks, module.weight._post_accumulate_grad_hooks]
    if any(hooks):
        count = sum(map(len, filter(None, hooks)))
        raise ValueError(
            f"{op}: {what} must have no hooks, which would be lost (those of "
            f"torch.nn.utils.weight_norm and spectral_norm too), got {count}"
        )


def pretrained(
    module: str, source: Tensor | nn.Module, kind: type[nn.Module], options: dict[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """The dense table [N, D], and what is not None of the options given and the source's own.

    Args:
        module: who asks, for messages.
        source: a table [N, D], or a module of `kind`.
        kind: nn.Embedding or nn.EmbeddingBag.
        options: as the caller gave them; None: as the source has it.

    Raises:
        TypeError: the source is neither.
        ValueError: a tensor of other dimensions, or a module with a forward of its own or hooks.
    """
    op = f"{module}.from_pretrained"
    if isinstance(source, kind):
        refuse_own_forward(op, source, "embeddings")
        own = {name: getattr(source, name) for name in options}
        options = {name: own[name] if given is None else given for name, given in options.items()}
        source = source.weight
    if not isinstance(source, Tensor):
        raise TypeError(
            f"{op}: embeddings must be a tensor [N, D] or nn.{kind.__name__}, "
            f"got {type(source).__name__}"
        )
    if source.dim() != 2:
        raise ValueError(f"{op}: embeddings must be [N, D], got shape {list(source.shape)}")
    return source.detach(), {name: value for name, value in options.items() if value is not None}
