"""Settings of SCALL, and what refuses those that do not fit."""

from __future__ import annotations

from dataclasses import dataclass

from varemb.search.actor_critic import SACConfig
from varemb.search.segment_training import TrainingConfig
from varemb.search.settings import (
    check_choice,
    check_not_negative,
    check_positive,
    check_rates,
    check_share,
    option,
)
from varemb.search.size_shares import DISTRIBUTIONS

POLICIES = ("scall", "uniform", "random", "frequency")
NUMBERS_PER_MB = 250_000  # decimal megabytes of float32
_MAX_WIDTH = 255  # above it packed rows come in granules, and no budget could be met exactly


@dataclass(frozen=True)
class SCALLConfig(TrainingConfig, SACConfig):
    """Settings of SCALL (Y. Qu et al., CIKM 2024, arXiv 2407.15411), as in the authors' code."""

    memory: float = option(0.0, "B: budget of the table in MB (decimal); or give mean_dim")
    mean_dim: float = option(0.0, "c: numbers per row, of a budget that grows with the rows")
    policy: str = option("scall", "who chooses the sizes: " + ", ".join(POLICIES))
    threshold: int = option(15_000, "new users and items of a segment")
    width: int = option(255, "d_max: the widest row")
    distribution: str = option("power_law", "of the sizes: " + ", ".join(DISTRIBUTIONS))
    scale: str = option("linear", "how an action becomes the distribution's parameter: linear, log")
    split: str = option(
        "budget", "beta is the users' share of the budget; or its odds against rows"
    )
    frequency: str = option("segment", "what ranks the rows: counts of the segment, or of all")
    groups: int = option(256, "groups of the frequency profile in the state")
    min_trials: int = option(11, "trials of a search, at least")
    max_trials: int = option(30, "trials of a search, at most")
    updates: int = option(3, "updates of the agent per trial")
    low: float = option(0.0, "lo: fitness over the reference's that is worth 0; 0: by uniform runs")
    high: float = option(0.0, "hi: the same, worth 10")
    calibrations: int = option(3, "uniform runs for lo and hi in each search")
    seed: int = option(0, "of all randomness")

    @property
    def numbers(self) -> int | None:
        """The budget in numbers; None if it grows with the rows."""
        return int(self.memory * NUMBERS_PER_MB) if self.memory else None


def check_scall(config: SCALLConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_positive(
        "SCALL", config, "threshold", "width", "groups", "max_trials", "batch_size", "steps",
        "max_rounds", "calibrations", "layers",
    )  # fmt: skip
    check_share("SCALL", config, "train_share")
    check_not_negative("SCALL", config, "reservoir", "valid_share")
    if config.valid_share >= 1:
        raise ValueError(f"SCALL: valid_share must be below 1, got {config.valid_share}")
    if (config.low, config.high) != (0, 0) and not 0 <= config.low < config.high:
        raise ValueError(
            f"SCALL: low and high must both be 0, or 0 <= low < high, got {config.low} and "
            f"{config.high}"
        )
    check_rates("SCALL", config)
    if (config.memory > 0) == (config.mean_dim > 0):
        raise ValueError(
            f"SCALL: give a budget, either memory or mean_dim, got memory {config.memory} and "
            f"mean_dim {config.mean_dim}"
        )
    if config.width > _MAX_WIDTH:
        raise ValueError(f"SCALL: width must be at most {_MAX_WIDTH}, got {config.width}")
    if 0 < config.mean_dim < 1:
        raise ValueError(f"SCALL: mean_dim must be at least 1, got {config.mean_dim}")
    check_choice("SCALL", config, "policy", POLICIES)
    check_choice("SCALL", config, "distribution", DISTRIBUTIONS)
    check_choice("SCALL", config, "scale", ("linear", "log"))
    check_choice("SCALL", config, "split", ("budget", "rows"))
    check_choice("SCALL", config, "frequency", ("segment", "all"))
    check_choice("SCALL", config, "early_stop", ("valid", "test"))
    check_choice("SCALL", config, "candidates", ("test_items", "all"))
