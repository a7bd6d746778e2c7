"""Stochastic rounding to 16 bits: up or down with the chance that makes the mean exact.

The random word of a number depends on seed, offset and the number's place in the flat values
alone, so every backend, on any number of threads, stores the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def _halves(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high 32 bits of int64 numbers."""
    return numbers & _WORD, (numbers >> 32) & _WORD


def philox(counter: Tensor, key: Tensor) -> Tensor:  # [n, 4], [2] -> [n, 4]
    """Four random words per counter: Philox4x32-10 (Salmon et al. 2011), 32-bit words in int64."""
    c0, c1, c2, c3 = counter.unbind(1)
    k0, k1 = key.unbind()
    for _ in range(_ROUNDS):
        # A product past 2^63 wraps, and its bits are those of the unsigned product.
        low0, high0 = _halves(c0 * _MULTIPLIERS[0])
        low1, high1 = _halves(c2 * _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return torch.stack([c0, c1, c2, c3], 1)


def random_words(positions: Tensor, rounding: Tensor) -> Tensor:  # [n], [2] -> [n]
    """The random word of each place in the flat values; rounding is seed and offset."""
    seed, offset = rounding.unbind()
    place = positions // 4
    counter = torch.stack([*_halves(place), *(h.expand_as(place) for h in _halves(offset))], 1)
    words = philox(counter, torch.stack(_halves(seed)))
    return words.gather(1, (positions % 4)[:, None])[:, 0]


def _cut(numbers: Tensor, words: Tensor, bits: int) -> Tensor:
    """Adds random low bits to float32 numbers and cuts these bits off."""
    mask = (1 << bits) - 1
    raised = numbers.view(torch.int32).long() + (words & mask)
    return (raised & ~mask).int().view(torch.float32)


def _round_float16(numbers: Tensor, words: Tensor) -> Tensor:
    """Below 2^-14 float16 is a fixed-point format, in steps of 2^-24."""
    steps = numbers.abs() * 2.0**24
    chance = (words & 0xFFFFFF).float() * 2.0**-24
    below = steps.floor() + (chance < steps - steps.floor())
    small = (below * 2.0**-24).copysign(numbers)
    return torch.where(numbers.abs() < 2.0**-14, small, _cut(numbers, words, 13)).half()


def check_rounding(rounding: Tensor | None, dtype: torch.dtype) -> None:
    """Raises ValueError when stochastic rounding is asked of rows of more than 16 bits."""
    if rounding is not None and dtype not in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"update: rounding needs values of float16 or bfloat16, got {name}")


def round_stochastically(
    numbers: Tensor, positions: Tensor, rounding: Tensor | None, dtype: torch.dtype
) -> Tensor:  # [n], [n] -> [n]
    """`numbers` in `dtype`, to nearest without `rounding`; what is not finite goes to nearest."""
    nearest = numbers.to(dtype)
    if rounding is None:
        return nearest
    words = random_words(positions, rounding)
    if dtype == torch.float16:
        rounded = _round_float16(numbers, words)
    else:
        rounded = _cut(numbers, words, 16).bfloat16()
    return torch.where(numbers.isfinite(), rounded, nearest)
