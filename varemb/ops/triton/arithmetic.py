# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803
"""Arithmetic that is rounded as IEEE 754 asks, like the reference's."""

import triton
import triton.language as tl


@triton.jit
def divide(x, y):
    """x / y to the nearest number; Triton's own float32 quotient is an approximation."""
    return tl.div_rn(x, y) if x.dtype == tl.float32 else x / y


@triton.jit
def square_root(x):
    """The square root to the nearest number."""
    return tl.sqrt_rn(x) if x.dtype == tl.float32 else tl.sqrt(x)


@triton.jit
def widen(x, WIDE: tl.constexpr):
    """x in a wider dtype, exactly; the interpreter's own cast loses the subnormal bfloat16."""
    if x.dtype == tl.bfloat16:
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(WIDE)


# The interpreter casts to bfloat16 by cutting bits off, and multiplies its bits as whole numbers;
# compiled, both are the hardware's.
_IS_INTERPRETED = tl.constexpr(not isinstance(widen, triton.JITFunction))


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """x in the dtype of the rows, to nearest, ties to even."""
    if _IS_INTERPRETED and tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        narrowed = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        narrowed = x.to(DTYPE)
    return narrowed


@triton.jit
def dot_operand(x):
    """x as `tl.dot` takes it; products of 16-bit numbers are exact in float32 either way."""
    return widen(x, tl.float32) if _IS_INTERPRETED and x.dtype == tl.bfloat16 else x
