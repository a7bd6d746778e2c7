"""Lookups that every operation is tested with (CONTRIBUTING, "Test an operation")."""

import os
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch

from varemb.ops.backend import why_not
from varemb.testing import DTYPES, assert_agree, dims_of


def need_interpreter() -> None:
    """Skips a module when Triton's interpreter is switched off; where it is on, Triton must run."""
    unless_given = "0" if torch.cuda.is_available() else "1"  # as conftest.py sets it
    if os.environ.get("TRITON_INTERPRET", unless_given) == "0":
        pytest.skip("Triton's interpreter is off (TRITON_INTERPRET=1)", allow_module_level=True)
    reason = why_not("triton", "cpu")
    assert reason is None, reason


class Case(NamedTuple):
    """A table's dims and the rows to look up."""

    dims: torch.Tensor  # [N]
    width: int
    indices: torch.Tensor  # [L]


def _skewed(rows: int, lookups: int) -> torch.Tensor:
    ranks = torch.arange(1, rows + 1, dtype=torch.float64)
    return torch.multinomial(ranks**-1.5, lookups, replacement=True)


def make_cases() -> dict[str, Case]:
    """Fresh cases; the same for every call."""
    torch.manual_seed(7)
    return {
        "no_indices": Case(dims_of("uniform", 40, 8), 8, torch.zeros(0, dtype=torch.int64)),
        "one_row": Case(torch.tensor([5]), 8, torch.tensor([0])),
        "repeats": Case(dims_of("uniform", 50, 7), 7, torch.randint(0, 5, (300,))),
        "dim_one": Case(dims_of("ones", 33, 4), 4, torch.randint(0, 33, (70,))),
        "dim_zero": Case(dims_of("zeros", 30, 4), 4, torch.randint(0, 30, (11,))),
        "equal": Case(dims_of("equal", 100, 16), 16, torch.randint(0, 100, (257,))),
        "odd_width": Case(dims_of("uniform", 97, 37), 37, torch.randint(0, 97, (513,))),
        "last_row": Case(dims_of("uniform", 49, 19), 19, torch.tensor([48, 0, 48, 47])),
        "skewed_dims": Case(dims_of("skewed", 1000, 64), 64, _skewed(1000, 1200)),
        "wide": Case(dims_of("uniform", 60, 300), 300, torch.randint(0, 60, (90,))),
        "widest": Case(dims_of("odd", 30, 2048), 2048, torch.randint(0, 30, (40,))),
        "one_block": Case(dims_of("odd", 24, 130), 130, torch.arange(24).repeat(3)),
    }


CASES = make_cases()

# Cases in which a row is looked up more than 256 times. Triton adds such a row in pieces, so its
# sums are rounded elsewhere; all other sums are the reference's bit for bit.
LONG_RUNS = ("skewed_dims",)


def combine(
    backends: Sequence[str], first: Iterable[Any], second: Iterable[Any], third: Iterable[Any]
) -> list[tuple[Any, ...]]:
    """A backend with a value of each choice, for `parametrize`; the third choice is the shortest.

    All combinations, but for Triton's interpreter, which is slow, as few as let every two values of
    different choices meet.
    """
    first, second, third = list(first), list(second), list(third)
    assert len(third) <= min(len(first), len(second))
    few = [
        (a, b, third[(i + j) % len(third)])
        for (i, a), (j, b) in product(enumerate(first), enumerate(second))
    ]
    every = list(product(first, second, third))
    return [(each, *c) for each in backends for c in (few if each == "triton" else every)]


def combine_dtypes(
    backends: Sequence[str], few: Sequence[str] = ("odd_width",)
) -> list[tuple[str, str, torch.dtype]]:
    """A backend with a case and a dtype, for `parametrize`.

    All combinations, but for Triton's interpreter every case in float32 and a few in all dtypes: by
    default the one whose rows straddle every alignment.
    """
    return [
        (backend, name, dtype)
        for backend, name, dtype in product(backends, CASES, DTYPES)
        if backend != "triton" or dtype == torch.float32 or name in few
    ]


def assert_sums_agree(backend: str, name: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    """Raises AssertionError unless the sums of a case are the reference's, bit for bit if short."""
    if backend == "triton" and name in LONG_RUNS:
        assert_agree(got, expected)
    else:
        assert torch.equal(got, expected), f"{backend} differs from the reference in {name}"
