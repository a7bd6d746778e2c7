"""The command line: `varemb info | demo | search | train | compare | report | bench`.

An error of the user is one line and exit code 2; Ctrl-C is one line that says how to continue and
exit code 130.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from varemb.compare import (
    METHODS,
    Comparison,
    Grid,
    all_configs,
    own_fields,
    run_compare,
    setting_option,
)
from varemb.experiment import (
    DATA,
    MODELS,
    Place,
    Task,
    load_task,
    run_demo,
    run_search,
    run_train,
    search_option,
    train_option,
)
from varemb.info import build_info
from varemb.options import (
    add_config,
    names,
    read_config,
    real_numbers,
    seeds,
    seeds_of,
    whole_numbers,
)
from varemb.plan import SizePlan
from varemb.report import write_report
from varemb.runs import load_run
from varemb.search import AutoDimConfig, TrainConfig

_EXTRAS = {
    "pyarrow": "data",
    "scikit-learn": "data",
    "tqdm": "data",
    "matplotlib": "plots",
}


class _Parser(argparse.ArgumentParser):
    """Refuses what it does not know by name, and says what may have been meant."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"varemb: {message}\nsee: {self.prog} --help\n")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Ends the command over the first unknown argument."""
        first = unknown[0].split("=")[0]
        if not first.startswith("-"):
            self.error(f"unexpected argument {first!r}")
        close = difflib.get_close_matches(first, self._option_string_actions, 1)
        hint = f", did you mean {close[0]}?" if close else ""
        self.error(f"unknown option {first}{hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code.

    Args:
        argv: arguments after the program's name; by default those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _build_parser()
    options, unknown = parser.parse_known_args(words)
    if unknown and options.run is not _bench:
        options.parser.refuse(unknown)
    options.rest = unknown
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        _say(_stopped(options, words))
        return 130
    except (ValueError, IndexError, ArithmeticError, OSError, ImportError) as error:
        if options.traceback:
            traceback.print_exc()
        _say(str(error))
        return 2


def _say(line: str) -> None:
    print(f"varemb: {' '.join(line.split())}", file=sys.stderr)


def _stopped(options: argparse.Namespace, words: Sequence[str]) -> str:
    if options.run is _compare:
        return f"stopped; continue with: varemb {shlex.join(words)}"
    is_kept = hasattr(options, "resume") and (options.out or options.run is not _demo)
    if not is_kept:
        return "stopped"
    again = [*words, *([] if options.resume else ["--resume"])]
    return f"stopped; continue with: varemb {shlex.join(again)}"


def _build_parser() -> _Parser:
    parser = _Parser(
        prog="varemb",
        description="Embedding tables in which every row has its own width: search the widths, "
        "train on them, show what was found and saved.",
        allow_abbrev=False,
    )
    parser.set_defaults(parser=parser, traceback=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_info(commands)
    _add_demo(commands)
    _add_search(commands)
    _add_train(commands)
    _add_compare(commands)
    _add_report(commands)
    _add_bench(commands)
    return parser


def _add(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, example: str
) -> _Parser:
    command: _Parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example: {example}",
        allow_abbrev=False,
    )
    command.set_defaults(run=run, parser=command)
    command.add_argument("--traceback", action="store_true", help="show where an error arose")
    return command


def _add_info(commands: Any) -> None:
    _add(commands, "info", _info, "print versions, backends, and why one is missing", "varemb info")


def _add_demo(commands: Any) -> None:
    demo = _add(
        commands,
        "demo",
        _demo,
        "search widths on generated clicks and compare with full width, in a minute, without files",
        "varemb demo --seed 1",
    )
    demo.add_argument("--seed", type=int, default=0, help="of data and training (default 0)")
    demo.add_argument("--out", type=Path, help="also write a run folder, for `varemb report`")
    demo.add_argument("--resume", action="store_true", help="continue the run in the folder")
    _add_threads(demo)


def _add_threads(command: argparse.ArgumentParser) -> None:
    # Batches are small: a second thread helps on an idle machine, and costs much on a busy one.
    command.add_argument(
        "--threads",
        type=int,
        default=1,
        help="CPU threads (default 1; with more, the last digits of a result may differ)",
    )


def _add_search(commands: Any) -> None:
    search = commands.add_parser(
        "search",
        help="search the widths of embedding rows, train on them, compare with full width",
        description="Search the widths of embedding rows, train on them, compare with full width.",
        allow_abbrev=False,
    )
    search.set_defaults(parser=search)
    methods = search.add_subparsers(metavar="METHOD", required=True)
    autodim = _add(
        methods,
        "autodim",
        _search,
        "AutoDim: one width per field, found by weight sharing and Gumbel-softmax",
        "varemb search autodim --data ml-1m --data-dir data --candidates 2,4,8,16 --seed 0",
    )
    _add_task(autodim)
    add_config(autodim, "options of AutoDim", AutoDimConfig, search_option)


def _add_train(commands: Any) -> None:
    train = _add(
        commands,
        "train",
        _train,
        "train a model whose table has the widths of a plan",
        "varemb train --plan runs/a/plan.safetensors --data ml-1m --data-dir data",
    )
    train.add_argument("--plan", type=Path, required=True, help="plan.safetensors of a search")
    train.add_argument(
        "--unify",
        choices=("linear", "pad"),
        default="linear",
        help="bring rows to the width by a matrix per field, or by zeros (default linear)",
    )
    _add_task(train)


def _add_task(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", required=True, choices=sorted(DATA), help="the data set")
    command.add_argument("--data-dir", type=Path, help="folder with the data set's files")
    command.add_argument(
        "--model", default="wide-deep", choices=sorted(MODELS), help="default wide-deep"
    )
    command.add_argument("--seed", type=int, default=0, help="of split and training (default 0)")
    command.add_argument("--out", type=Path, help="run folder (default: below runs/)")
    command.add_argument("--resume", action="store_true", help="continue the run in the folder")
    _add_threads(command)
    add_config(command, "options of training", TrainConfig, train_option)


def _add_compare(commands: Any) -> None:
    compare = _add(
        commands,
        "compare",
        _compare,
        "compare methods over seeds and models: tables, t-tests, and quality against bytes",
        "varemb compare --data ml-1m --data-dir data --methods fde,mde,ras,autodim --seeds 5",
    )
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
    add("--tune-lr", type=real_numbers, default=(3e-4, 1e-3, 3e-3), metavar="X,...",
        help="learning rates to try (default 0.0003,0.001,0.003)")  # fmt: skip
    add("--tune-weight-decay", type=real_numbers, default=(1e-3, 3e-3), metavar="X,...",
        help="weight decays to try (default 0.001,0.003)")  # fmt: skip
    add("--transfer-from", choices=sorted(MODELS), help="train the other models with its plans")
    add("--f-sweep", type=whole_numbers, default=(), metavar="N,...", help="AutoDim with these f")
    add("--stability", action="store_true", help="correlation of the dims over the seeds")
    add("--importance", action="store_true", help="models of a single field beside the dims")
    _add_threads(compare)
    add_config(compare, "options of training", TrainConfig, train_option)
    for config in all_configs():
        name = config.__name__.removesuffix("Config")
        fields = [field.name for field in own_fields(config)]
        add_config(
            compare, f"options of {name}", config, partial(setting_option, config),
            only=fields, is_sparse=True,
        )  # fmt: skip


def _add_report(commands: Any) -> None:
    report = _add(
        commands,
        "report",
        _report,
        "draw finished runs: report.png and a page that stands alone, report.html",
        "varemb report runs/seed0 runs/seed1 --out runs",
    )
    report.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="folder of a run")
    report.add_argument("--out", type=Path, help="where to write (default: the first DIR)")


def _add_bench(commands: Any) -> None:
    bench = _add(
        commands,
        "bench",
        _bench,
        "measure an operation beside what torch and FBGEMM offer (needs a checkout)",
        "varemb bench lookup",
    )
    bench.add_argument("operation", metavar="OP", help="lookup, lookup_bag, update or all")


def _info(options: argparse.Namespace) -> int:
    facts = build_info()
    rows: list[list[Any]] = [
        ["varemb", _version("varemb") or "not installed, run from its sources"]
    ]
    for name, value in facts.items():
        if isinstance(value, dict):
            rows += [[f"{name} {key}", item] for key, item in value.items()]
        else:
            rows.append([name, value])
    for package, extra in _EXTRAS.items():
        rows.append([package, _version(package) or f"missing: pip install 'varemb[{extra}]'"])
    widest = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name.replace('_', ' ').ljust(widest)}  {'none' if value is None else value}")
    return 0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _demo(options: argparse.Namespace) -> int:
    _set_threads(options.threads)
    run_demo(options.seed, Place(options.out, options.resume))
    return 0


