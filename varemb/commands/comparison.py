"""`varemb compare`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from varemb.commands.parser import add_command, add_threads, set_threads
from varemb.compare import (
    METHODS,
    Comparison,
    Grid,
    all_configs,
    own_fields,
    run_compare,
    setting_option,
)
from varemb.experiment import DATA, MODELS, train_option
from varemb.options import (
    add_config,
    names,
    read_config,
    real_numbers,
    seeds,
    seeds_of,
    whole_numbers,
)
from varemb.search import TrainConfig

_LR, _WEIGHT_DECAY = (3e-4, 1e-3, 3e-3), (1e-3, 3e-3)  # what --tune tries


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
    add("--data", required=True, choices=sorted(DATA), help="the data set")
    add("--data-dir", type=Path, help="folder with the data set's files")
    add("--model", type=names, default=("wide-deep",), metavar="NAME,...",
        help=f"of {', '.join(MODELS)} (default wide-deep)")  # fmt: skip
    add("--methods", type=names, required=True, metavar="NAME,...",
        help=f"of {', '.join(METHODS)}; name:5 for seeds of its own")  # fmt: skip
    add("--seeds", type=seeds, default=(0, 1, 2), metavar="N",
        help="5 for 0 to 4, or these: 1,7 (default 3)")  # fmt: skip
    add("--candidates", type=whole_numbers, default=(2, 8, 16, 24, 32), metavar="N,...",
        help="dims to choose from; the last is the width (default 2,8,16,24,32)")  # fmt: skip
    add("--out", type=Path, help="folder of the cells and tables (default: below runs/); "
        "the same command goes on where it stopped")  # fmt: skip
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
    add_threads(compare)
    add_config(compare, "options of training", TrainConfig, train_option)
    for config in all_configs():
        name = config.__name__.removesuffix("Config")
        fields = [field.name for field in own_fields(config)]
        add_config(
            compare, f"options of {name}", config, partial(setting_option, config),
            only=fields, is_sparse=True,
        )  # fmt: skip


def _grid(options: argparse.Namespace) -> Grid:
    if options.tune:
        return Grid(options.tune_lr or _LR, options.tune_weight_decay or _WEIGHT_DECAY)
    for name in ("--tune-lr", "--tune-weight-decay"):
        if vars(options)[name.strip("-").replace("-", "_")] is not None:
            raise ValueError(f"compare: {name} says what --tune tries: add --tune")
    return Grid()


def _compare(options: argparse.Namespace) -> int:
    set_threads(options.threads)
    given = {setting_option(config, field.name) for config in all_configs()
             for field in own_fields(config)}  # fmt: skip
    failures = run_compare(
        Comparison(
            options.data,
            options.data_dir,
            options.model,
            seeds_of(options.methods, options.seeds),
            options.out or Path("runs") / f"compare-{options.data}",
            TrainConfig(**read_config(options, TrainConfig, train_option)),
            options.candidates,
            {name: value for name, value in vars(options).items() if name in given},
            _grid(options),
            options.transfer_from,
            options.f_sweep,
            options.stability,
            options.importance,
        ),
        trace=options.traceback,
    )
    return 1 if failures else 0
