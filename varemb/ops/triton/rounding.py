# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Numbers stored in the rows' dtype, to nearest or stochastically; the reference's bits.

The random word of a number is Philox4x32-10 (Salmon et al. 2011) of its place in the flat values.
"""

import triton
import triton.language as tl

from varemb.ops.triton.arithmetic import narrow

_MULTIPLIER_0 = tl.constexpr(0xD2511F53)
_MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
_KEY_STEP_0 = tl.constexpr(0x9E3779B9)
_KEY_STEP_1 = tl.constexpr(0xBB67AE85)
_SMALLEST_NORMAL_HALF = tl.constexpr(2.0**-14)
_HALF_STEP = tl.constexpr(2.0**-24)  # of float16 below that
_STEPS_PER_ONE = tl.constexpr(2.0**24)


@triton.jit
def random_word(place, rounding_ptr):
    """The random word of each place in the flat values; rounding [2] int64 is seed and offset."""
    seed = tl.load(rounding_ptr).to(tl.uint64)
    offset = tl.load(rounding_ptr + 1).to(tl.uint64)
    key0, key1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    counter = (place // 4).to(tl.uint64)
    word0, word1 = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    word2 = tl.zeros_like(word0) + offset.to(tl.uint32)
    word3 = tl.zeros_like(word0) + (offset >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        product0 = word0.to(tl.uint64) * _MULTIPLIER_0
        product1 = word2.to(tl.uint64) * _MULTIPLIER_1
        word0 = (product1 >> 32).to(tl.uint32) ^ word1 ^ key0
        word2 = (product0 >> 32).to(tl.uint32) ^ word3 ^ key1
        word1, word3 = product1.to(tl.uint32), product0.to(tl.uint32)
        key0, key1 = key0 + _KEY_STEP_0, key1 + _KEY_STEP_1
    lane = place % 4
    low, high = tl.where(lane == 0, word0, word1), tl.where(lane == 2, word2, word3)
    return tl.where(lane < 2, low, high)


@triton.jit
def cut_low_bits(numbers, word, BITS: tl.constexpr):  # noqa: N803
    """float32 numbers with random low BITS added and then cut, as uint32."""
    mask = (1 << BITS) - 1
    bits = numbers.to(tl.uint32, bitcast=True) + (word & mask)
    return (bits >> BITS) << BITS


@triton.jit
def round_to_half(numbers, word):
    """float32 to float16 by chance; below the normal numbers in steps of 2^-24."""
    steps = tl.abs(numbers) * _STEPS_PER_ONE
    whole = tl.floor(steps)
    chance = (word & 0xFFFFFF).to(tl.float32) * _HALF_STEP
    small = (whole + tl.where(chance < steps - whole, 1.0, 0.0)) * _HALF_STEP
    small_bits = small.to(tl.uint32, bitcast=True)
    sign = (numbers.to(tl.uint32, bitcast=True) >> 31) << 31
    is_small = tl.abs(numbers) < _SMALLEST_NORMAL_HALF
    bits = tl.where(is_small, small_bits | sign, cut_low_bits(numbers, word, 13))
    return bits.to(tl.float32, bitcast=True).to(tl.float16)  # exact, or infinite


@triton.jit
def store_numbers(to_ptr, place, numbers, mask, rounding_ptr):
    """Stores numbers at places of the flat values; stochastically when `rounding` is given."""
    stored = narrow(numbers, to_ptr.dtype.element_ty)
    if rounding_ptr is not None:
        word = random_word(place, rounding_ptr)
        if to_ptr.dtype.element_ty == tl.float16:
            rounded = round_to_half(numbers, word)
        else:
            bits = (cut_low_bits(numbers, word, 16) >> 16).to(tl.uint16)
            rounded = bits.to(tl.bfloat16, bitcast=True)
        exponent = (numbers.to(tl.uint32, bitcast=True) >> 23) & 0xFF
        stored = tl.where(exponent == 0xFF, stored, rounded)  # inf and NaN go to nearest
    tl.store(to_ptr + place, stored, mask=mask)