def _set_threads(threads: int) -> None:
    if threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)


def _task(options: argparse.Namespace) -> Task:
    _set_threads(options.threads)
    training = TrainConfig(**read_config(options, TrainConfig, train_option), seed=options.seed)
    return load_task(options.data, options.data_dir, options.model, training)


def _place(options: argparse.Namespace, kind: str) -> Place:
    name = f"{kind}-{options.data}-{options.model}-seed{options.seed}"
    return Place(options.out or Path("runs") / name, options.resume)


def _search(options: argparse.Namespace) -> int:
    config = AutoDimConfig(**read_config(options, AutoDimConfig, search_option), seed=options.seed)
    run_search(_task(options), config, _place(options, "autodim"))
    return 0


def _train(options: argparse.Namespace) -> int:
    plan = SizePlan.load(options.plan)
    run_train(_task(options), plan, options.unify, _place(options, "train"))
    return 0


def _compare(options: argparse.Namespace) -> int:
    _set_threads(options.threads)
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
            Grid(options.tune_lr, options.tune_weight_decay) if options.tune else Grid(),
            options.transfer_from,
            options.f_sweep,
            options.stability,
            options.importance,
        ),
        trace=options.traceback,
    )
    return 1 if failures else 0


def _report(options: argparse.Namespace) -> int:
    runs = [load_run(folder) for folder in options.runs]
    folder = options.out or options.runs[0]
    folder.mkdir(parents=True, exist_ok=True)
    for path in write_report(runs, folder):
        print(path)
    return 0


def _bench(options: argparse.Namespace) -> int:
    for root in (Path.cwd(), Path(__file__).parents[1]):
        if (root / "benchmarks" / "run.py").exists():
            command = [sys.executable, "-m", "benchmarks.run", options.operation, *options.rest]
            return subprocess.run(command, cwd=root, check=False).returncode
    raise FileNotFoundError("bench: no folder benchmarks/ here; run it from a checkout of varemb")
