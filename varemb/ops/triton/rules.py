# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803
"""What becomes of a row's summed gradient: stored densely, stored sparsely, or applied at once."""

import triton
import triton.language as tl

from varemb.ops.triton.arithmetic import divide, narrow, square_root, widen
from varemb.ops.triton.rounding import store_numbers

SGD, ADAGRAD, ROW_WISE_ADAGRAD, ADAM = 0, 1, 2, 3
_SGD = tl.constexpr(SGD)
_ADAGRAD = tl.constexpr(ADAGRAD)
_ROW_WISE_ADAGRAD = tl.constexpr(ROW_WISE_ADAGRAD)


@triton.jit
def bias_correction(beta, step):
    """1 - beta^step, in float64 like `hyper`."""
    return 1 - tl.exp2(step * tl.log2(beta))


@triton.jit
def apply_rule(
    values_ptr,  # [E]
    state1_ptr,  # [E], or [N] for row-wise Adagrad, or None
    state2_ptr,  # [E], or None
    hyper_ptr,  # [6] float64: lr, weight_decay, eps, beta1, beta2, step
    rounding_ptr,  # [2] int64, or None
    place,  # [n] or [R, D], in the flat values
    inside,  # as place
    grad,  # as place
    row,  # [R], row-wise Adagrad only
    count,  # [R], numbers of the row that are trained
    ALGORITHM: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One optimizer step on the numbers at `place`; values and state are read and written once."""
    lr, eps = tl.load(hyper_ptr).to(WIDE), tl.load(hyper_ptr + 2).to(WIDE)
    weight_decay = tl.load(hyper_ptr + 1).to(WIDE)
    old = widen(tl.load(values_ptr + place, mask=inside, other=0.0), WIDE)
    g = grad + weight_decay * old
    if ALGORITHM == _SGD:
        new = old - lr * g
    elif ALGORITHM == _ADAGRAD:
        # Masked state is 1, so that no lane divides by zero.
        state = tl.load(state1_ptr + place, mask=inside, other=1.0) + g * g
        tl.store(state1_ptr + place, state, mask=inside)
        new = old - divide(lr * g, square_root(state) + eps)
    elif ALGORITHM == _ROW_WISE_ADAGRAD:
        squares = tl.sum(tl.where(inside, g * g, 0.0), 1)
        mean = divide(squares, tl.maximum(count, 1).to(WIDE))
        state = tl.load(state1_ptr + row, mask=count > 0, other=1.0) + mean
        # Each warp reads the state of all R rows, and one of them writes it.
        tl.debug_barrier()
        tl.store(state1_ptr + row, state, mask=count > 0)
        new = old - divide(lr * g, (square_root(state) + eps)[:, None])
    else:
        beta1, beta2 = tl.load(hyper_ptr + 3), tl.load(hyper_ptr + 4)
        step = tl.load(hyper_ptr + 5)
        mean = tl.load(state1_ptr + place, mask=inside, other=1.0)
        mean = beta1.to(WIDE) * mean + (1 - beta1).to(WIDE) * g
        square = tl.load(state2_ptr + place, mask=inside, other=1.0)
        square = beta2.to(WIDE) * square + (1 - beta2).to(WIDE) * g * g
        tl.store(state1_ptr + place, mean, mask=inside)
        tl.store(state2_ptr + place, square, mask=inside)
        mean = divide(mean, bias_correction(beta1, step).to(WIDE))
        root = square_root(divide(square, bias_correction(beta2, step).to(WIDE)))
        new = old - divide(lr * mean, root + eps)
    store_numbers(values_ptr, place, new, inside, rounding_ptr)


@triton.jit
def finish_rows(
    out_ptr,  # dense gradient [E], sparse gradients [n], or the values [E] to train
    positions_ptr,  # [n] int64 for the sparse form, or None
    first_ptr,  # [runs], where each run's sparse gradient begins, or None
    state1_ptr,
    state2_ptr,
    hyper_ptr,  # [6] for the fused form, or None
    rounding_ptr,
    total,  # [R, D], the summed gradients
    run,  # [R]
    row,  # [R]
    offset,  # [R]
    reach,  # [R], numbers of each row that its lookups may train; 0 for no row
    ALGORITHM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Brings the finished sums of R rows to where they belong."""
    column = tl.arange(0, BLOCK_D)[None, :]
    inside = column < reach[:, None]
    place = offset[:, None] + column
    if hyper_ptr is not None:
        apply_rule(
            out_ptr, state1_ptr, state2_ptr, hyper_ptr, rounding_ptr, place, inside, total, row,
            reach, ALGORITHM, WIDE,
        )  # fmt: skip
    else:
        to = place
        if positions_ptr is not None:
            to = tl.load(first_ptr + run, mask=reach > 0, other=0)[:, None] + column
            tl.store(positions_ptr + to, place, mask=inside)
        tl.store(out_ptr + to, narrow(total, out_ptr.dtype.element_ty), mask=inside)
