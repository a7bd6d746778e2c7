"""How a table is trained: which form the gradient of its values takes when a lookup goes backward.

dense   a flat gradient [E], for every torch optimizer;
sparse  the touched numbers alone, as a coalesced sparse tensor of size [E];
fused   none at all: the optimizer runs inside backward, on the touched rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from varemb.ops.reference import MAX, MEAN, SUM, refuse_paged
from varemb.rows import Rows

DENSE, SPARSE, FUSED = 0, 1, 2
_MOST = 2**31 - 1
LEAD = 6  # the arguments of a `*_trained` operation before the index: values, then those of Fused
MODES = {"sum": SUM, "mean": MEAN, "max": MAX}


class Fused(NamedTuple):
    """An optimizer that a table's lookups apply in backward."""

    # [0], requires grad: carries the graph, also where the values do not; its version counts the
    # updates
    anchor: Tensor
    state1: Tensor | None  # [E], or [N] for row-wise Adagrad
    state2: Tensor | None  # [E]
    hyper: Tensor  # [6] float64: lr, weight_decay, eps, beta1, beta2, step
    rounding: Tensor | None  # [2] int64: seed and offset; None rounds to nearest
    algorithm: int


class LookedUp(NamedTuple):
    """What a call looked up, as the gradient operations want it."""

    index: Tensor  # type: ignore[assignment]
    indices: Tensor  # [L]
    offsets: Tensor | None  # [G] or [G + 1]
    per_sample_weights: Tensor | None  # [L]
    limit: Tensor | None  # [1] or [L]
    winners: Tensor | None  # [G, D]
    num_rows: int
    granule: int
    mode: int
    padding_idx: int
    include_last_offset: bool


def is_trained(values: Tensor, fused: Fused | None, *others: Tensor | None) -> bool:
    """Whether a lookup must remember what its backward needs."""
    if not torch.is_grad_enabled():
        return False
    needs = any(other is not None and other.requires_grad for other in others)
    return needs or fused is not None or values.requires_grad


def trained_arguments(
    op: str,
    rows: Rows,
    values: Tensor,
    fused: Fused | None,
    sparse: bool,
    padding_idx: int | None,
) -> tuple[tuple[Any, ...], tuple[int, int, int]]:
    """The leading and the last arguments of a `*_trained` operation.

    Raises:
        ValueError: a sparse gradient of a paged table.
    """
    padding = -1 if padding_idx is None else padding_idx
    if fused is not None:
        lead = (values, *fused[: LEAD - 1])
        return lead, (padding, FUSED, fused.algorithm)
    if sparse:
        refuse_paged(op, rows.index)
    return (values, *[None] * (LEAD - 1)), (padding, SPARSE if sparse else DENSE, 0)


def save_trained(ctx: Any, inputs: tuple[Any, ...], form: int, algorithm: int) -> list[Any]:
    """Keeps on ctx what `values_gradient` needs; returns the tensors to save."""
    values, anchor, *state = inputs[:LEAD]
    ctx.form, ctx.algorithm, ctx.numbers = form, algorithm, values.shape[0]
    if form != FUSED:
        return [None] * (LEAD - 1)
    ctx.addresses = _addresses(values, *state)
    ctx.anchor, ctx.version = anchor, anchor._version
    return [values, *state]


def _is_real(tensor: Tensor | None) -> bool:
    """Not what a graph is traced with."""
    return type(tensor) in (Tensor, torch.nn.Parameter)


def _addresses(*tensors: Tensor | None) -> list[int]:
    """Where numbers are."""
    return [tensor.data_ptr() for tensor in tensors if _is_real(tensor)]  # type: ignore[union-attr]


def check_rows_are_old(op: str, ctx: Any, what: str) -> None:
    """Gradients that are made from a table's rows need those of the lookup.

    Raises:
        RuntimeError: a fused update has come between.
    """
    if ctx.form == FUSED and _is_real(ctx.anchor) and ctx.anchor._version != ctx.version:
        raise RuntimeError(
            f"{op}: the gradient of {what} needs the rows as they were looked up, and another "
            "backward has updated them: look the table up once per step, or use an optimizer with "
            "fused=False"
        )


