"""How CIESS chooses dims: one agent for all users and one for all items.

A row's state is (frequency scaled per side, (d - 1) / (D - 1), q), CIESS Eq. 6. Its next dim is the
best of a random walk from the actor's dim with noise (Eq. 11, 13 and 14).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from varemb.search.settings import check_positive, option
from varemb.search.sparsity import check_distinct
from varemb.search.td3 import TD3, TD3Config
from varemb.search.walk import LAWS, NOISES, Noise, random_walk, walk_chances


@dataclass(frozen=True)
class CIESSConfig(TD3Config):
    """Settings of the search; the symbols are the paper's, the agents' settings its code's."""

    width: int = option(128, "D, the widest row")
    sparsities: tuple[float, ...] = option((0.8, 0.9, 0.95), "c: shares of the numbers left out")
    unit: str = option("numbers", "what a sparsity counts: numbers, or bytes with the index")
    episodes: int = option(30, "M")
    iterations: int = option(10, "T, trainings of an episode")
    cost: float = option(0.4, "lambda, weight of (d / D)^2 in the reward")
    noise: str = option("gaussian", "added to the actor's dims: " + ", ".join(NOISES))
    sigma: float = option(6.0, "sigma, deviation of gaussian noise")
    noise_scope: str = option("row", "row: one each, before the walk; shared: one a side, after it")
    walk: str = option("paper", "chances of the walk: paper (farther likelier), code, or none")
    reach: int = option(5, "t, how far apart neighbours of the walk may be")
    walk_length: int = option(5, "steps of the walk")
    updates: int = option(1, "updates of the agents after an iteration")
    plans: int = option(4, "l, plans of each sparsity that are trained fully; 4 are one of a kind")
    is_full: bool = option(True, "widen a plan until it takes all numbers its sparsity allows")
    is_warm: bool = option(False, "start a training from the one before; changes the method")
    seed: int = option(0, "of all randomness")


class Side:
    """Users or items: their states, and the agent that gives them dims.

    Args:
        config: settings of the search.
        part: place of the rows among all nodes.
        counts: training pairs of each row; those of rows without are scaled like the rarest. [n]
        generator: all randomness; the caller saves its state.

    Attributes:
        dims: of the last choice. [n], int64
        quality: q of the last training. [n]
    """

    def __init__(
        self, config: CIESSConfig, part: slice, counts: Tensor, generator: torch.Generator
    ) -> None:
        self.config, self.part, self.generator = config, part, generator
        trained = counts[counts > 0]
        low, high = int(trained.min()), int(trained.max())
        self.frequencies = ((counts - low) / max(high - low, 1)).clamp(min=0)
        self.agent = TD3(3, config.width, len(counts), config, generator)
        self.noise = Noise(config.noise, config.sigma)
        self.chances: Tensor | None = None
        if config.walk != "none":
            self.chances = walk_chances(config.width, config.reach, config.walk)
        self.restart()

    def restart(self) -> None:
        """Line 4 of Alg. 1: every row has the full width and full quality."""
        self.dims = torch.full((len(self.frequencies),), self.config.width)
        self.quality = torch.ones(len(self.frequencies))
        self.noise.restart()
        self._before = self._states()

    def _states(self) -> Tensor:  # [n, 3]
        """Eq. 6."""
        scaled = (self.dims - 1) / max(self.config.width - 1, 1)
        return torch.stack([self.frequencies, scaled, self.quality], 1)

    def choose(self) -> None:
        """Gives every row a dim (Eq. 11, 13 and 14)."""
        config, states = self.config, self._states()
        dims, is_shared = self.agent.act(states), config.noise_scope == "shared"
        noise = self.noise.draw(1 if is_shared else len(dims), self.generator)
        chosen = self._whole(dims if is_shared else dims + noise)
        if self.chances is not None:
            tried = random_walk(chosen, config.walk_length, self.chances, self.generator)
            best = self.agent.values(states, tried).argmax(1, keepdim=True)
            chosen = tried.gather(1, best)[:, 0]
        self._before, self.dims = states, self._whole(chosen + noise) if is_shared else chosen

    def act(self) -> Tensor:
        """The actor's dims, without noise and walk. [n], int64"""
        return self._whole(self.agent.act(self._states()))

    def _whole(self, dims: Tensor) -> Tensor:
        return dims.round().clamp(1, self.config.width).long()

    def learn(self, quality: Tensor, rewards: Tensor) -> float:
        """Keeps what followed the choice and updates the agent.

        Args:
            quality: q of each row; NaN for rows of which nothing can be said. [n]
            rewards: r of each row, NaN for the same rows. [n]

        Returns:
            The critics' mean loss.
        """
        self.quality = quality.nan_to_num(0.0)
        known, after = ~rewards.isnan(), self._states()
        self.agent.transitions.add(
            self._before[known], self.dims[known], rewards[known], after[known]
        )
        if not len(self.agent.transitions):
            return 0.0
        losses = [self.agent.update() for _ in range(self.config.updates)]
        return sum(losses) / len(losses)

    def state(self) -> dict[str, Any]:
        """What a checkpoint between two trainings holds; not the generator."""
        return {
            "agent": self.agent.state(),
            "dims": self.dims,
            "quality": self.quality,
            "noise": self.noise.level,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave."""
        self.agent.load_state(state["agent"])
        self.dims, self.quality = state["dims"], state["quality"]
        self.noise.level = state["noise"]


def check_ciess(config: CIESSConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_positive(
        "CIESS", config, "width", "episodes", "iterations", "reach", "updates", "plans", "hidden",
        "batch_size", "capacity",
    )  # fmt: skip
    allowed = {
        "walk": LAWS, "noise": NOISES, "noise_scope": ("row", "shared"),
        "unit": ("numbers", "bytes"),
    }  # fmt: skip
    for name, values in allowed.items():
        if getattr(config, name) not in values:
            raise ValueError(
                f"CIESS: {name} must be {', '.join(values)}, got {getattr(config, name)!r}"
            )
    if config.walk_length < 0 or not config.cost >= 0:
        raise ValueError(
            f"CIESS: walk_length and cost must be at least 0, got {config.walk_length} and "
            f"{config.cost}"
        )
    check_distinct("CIESS", config.sparsities)
