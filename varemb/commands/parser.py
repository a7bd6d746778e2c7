"""What all commands share: how arguments are refused, examples shown, threads and folders named."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import torch

from varemb.options import seed


class Parser(argparse.ArgumentParser):
    """Refuses what it does not know by name, and says what may have been meant.

    Attributes:
        elsewhere: what one may look for among these commands -> the command that has it.
    """

    elsewhere: Mapping[str, str] = MappingProxyType({})

    def error(self, message: str) -> NoReturn:
        unknown = re.match(
            r"argument (COMMAND|METHOD): invalid choice: '(.*?)'.*from (.*)", message
        )
        if unknown:
            kind, name = unknown[1].lower(), unknown[2]
            known = re.findall(r"[\w-]+", unknown[3])
            close = difflib.get_close_matches(name, known, 1)
            if name.lower() in self.elsewhere:
                hint = f"it runs in another command: {self.elsewhere[name.lower()]}"
            else:
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            message = f"no {kind} {name!r} here, {hint}"
        self.exit(2, f"varemb: {message}\nsee: {self.prog} --help\n")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Ends the command over the first unknown argument."""
        first = unknown[0].split("=")[0]
        if not first.startswith("-"):
            self.error(f"unexpected argument {first!r}")
        close = difflib.get_close_matches(first, self._option_string_actions, 1)
        hint = f", did you mean {close[0]}?" if close else ""
        self.error(f"unknown option {first}{hint}")


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, example: str
) -> Parser:
    """A new command.

    Args:
        commands: what argparse's `add_subparsers` returned.
        name: of the command.
        run: takes the options and returns the exit code.
        text: one line that says what it does.
        example: a whole command line.
    """
    command: Parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example: {example}",
        allow_abbrev=False,
    )
    command.set_defaults(run=run, parser=command)
    command.add_argument("--traceback", action="store_true", help="show where an error arose")
    return command


def add_place(command: argparse.ArgumentParser, what: str) -> None:
    """Options of a run: its seed, its folder, and whether it goes on.

    Args:
        command: gets the options.
        what: the seed decides.
    """
    command.add_argument("--seed", type=seed, default=0, help=f"of {what} (default 0)")
    command.add_argument("--out", type=Path, help="run folder (default: below runs/)")
    command.add_argument("--resume", action="store_true", help="continue the run in the folder")


def add_threads(command: argparse.ArgumentParser) -> None:
    """The option of the number of threads."""
    # Batches are small: a second thread helps on an idle machine, and costs much on a busy one.
    command.add_argument(
        "--threads",
        type=int,
        default=1,
        help="CPU threads (default 1; with more, the last digits of a result may differ)",
    )


def set_threads(threads: int) -> None:
    """Makes torch use so many threads.

    Raises:
        ValueError: fewer than one, or so many that they may not start and end the process.
    """
    if threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    cores = os.cpu_count() or 1
    if threads > 4 * cores:
        raise ValueError(
            f"--threads must be at most {4 * cores}, 4 for each of {cores} cores, got {threads}"
        )
    torch.set_num_threads(threads)
