"""The command line: `varemb info | demo | search | train | compare | report | bench`.

An error of the user is one line and exit code 2; Ctrl-C is one line that says how to continue and
exit code 130.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shlex
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from varemb.commands.comparison import add_compare
from varemb.commands.parser import Parser, add_command, add_place, add_threads, set_threads
from varemb.commands.streams import add_stream_searches
from varemb.compare import METHODS, RANKING_METHODS
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
from varemb.options import add_config, read_config, seed
from varemb.plan import SizePlan
from varemb.report import load_runs, write_report
from varemb.search import AutoDimConfig, TrainConfig
from varemb.search.autodim import check_autodim
from varemb.search.progress import bars_only_in_terminals
from varemb.search.settings import naming_options

_EXTRAS = {
    "pyarrow": "data",
    "scikit-learn": "data",
    "tqdm": "data",
    "matplotlib": "plots",
}


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
        with bars_only_in_terminals():
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
    if "goes_on" in options:  # by itself, with the same command
        return f"stopped; continue with: varemb {shlex.join(words)}"
    is_kept = hasattr(options, "resume") and (options.out or options.run is not _demo)
    if not is_kept:
        return "stopped"
    again = [*words, *([] if options.resume else ["--resume"])]
    return f"stopped; continue with: varemb {shlex.join(again)}"


def _build_parser() -> Parser:
    parser = Parser(
        prog="varemb",
        description="Embedding tables in which every row has its own width: search the widths, "
        "train on them, show what was found and saved.",
        allow_abbrev=False,
    )
    parser.set_defaults(parser=parser, traceback=False)
    version = _version("varemb") or "(not installed, run from its sources)"
    parser.add_argument("--version", action="version", version=f"varemb {version}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_info(commands)
    _add_demo(commands)
    _add_search(commands)
    _add_train(commands)
    add_compare(commands)
    _add_report(commands)
    _add_bench(commands)
    return parser


def _add_info(commands: Any) -> None:
    add_command(
        commands, "info", _info, "print versions, backends, and why one is missing", "varemb info"
    )


def _add_demo(commands: Any) -> None:
    demo = add_command(
        commands,
        "demo",
        _demo,
        "search widths on generated clicks and compare with full width, in a minute, without files",
        "varemb demo --seed 1",
    )
    demo.add_argument("--seed", type=seed, default=0, help="of data and training (default 0)")
    demo.add_argument("--out", type=Path, help="also write a run folder, for `varemb report`")
    demo.add_argument("--resume", action="store_true", help="continue the run in the folder")
    add_threads(demo)


def _add_search(commands: Any) -> None:
    search = commands.add_parser(
        "search",
        help="search the widths of embedding rows, train on them, compare with full width",
        description="Search the widths of embedding rows, train on them, compare with full width.",
        epilog="CIESS and the other methods that rank, and what AutoDim is compared with, run in "
        "`varemb compare`: see varemb compare --help",
        allow_abbrev=False,
    )
    search.set_defaults(parser=search)
    compare, data = "varemb compare --model", "--data ml-1m --data-dir DIR"
    search.elsewhere = {
        **{name: f"{compare} wide-deep --methods {name} {data}" for name in METHODS},
        # It has as many numbers as AutoDim found.
        "uniform": f"{compare} wide-deep --methods autodim,uniform {data}",
        **{name: f"{compare} lightgcn --methods {name} {data}" for name in RANKING_METHODS},
    }
    methods = search.add_subparsers(metavar="METHOD", required=True)
    autodim = add_command(
        methods,
        "autodim",
        _search,
        "AutoDim: one width per field, found by weight sharing and Gumbel-softmax",
        "varemb search autodim --data ml-1m --data-dir data --candidates 2,4,8,16 --seed 0",
    )
    _add_task(autodim)
    add_config(autodim, "options of AutoDim", AutoDimConfig, search_option)
    add_stream_searches(methods)


def _add_train(commands: Any) -> None:
    train = add_command(
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
    add_place(command, "split and training")
    add_threads(command)
    add_config(command, "options of training", TrainConfig, train_option)


def _add_report(commands: Any) -> None:
    report = add_command(
        commands,
        "report",
        _report,
        "draw finished runs: report.png and a page that stands alone, report.html",
        "varemb report runs/seed0 runs/seed1 --out runs",
    )
    report.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="folder of a run")
    report.add_argument("--out", type=Path, help="where to write (default: the first DIR)")


def _add_bench(commands: Any) -> None:
    bench = add_command(
        commands,
        "bench",
        _bench,
        "measure an operation beside what torch and FBGEMM offer (needs a checkout)",
        "varemb bench lookup",
    )
    bench.usage = "%(prog)s [-h] [--traceback] OP [OPTION ...]"
    bench.add_argument(
        "operation", metavar="OP", help="lookup, lookup_bag, update, overhead (of a call) or all"
    )
    bench.epilog = (
        f"{bench.epilog} --quick. --quick, --json FILE, --resume, --plot FILE.png, --threads N and "
        "others are options of python -m benchmarks.run, which lists them with --help"
    )


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
    set_threads(options.threads)
    run_demo(options.seed, Place(options.out, options.resume))
    return 0


def _task(options: argparse.Namespace) -> Task:
    set_threads(options.threads)
    given = read_config(options, TrainConfig, train_option)
    with naming_options(TrainConfig, train_option):
        training = TrainConfig(**given, seed=options.seed)
    return load_task(options.data, options.data_dir, options.model, training)


def _place(options: argparse.Namespace, kind: str) -> Place:
    name = f"{kind}-{options.data}-{options.model}-seed{options.seed}"
    return Place(options.out or Path("runs") / name, options.resume)


def _search(options: argparse.Namespace) -> int:
    config = AutoDimConfig(**read_config(options, AutoDimConfig, search_option), seed=options.seed)
    with naming_options(AutoDimConfig, search_option):
        check_autodim(config)
    run_search(_task(options), config, _place(options, "autodim"))
    return 0


def _train(options: argparse.Namespace) -> int:
    if not options.plan.is_file():
        raise FileNotFoundError(
            f"train: --plan must be the plan.safetensors of a search, {options.plan} is no file"
        )
    plan = SizePlan.load(options.plan)
    run_train(_task(options), plan, options.unify, _place(options, "train"))
    return 0


def _report(options: argparse.Namespace) -> int:
    runs = load_runs(options.runs)
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
