"""What earlier commands left finished in a folder where models that rank are compared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from varemb.compare.running import Say
from varemb.experiment import Result
from varemb.files import load_json
from varemb.models import RECOMMENDERS
from varemb.runs import METRICS, OPTIONS


def read_earlier(
    out: Path,
    named: Collection[str],
    expected: Callable[[str, int], Mapping[str, Any]],
    say: Say,
) -> list[Result]:
    """Results of the finished cells in a folder that the command at hand does not name.

    Args:
        out: the folder.
        named: the folders of the command's own cells.
        expected: model and seed -> options that cells must share to be compared; one that a cell's
            method does not have is no difference.
        say: takes a line with the cells, and one for each that is left out, with the option that
            is another.
    """
    results: dict[str, Result] = {}
    for path in sorted(out.glob(f"*/{METRICS}")):
        folder = path.parent
        if folder.name in named or not (folder / OPTIONS).exists():
            continue
        options = load_json(folder / OPTIONS)
        if options.get("command") != "compare" or options.get("--model") not in RECOMMENDERS:
            continue
        wanted = expected(options["--model"], options["seed"])
        others = [name for name in wanted if options.get(name, wanted[name]) != wanted[name]]
        if others:
            name = others[0]
            say(f"{folder} is not in the tables: its {name} is {options[name]}, not {wanted[name]}")
        else:
            results[folder.name] = load_json(path)
    if results:
        say(f"in the tables too, of earlier commands: {', '.join(results)}")
    return list(results.values())
