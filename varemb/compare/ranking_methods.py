"""Methods that rank under a sparsity by the names that `varemb compare` knows; their settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from varemb.compare.methods import Settings
from varemb.experiment import train_option
from varemb.search import (
    CIESS,
    CIESSConfig,
    FixedSizes,
    FixedSizesConfig,
    PairwiseConfig,
    RankingESAPN,
    RankingESAPNConfig,
    RankingOptEmbed,
    RankingOptEmbedConfig,
    RankingPEP,
    RankingPEPConfig,
    RankingResult,
    TrainConfig,
)
from varemb.search.dim_agents import check_ciess
from varemb.search.esapn_ranking import check_ranking_esapn
from varemb.search.fixed_sizes import check_fixed_sizes
from varemb.search.optembed_ranking import check_ranking_optembed
from varemb.search.pairwise import MAX_WIDTH, PairData, Prepare
from varemb.search.pep_ranking import check_ranking_pep
from varemb.search.settings import check_choice, check_positive, check_rates, naming_options
from varemb.search.sparsity import UNITS, check_distinct


class RankingSearch(Protocol):
    """What every method that ranks under a sparsity offers."""

    def fit(
        self,
        data: PairData,
        prepare: Prepare,
        training: PairwiseConfig,
        *,
        progress: bool = True,
        checkpoint_dir: Path | None = None,
        resume: bool = False,
    ) -> RankingResult: ...


class MakeRankingSearch(Protocol):
    """A method's class: its settings in, the search out."""

    def __call__(self, config: Any) -> RankingSearch: ...


@dataclass(frozen=True)
class RankingMethod:
    """A search and what makes it this method."""

    search: MakeRankingSearch
    config: type[Any]
    check: Callable[[Any], None]  # raises ValueError for settings that do not fit
    changes: Mapping[str, Any] = field(default_factory=dict)  # against the config's defaults


_CIESS_CHANGES: dict[str, dict[str, Any]] = {  # the paper's ablations, and ours
    "no-walk": {"walk": "none"},
    "code-walk": {"walk": "code"},
    "ou": {"noise": "ou"},
    "uniform": {"noise": "uniform"},
    "no-noise": {"noise": "none"},
    "warm": {"is_warm": True},
}


def _check_levels(config: Any) -> None:
    """Raises ValueError for sparsities, units and widths that no table can have."""
    check_distinct("compare", config.sparsities)
    if not all(0 < sparsity < 1 for sparsity in config.sparsities):
        raise ValueError(
            "compare: sparsities must be in (0, 1), the shares left out, got "
            + ",".join(map(str, config.sparsities))
        )
    if hasattr(config, "unit"):
        check_choice("compare", config, "unit", UNITS)
    check_positive("compare", config, "width")
    check_rates("compare", config)
    if config.width > MAX_WIDTH:
        raise ValueError(f"compare: width must be at most {MAX_WIDTH}, got {config.width}")


RANKING_METHODS: dict[str, RankingMethod] = {
    **{
        name: RankingMethod(FixedSizes, FixedSizesConfig, check_fixed_sizes, {"method": name})
        for name in ("es", "mr", "frequency")
    },
    "pep": RankingMethod(RankingPEP, RankingPEPConfig, check_ranking_pep),
    "optembed": RankingMethod(RankingOptEmbed, RankingOptEmbedConfig, check_ranking_optembed),
    "esapn": RankingMethod(RankingESAPN, RankingESAPNConfig, check_ranking_esapn),
    "esapn-fitted": RankingMethod(
        RankingESAPN, RankingESAPNConfig, check_ranking_esapn, {"is_fitted": True}
    ),
    "ciess": RankingMethod(CIESS, CIESSConfig, check_ciess),
    **{
        f"ciess-{name}": RankingMethod(CIESS, CIESSConfig, check_ciess, changes)
        for name, changes in _CIESS_CHANGES.items()
    },
}

UNIT = "--sparsity-unit"
_COMMON = {"width": "--width", "sparsities": "--sparsity", "unit": UNIT}


def ranking_option(config: type[Any], name: str) -> str:
    """The command-line option of a field of a ranking method's config.

    Example:
        >>> ranking_option(CIESSConfig, "cost"), ranking_option(CIESSConfig, "sparsities")
        ('--ciess-cost', '--sparsity')
        >>> ranking_option(RankingPEPConfig, "s_init"), ranking_option(FixedSizesConfig, "is_full")
        ('--ranking-pep-s-init', '--fixedsizes-is-full')
    """
    if name in _COMMON:
        return _COMMON[name]
    title = config.__name__.removesuffix("Config")
    method = title.removeprefix("Ranking")
    return train_option(f"{'ranking-' * (method != title)}{method.lower()}_{name}")


def pairwise_option(name: str) -> str:
    """The command-line option of a field of PairwiseConfig; what TrainConfig has too says ranking.

    Example:
        >>> pairwise_option("lr"), pairwise_option("lr_factor")
        ('--ranking-lr', '--lr-factor')
    """
    is_shared = name in {each.name for each in dataclasses.fields(TrainConfig)}
    return train_option(f"ranking_{name}" if is_shared else name)


def ranking_configs() -> list[type[Any]]:
    """Every config once, in the order of the methods."""
    return list(dict.fromkeys(method.config for method in RANKING_METHODS.values()))


def config_of(
    config: type[Any],
    settings: Settings,
    option: Callable[[str], str],
    changes: Mapping[str, Any],
) -> Any:
    """A config with the options that were given.

    Args:
        config: its class.
        settings: what the command line gave.
        option: the option of a field.
        changes: fields that the command line does not decide.

    Raises:
        ValueError: what the config refuses; the message names the option.
    """
    names = [each.name for each in dataclasses.fields(config) if each.name not in changes]
    given = {name: settings[option(name)] for name in names if option(name) in settings}
    with naming_options(config, option):
        return config(**given, **changes)


def make_ranking_config(
    method: RankingMethod, settings: Settings, changes: Mapping[str, Any]
) -> Any:
    """The config of a method for one cell, checked.

    Args:
        method: whose it is.
        settings: what the command line gave.
        changes: of this cell, before anything else.

    Raises:
        ValueError: a setting that does not fit; the message names the option.
    """
    option = partial(ranking_option, method.config)
    config = config_of(method.config, settings, option, {**method.changes, **changes})
    with naming_options(method.config, option):
        method.check(config)
        _check_levels(config)
    return config