def values_gradient(
    ops: Any, ctx: Any, saved: tuple[Any, ...], grad: Tensor, looked_up: LookedUp
) -> Tensor | None:
    """The gradient of the flat values in the form that was asked for; None when fused."""
    grad = grad.contiguous()
    if ctx.form == FUSED:
        if _addresses(*saved) != ctx.addresses:
            raise RuntimeError(
                "lookup: a fused update needs the table and its state themselves, got copies from "
                "a hook on saved tensors (save_on_cpu, offloading); look up outside of it"
            )
        ops.coalesce_update_(*saved, grad, *looked_up, ctx.algorithm)
        if _is_real(ctx.anchor):
            increment_version(ctx.anchor)
        return None
    if not ctx.needs_input_grad[0]:
        return None
    if ctx.form == SPARSE:
        positions, numbers = ops.coalesce(grad, *looked_up, ctx.numbers)
        return torch.sparse_coo_tensor(
            positions[None], numbers, (ctx.numbers,), is_coalesced=True, check_invariants=False
        )
    dense: Tensor = ops.coalesce_dense(grad, *looked_up, ctx.numbers)
    return dense


def register_training(
    library: torch.library.Library,
    name: str,
    forward: Callable[..., Any],
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., tuple[Any, ...]],
) -> None:
    """Makes an operation differentiable once: torch.library.register_autograd for operations that
    are called with all arguments, without its cost of 60 microseconds a call for filling in
    defaults. A second derivative is a RuntimeError.

    Args:
        library: where the operation is defined.
        name: the operation, "lookup_trained" of `lookup`.
        forward: what it computes; gets the arguments.
        setup: keeps on ctx what backward needs; gets ctx, the arguments and the output.
        backward: gets ctx and the output's gradients; returns one gradient per argument.
    """

    class Trained(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = forward(*arguments)
            setup(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            if torch.is_grad_enabled():  # create_graph=True
                return _final_gradients(name.removesuffix("_trained"), backward, ctx, grads)
            return backward(ctx, *grads)

    def apply(*arguments: Any) -> Any:
        return Trained.apply(*arguments)

    _APPLY[library.ns, name] = apply
    library.impl(name, forward, "CompositeExplicitAutograd")
    library.impl(name, apply, "Autograd")


class _Final(torch.autograd.Function):
    """Gradients that raise when they are differentiated: torch would take them for constants."""

    @staticmethod
    def forward(ctx: Any, op: str, gradients: list[Tensor], *causes: Tensor | None) -> Any:
        ctx.op = op
        return tuple(gradients)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            f"{ctx.op}: double backward is not supported, got a gradient made with "
            "create_graph=True to differentiate"
        )


def _final_gradients(
    op: str, backward: Callable[..., tuple[Any, ...]], ctx: Any, grads: tuple[Any, ...]
) -> tuple[Any, ...]:
    """What `backward` returns, as gradients that hang on all that they were computed from."""
    causes = (*grads, *ctx.saved_tensors)  # before a fused update changes the values
    with torch.no_grad():
        found = backward(ctx, *grads)
    given = [gradient for gradient in found if gradient is not None]
    final = iter(_Final.apply(op, given, *causes) if given else ())
    return tuple(None if gradient is None else next(final) for gradient in found)


_APPLY: dict[tuple[str, str], Callable[..., Any]] = {}  # namespace and operation -> its autograd


def call_trained(ops: Any, name: str, *arguments: Any) -> Any:
    """Calls a differentiable operation: as one when a graph is traced, else its autograd function
    at once, which spares two ways through torch's dispatcher and Python."""
    if torch.compiler.is_compiling():
        return getattr(ops, name)(*arguments)
    return _APPLY[ops.name, name](*arguments)


def sequence(
    index: Tensor, indices: Tensor, limit: Tensor | None, rows: tuple[int, int], padding_idx: int
) -> LookedUp:
    """A lookup without bags."""
    num_rows, granule = rows
    return LookedUp(
        index, indices, None, None, limit, None, num_rows, granule, SUM, padding_idx, False
    )


def check_call(op: str, values: Tensor, rows: Rows, indices: Tensor) -> None:
    """The part of the contract that all lookups share.

    Raises:
        TypeError: indices are no tensor, or not int32 or int64.
        ValueError: shapes or devices do not fit together.
    """
    if not isinstance(indices, Tensor):
        raise TypeError(f"{op}: indices must be a Tensor, got {type(indices).__name__}")
    if indices.dtype not in (torch.int32, torch.int64):
        name = str(indices.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: indices must be int32 or int64, got {name}")
    if values.dim() != 1 or values.shape[0] != rows.numbers:
        raise ValueError(
            f"{op}: values must be flat with {rows.numbers} numbers, got shape {list(values.shape)}"
        )
    if indices.device != values.device:
        raise ValueError(
            f"{op}: indices must be on the table's device {values.device}, got {indices.device}"
        )


def check_bags(
    values: Tensor, indices: Tensor, offsets: Tensor, mode: str, weights: Tensor | None
) -> None:
    """The part of the contract that pooled lookups add.

    Raises:
        ValueError: an unknown mode, or offsets or weights that do not fit the indices.
    """
    if mode not in MODES:
        raise ValueError(f"lookup_bag: mode must be sum, mean or max, got {mode!r}")
    if indices.dim() != 1 or offsets.dim() != 1:
        raise ValueError(
            "lookup_bag: indices and offsets must be one-dimensional, "
            f"got {list(indices.shape)} and {list(offsets.shape)}"
        )
    if offsets.dtype != indices.dtype:
        raise ValueError(
            f"lookup_bag: offsets must have the dtype of indices {indices.dtype}, "
            f"got {offsets.dtype}"
        )
    if offsets.device != values.device:
        raise ValueError(
            f"lookup_bag: offsets must be on the table's device {values.device}, "
            f"got {offsets.device}"
        )
    if weights is None:
        return
    if mode != "sum":
        raise ValueError(f"lookup_bag: per_sample_weights need mode 'sum', got {mode!r}")
    if weights.shape != indices.shape or weights.dtype != values.dtype:
        raise ValueError(
            f"lookup_bag: per_sample_weights must be {values.dtype} of shape "
            f"{list(indices.shape)}, got {weights.dtype} of shape {list(weights.shape)}"
        )


def limit_tensor(op: str, limit: int | Tensor | None, indices: Tensor) -> Tensor | None:
    """`limit` as the operations take it: int32, one for all lookups or one per lookup.

    Raises:
        ValueError: an int is negative, or the shape is not that of the indices. Negative numbers of
            a tensor count as 0: to look at them would wait for the device.
        TypeError: it is not whole.
    """
    if limit is None:
        return None
    if isinstance(limit, Tensor):
        if limit.dtype.is_floating_point or limit.dtype == torch.bool:
            raise TypeError(f"{op}: limit must be an int tensor, got {limit.dtype}")
        if limit.shape != indices.shape:
            raise ValueError(
                f"{op}: limit must have the shape of indices {list(indices.shape)}, "
                f"got {list(limit.shape)}"
            )
        if limit.device != indices.device:
            raise ValueError(
                f"{op}: limit must be on the device of indices {indices.device}, got {limit.device}"
            )
        return limit.reshape(-1).clamp(0, _MOST).to(torch.int32).contiguous()
    if isinstance(limit, float):
        raise TypeError(f"{op}: limit must be whole, got {limit}")
    limit = min(limit, _MOST)
    if limit < 0:
        raise ValueError(f"{op}: limit must not be negative, got {limit}")
    return torch.full((1,), limit, dtype=torch.int32, device=indices.device)
