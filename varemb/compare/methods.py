"""The methods by the names that `varemb compare` knows them by, and their settings."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from varemb.experiment import train_option
from varemb.search import (
    PEP,
    AutoDim,
    AutoDimConfig,
    FieldData,
    MakeModel,
    Mde,
    MdeConfig,
    PEPConfig,
    RandomSearch,
    RasConfig,
    SearchResult,
    TrainConfig,
    Uniform,
    UniformConfig,
)
from varemb.search.autodim import check_autodim
from varemb.search.autoemb import AutoEmb, AutoEmbConfig, check_autoemb
from varemb.search.darts import DARTS, DARTSConfig, check_darts
from varemb.search.dpq import DPQ, DPQConfig, check_dpq
from varemb.search.mde import check_mde
from varemb.search.mgqe import MGQE, MGQEConfig, check_mgqe
from varemb.search.nis import NIS, NISConfig, check_nis
from varemb.search.optembed import OptEmbed, OptEmbedConfig, check_optembed
from varemb.search.pep import check_pep
from varemb.search.ras import check_ras
from varemb.search.uniform import check_uniform

Settings = Mapping[str, Any]  # option of the command line -> value that was given


class Search(Protocol):
    """What every class of `varemb/search` offers."""

    def fit(
        self,
        make_model: MakeModel,
        train: FieldData,
        valid: FieldData,
        *,
        progress: bool = True,
        checkpoint_dir: Path | None = None,
        resume: bool = False,
    ) -> SearchResult: ...


class MakeSearch(Protocol):
    """A search's class: its settings in, the search out."""

    def __call__(self, config: Any) -> Search: ...


@dataclass(frozen=True)
class Method:
    """A search and what makes it this method."""

    search: MakeSearch
    config: type[Any]
    check: Callable[[Any], None]  # raises ValueError for settings that do not fit
    changes: Mapping[str, Any] = field(default_factory=dict)  # against the config's defaults
    # What the config takes from the training: for methods that choose while they train, which are
    # then also tuned by searching again, once per setting.
    shared: tuple[str, ...] = ()
    has_plan: bool = True  # so that its dims can be given to another model


# Of methods that choose while they train.
_TRAINING = ("batch_size", "lr", "weight_decay", "init_std", "max_epochs", "patience")

METHODS: dict[str, Method] = {
    "fde": Method(Uniform, UniformConfig, check_uniform, {"share": 1.0, "numbers": 0}),
    "uniform": Method(Uniform, UniformConfig, check_uniform),
    "mde": Method(Mde, MdeConfig, check_mde),
    "ras": Method(RandomSearch, RasConfig, check_ras),
    "darts": Method(DARTS, DARTSConfig, check_darts, shared=_TRAINING, has_plan=False),
    "autoemb": Method(AutoEmb, AutoEmbConfig, check_autoemb, shared=_TRAINING, has_plan=False),
    "nis": Method(NIS, NISConfig, check_nis),
    "dpq": Method(DPQ, DPQConfig, check_dpq, has_plan=False),
    "mgqe": Method(MGQE, MGQEConfig, check_mgqe, has_plan=False),
    "pep": Method(PEP, PEPConfig, check_pep, has_plan=False),
    "optembed": Method(OptEmbed, OptEmbedConfig, check_optembed),
    "autodim-s": Method(AutoDim, AutoDimConfig, check_autodim, {"joint": True}),
    "autodim": Method(AutoDim, AutoDimConfig, check_autodim, {"joint": False}),
    **{
        f"autodim-{name}": Method(
            AutoDim, AutoDimConfig, check_autodim, {"joint": False, "variant": name}
        )
        for name in ("ad-1", "ad-2", "ad-3", "ad-4")
    },
}

# Settings that all methods share: --candidates gives the dims, its last the width.
_COMMON = {"seed", "candidates", "width", "training"}


def find_method(name: str) -> Method:
    """The method of a name.

    Raises:
        ValueError: there is none; the message says what may have been meant.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"compare: no method {name!r}, there are {', '.join(METHODS)}{hint}")
    return METHODS[name]


def setting_option(config: type[Any], name: str) -> str:
    """The command-line option of a field of a method's config.

    Example:
        >>> setting_option(AutoDimConfig, "theta_lr"), setting_option(RasConfig, "candidates")
        ('--autodim-theta-lr', '--candidates')
    """
    if name in _COMMON:
        return train_option(name)
    return train_option(f"{config.__name__.removesuffix('Config').lower()}_{name}")


def own_fields(config: type[Any]) -> list[dataclasses.Field[Any]]:
    """The fields of a config that have an option of their own; not what comes from the training."""
    shared = {name for method in METHODS.values() if method.config is config
              for name in method.shared}  # fmt: skip
    return [each for each in dataclasses.fields(config) if each.name not in _COMMON | shared]


def all_configs() -> list[type[Any]]:
    """Every config once, in the order of the methods."""
    return list(dict.fromkeys(method.config for method in METHODS.values()))


def make_config(
    method: Method,
    settings: Settings,
    candidates: tuple[int, ...],
    training: TrainConfig,
    changes: Mapping[str, Any],
) -> Any:
    """The config of a method for one cell.

    Args:
        method: whose it is.
        settings: what the command line gave.
        candidates: dims to choose from; the last is the width.
        training: how the result is trained; the seed is its seed.
        changes: of this cell, before anything else.
    """
    common = {
        "seed": training.seed,
        "candidates": candidates,
        "width": candidates[-1],
        "training": training,
    }
    values: dict[str, Any] = {}
    for each in dataclasses.fields(method.config):
        option = setting_option(method.config, each.name)
        if each.name in common:
            values[each.name] = common[each.name]
        elif each.name in method.shared:
            values[each.name] = getattr(training, each.name)
        elif option in settings:
            values[each.name] = settings[option]
    return method.config(**{**values, **method.changes, **changes})


def config_options(config: Any) -> dict[str, Any]:
    """What a config adds to the options that decide a cell."""
    return {
        setting_option(type(config), each.name): getattr(config, each.name)
        for each in dataclasses.fields(config)
        if each.name not in ("seed", "training")
    }


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for a name that is not known, or given twice."""
    seen: set[str] = set()
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"compare: no {what} {name!r}, there are {', '.join(known)}{hint}")
        if name in seen:
            raise ValueError(f"compare: the {what} {name} is given twice")
        seen.add(name)


def check_used(settings: Settings, used: Iterable[str], methods: Iterable[str]) -> None:
    """Raises ValueError for a setting that no cell uses.

    Args:
        settings: what the command line gave.
        used: options that decide a cell.
        methods: that are compared, for the error.
    """
    unused = [name for name in settings if name not in set(used)]
    if unused:
        raise ValueError(f"compare: {unused[0]} is not for {', '.join(methods)}; leave it out")


def check_seeds(models: Sequence[str], methods: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError unless there are models, and methods with distinct seeds each."""
    if not models or not methods:
        raise ValueError("compare: at least one model and one method are needed")
    for name, seeds in methods.items():
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"compare: {name} needs distinct seeds, got {seeds}")
