"""`varemb compare`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from varemb.commands.parser import add_command, add_threads, set_threads
from varemb.compare import (
    METHODS,
    RANKING_METHODS,
    Comparison,
    Grid,
    RankingComparison,
    all_configs,
    config_of,
    own_fields,
    pairwise_option,
    ranking_configs,
    ranking_option,
    run_compare,
    run_ranking,
    setting_option,
)
from varemb.data import INTERACTIONS
from varemb.experiment import DATA, MODELS, train_option
from varemb.models import RECOMMENDERS, TRAININGS
from varemb.options import add_config, names, real_numbers, seeds, seeds_of, whole_numbers
from varemb.search import PairwiseConfig, TrainConfig

_LR, _WEIGHT_DECAY = (3e-4, 1e-3, 3e-3), (1e-3, 3e-3)  # what --tune tries


# Options that only one kind of model knows, beside those of its methods and trainings.
_OF_CLICKS = ("candidates", "tune", "tune_lr", "tune_weight_decay", "transfer_from", "f_sweep",
              "stability", "importance")  # fmt: skip
_OF_RANKINGS = ("cost_sweep", "user_column", "item_column")


def add_compare(commands: Any) -> None:
    """Adds the command."""
    compare = add_command(
        commands,
        "compare",
        _compare,
        "compare methods over seeds and models: tables, t-tests, and quality against bytes",
        "varemb compare --data ml-1m --data-dir data --methods fde,mde,ras,autodim --seeds 5",
    )
    compare.set_defaults(goes_on=True)
    add = compare.add_argument
    add("--data", required=True, metavar="NAME|FILE|FOLDER",
        help=f"clicks: {', '.join(sorted(DATA))}; rankings: {', '.join(INTERACTIONS)}, a Parquet "
        "or text file of pairs, or a folder with train.txt and test.txt")  # fmt: skip
    add("--data-dir", type=Path, help="folder with the files of a data set that has a name")
    add("--model", type=names, default=("wide-deep",), metavar="NAME,...",
        help=f"of clicks: {', '.join(MODELS)} (default wide-deep); or of rankings: "
        f"{', '.join(RECOMMENDERS)}")  # fmt: skip
    add("--methods", type=names, required=True, metavar="NAME,...",
        help=f"of clicks: {', '.join(METHODS)}; of rankings: {', '.join(RANKING_METHODS)}; name:5 "
        "for seeds of its own")  # fmt: skip
    add("--seeds", type=seeds, default=(0, 1, 2), metavar="N",
        help="5 for 0 to 4, or these: 1,7 (default 3)")  # fmt: skip
    add("--out", type=Path, help="folder of the cells and tables (default: below runs/); "
        "the same command goes on where it stopped")  # fmt: skip
    add_threads(compare)
    _add_clicks(compare)
    _add_rankings(compare)


def _add_clicks(compare: argparse.ArgumentParser) -> None:
    add = compare.add_argument_group("models of clicks").add_argument
    add("--candidates", type=whole_numbers, default=(2, 8, 16, 24, 32), metavar="N,...",
        help="dims to choose from; the last is the width (default 2,8,16,24,32)")  # fmt: skip
    add("--tune", action="store_true",
        help="tune every method alike, on validation, with each model's first seed")  # fmt: skip
    add("--tune-lr", type=real_numbers, metavar="X,...",
        help=f"learning rates that --tune tries (default {','.join(map(str, _LR))})")  # fmt: skip
    add("--tune-weight-decay", type=real_numbers, metavar="X,...", help="weight decays that "
        f"--tune tries (default {','.join(map(str, _WEIGHT_DECAY))})")  # fmt: skip
    add("--transfer-from", choices=sorted(MODELS), help="train the other models with its plans")
    add("--f-sweep", type=whole_numbers, default=(), metavar="N,...", help="AutoDim with these f")
    add("--stability", action="store_true", help="correlation of the dims over the seeds")
    add("--importance", action="store_true", help="models of a single field beside the dims")
    add_config(compare, "models of clicks: training", TrainConfig, train_option, is_sparse=True)
    for config in all_configs():
        add_config(
            compare, f"models of clicks: {_name(config)}", config, partial(setting_option, config),
            only=[field.name for field in own_fields(config)], is_sparse=True,
        )  # fmt: skip


def _add_rankings(compare: argparse.ArgumentParser) -> None:
    group = compare.add_argument_group("models that rank")
    group.add_argument("--cost-sweep", type=real_numbers, default=(), metavar="X,...",
                       help="CIESS with these lambda")  # fmt: skip
    for side in ("user", "item"):
        group.add_argument(f"--{side}-column", default=side, metavar="NAME",
                           help=f"of a file of pairs (default {side})")  # fmt: skip
    by_model = {
        name: ", ".join(f"{model} {training[name]:g}" for model, training in TRAININGS.items())
        for name in TRAININGS["mf"]
    }
    add_config(compare, "models that rank: training", PairwiseConfig, pairwise_option,
               is_sparse=True, defaults=by_model)  # fmt: skip
    seen: set[str] = set()
    for config in ranking_configs():
        option = partial(ranking_option, config)
        only = [
            field.name for field in dataclasses.fields(config)
            if field.name != "method" and option(field.name) not in seen
        ]  # fmt: skip
        seen.update(map(option, only))
        add_config(compare, f"models that rank: {_name(config)}", config, option, only=only,
                   is_sparse=True)  # fmt: skip


def _name(config: type[Any]) -> str:
    return config.__name__.removesuffix("Config").removeprefix("Ranking")


def _grid(options: argparse.Namespace) -> Grid:
    if options.tune:
        return Grid(options.tune_lr or _LR, options.tune_weight_decay or _WEIGHT_DECAY)
    for name in ("--tune-lr", "--tune-weight-decay"):
        if vars(options)[name.strip("-").replace("-", "_")] is not None:
            raise ValueError(f"compare: {name} says what --tune tries: add --tune")
    return Grid()


def _given(
    options: argparse.Namespace, known: Iterable[str], foreign: Iterable[str], kind: str
) -> dict[str, Any]:
    """Option -> value of those that were given.

    Args:
        known: options of methods and trainings of this kind of model.
        foreign: where argparse keeps options of the other kind that have defaults.
        kind: of model, for the error.

    Raises:
        ValueError: an option of the other kind was given.
    """
    given = {name: value for name, value in vars(options).items() if name.startswith("--")}
    wrong = [name for name in given if name not in set(known)]
    wrong += [
        train_option(name)
        for name in foreign
        if vars(options)[name] != options.parser.get_default(name)
    ]
    if wrong:
        raise ValueError(
            f"compare: {wrong[0]} is not for {kind}, such as {options.model[0]}; leave it out"
        )
    return given


def _compare(options: argparse.Namespace) -> int:
    set_threads(options.threads)
    is_ranking = [name in RECOMMENDERS for name in options.model]
    if any(is_ranking) and not all(is_ranking):
        raise ValueError(
            f"compare: models that rank ({', '.join(RECOMMENDERS)}) and models of clicks "
            f"({', '.join(MODELS)}) share no table, got {', '.join(options.model)}"
        )
    out = options.out or Path("runs") / f"compare-{Path(options.data).name}"
    run = _compare_rankings if any(is_ranking) else _compare_clicks
    return 1 if run(options, out) else 0


def _compare_clicks(options: argparse.Namespace, out: Path) -> list[str]:
    train = [train_option(field.name) for field in dataclasses.fields(TrainConfig)]
    known = {setting_option(config, field.name) for config in all_configs()
             for field in own_fields(config)}  # fmt: skip
    given = _given(options, {*train, *known}, _OF_RANKINGS, "models of clicks")
    asked = Comparison(
        options.data,
        options.data_dir,
        options.model,
        seeds_of(options.methods, options.seeds),
        out,
        config_of(TrainConfig, given, train_option, {}),
        options.candidates,
        {name: value for name, value in given.items() if name in known},
        _grid(options),
        options.transfer_from,
        options.f_sweep,
        options.stability,
        options.importance,
    )
    return run_compare(asked, trace=options.traceback)


def _compare_rankings(options: argparse.Namespace, out: Path) -> list[str]:
    train = [pairwise_option(field.name) for field in dataclasses.fields(PairwiseConfig)]
    known = {ranking_option(config, field.name) for config in ranking_configs()
             for field in dataclasses.fields(config)}  # fmt: skip
    asked = RankingComparison(
        options.data,
        options.data_dir,
        options.model,
        seeds_of(options.methods, options.seeds),
        out,
        _given(options, {*train, *known}, _OF_CLICKS, "models that rank"),
        options.cost_sweep,
        (options.user_column, options.item_column),
    )
    return run_ranking(asked, trace=options.traceback)
