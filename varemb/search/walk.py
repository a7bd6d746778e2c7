"""Exploration of dims: a random walk over neighbouring dims (CIESS Eq. 12 and 13), and noise.

Dims 1..D are the nodes of a graph whose neighbours are at most `reach` apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

LAWS = ("paper", "code", "none")
NOISES = ("gaussian", "ou", "uniform", "none")

# The Ornstein-Uhlenbeck process and the range of uniform noise, as in CIESS's code.
_OU_THETA, _OU_STEP, _OU_SIGMA = 0.15, 0.01, 40.0
_UNIFORM_RANGE = 11.0


def walk_chances(width: int, reach: int, law: str) -> Tensor:  # [D, 2 reach]
    """Chances to go from each dim to each neighbour: reach below, ..., 1 below, 1 above, ...

    Args:
        width: D.
        reach: t, how far a neighbour may be.
        law: "paper": in proportion to the distance, the farther the likelier (Eq. 13); "code": to
            its inverse, as the published code draws.

    Raises:
        ValueError: an unknown law, or a width or reach below 1.

    Example:
        >>> walk_chances(128, 5, "paper")[63, 5:]
        tensor([0.0333, 0.0667, 0.1000, 0.1333, 0.1667])
        >>> walk_chances(128, 5, "code")[63, 5:]
        tensor([0.2190, 0.1095, 0.0730, 0.0547, 0.0438])
    """
    if law not in LAWS[:2] or width < 1 or reach < 1:
        raise ValueError(
            f"walk: the law must be paper or code, width and reach at least 1, got {law!r}, "
            f"{width} and {reach}"
        )
    steps = _steps(reach)
    ends = torch.arange(1, width + 1)[:, None] + steps
    weights = steps.abs().double().pow(1 if law == "paper" else -1)
    weights = weights * ((ends >= 1) & (ends <= width))
    return (weights / weights.sum(1, keepdim=True).clamp(min=1e-300)).float()


def random_walk(
    starts: Tensor,  # [n]
    length: int,
    chances: Tensor,  # [D, 2 reach]
    generator: torch.Generator,
) -> Tensor:  # [n, length + 1]
    """The dims that walks come by, their starts first; a dim may come again.

    Args:
        starts: dims in 1..D. [n], int64
        length: steps of each walk.
        chances: of `walk_chances`. A dim without neighbours (D = 1) stays where it is.
        generator: the randomness.

    Example:
        >>> walk = random_walk(torch.tensor([1, 4]), 3, walk_chances(4, 1, "paper"),
        ...                    torch.Generator().manual_seed(0))
        >>> walk.diff(dim=1).abs().tolist()
        [[1, 1, 1], [1, 1, 1]]
    """
    steps = _steps(chances.shape[1] // 2)
    ends = chances.double().cumsum(1)
    ends = (ends / ends[:, -1:].clamp(min=1e-300)).contiguous()  # the last is 1, whatever rounding
    is_stuck = chances.sum(1) == 0
    dims = [starts]
    for _ in range(length):
        at = dims[-1] - 1
        drawn = torch.rand(len(starts), 1, dtype=torch.float64, generator=generator)
        # Neighbours without a chance have the end of the one before: right=True skips them.
        chosen = torch.searchsorted(ends[at], drawn, right=True)[:, 0].clamp(max=len(steps) - 1)
        dims.append(torch.where(is_stuck[at], dims[-1], dims[-1] + steps[chosen]))
    return torch.stack(dims, 1)


def _steps(reach: int) -> Tensor:  # [2 reach]
    both = torch.arange(-reach, reach + 1)
    return both[both != 0]


@dataclass
class Noise:
    """What is added to the actor's dims.

    Attributes:
        kind: "gaussian" with deviation sigma; "ou", a process that returns to 0 and keeps a
            direction for a while; "uniform" over -11..11; "none".
        sigma: deviation of "gaussian".
        level: where the process stands, one number per draw; empty at the start of an episode.

    Example:
        >>> Noise("none").draw(2, torch.Generator()).tolist()
        [0.0, 0.0]
    """

    kind: str
    sigma: float = 6.0
    level: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        if self.kind not in NOISES or self.sigma < 0:
            raise ValueError(
                f"noise: must be one of {', '.join(NOISES)} with a deviation of at least 0, got "
                f"{self.kind!r} and {self.sigma}"
            )

    def restart(self) -> None:
        """Begins an episode."""
        self.level = torch.empty(0)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """The next numbers. [count]"""
        if self.kind == "none":
            return torch.zeros(count)
        if self.kind == "uniform":
            return (torch.rand(count, generator=generator) * 2 - 1) * _UNIFORM_RANGE
        normal = torch.randn(count, generator=generator)
        if self.kind == "gaussian":
            return self.sigma * normal
        level = self.level if len(self.level) else torch.zeros(count)
        self.level = level * (1 - _OU_THETA * _OU_STEP) + _OU_SIGMA * math.sqrt(_OU_STEP) * normal
        return self.level
