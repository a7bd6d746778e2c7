"""`varemb search esapn | scall`: methods that learn from a stream, and their baselines."""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from varemb.commands.parser import add_command, add_place, add_threads, set_threads
from varemb.data import ORDERS, STREAMS, EventColumns
from varemb.experiment import Place, train_option
from varemb.options import add_config, read_given
from varemb.streaming import FAMILIES, Family, Source, make_config, run_stream

_TEXTS = {
    "esapn": (
        "ESAPN: rows that grow while a stream of ratings is learnt, where a policy says so",
        "varemb search esapn --data ml-1m --data-dir data --order shuffle --out runs/esapn",
    ),
    "scall": (
        "SCALL: widths of all rows chosen anew in every segment of a stream, under a hard budget",
        "varemb search scall --data amazon-grocery --data-dir data --memory 1 --out runs/scall",
    ),
}


def add_stream_searches(methods: Any) -> None:
    """Adds a command for each family."""
    for name, family in FAMILIES.items():
        text, example = _TEXTS[name]
        command = add_command(methods, name, partial(_search, family), text, example)
        command.set_defaults(method=name)
        if len(family.methods) > 1:
            command.add_argument(
                "--method",
                choices=list(family.methods),
                help=f"the method itself, or a baseline on the same stream (default {name})",
            )
        _add_source(command)
        add_place(command, "a shuffle and of the method")
        add_threads(command)
        seen = {"seed"}
        for other, method in family.methods.items():
            fields = [field.name for field in dataclasses.fields(method.config)]
            own = [each for each in fields if each not in seen]
            seen.update(own)
            title = f"options of {family.title}" if other == name else f"options of {other}"
            add_config(command, title, method.config, train_option, only=own, is_sparse=True)


def _add_source(command: argparse.ArgumentParser) -> None:
    add, default = command.add_argument, EventColumns()
    add("--data", required=True, metavar="NAME|FILE",
        help=f"{', '.join(STREAMS)}, or a Parquet or text file with a column each")  # fmt: skip
    add("--data-dir", type=Path, help="folder with the files of a data set that has a name")
    add("--order", choices=ORDERS, default="time", help="of the events (default time)")
    add("--events", type=int, default=0, metavar="N", help="only the first so many (default all)")
    group = command.add_argument_group("columns of a file")
    for name, shown in (("user", default.user), ("item", default.item), ("rating", None),
                        ("time", None)):  # fmt: skip
        group.add_argument(
            f"--{name}-column", metavar="NAME", default=shown, help=f"default {shown or 'none'}"
        )
    group.add_argument(
        "--delimiter", help="between the cells of a text file (default: a tab for .tsv, else ,)"
    )


def _search(family: Family, options: argparse.Namespace) -> int:
    set_threads(options.threads)
    configs = [method.config for method in family.methods.values()]
    given = read_given(options, configs, train_option) | {"seed": options.seed}
    config = make_config(family, options.method, given)
    columns = EventColumns(
        options.user_column,
        options.item_column,
        options.rating_column,
        options.time_column,
        getattr(config, "lowest", float("-inf")),
        getattr(config, "highest", float("inf")),
        options.delimiter,
    )
    source = Source(options.data, options.data_dir, options.order, options.events, columns)
    name = f"{options.method}-{source.name}-seed{options.seed}"
    place = Place(options.out or Path("runs") / name, options.resume)
    run_stream(family, options.method, config, source, place)
    return 0
