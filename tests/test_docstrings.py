"""What help() says: every search names its paper, every property its unit, no page is missing."""

import inspect
import re
from pathlib import Path

import pytest

import varemb
from varemb import search
from varemb.memory import MemoryReport

ROOT = Path(__file__).parents[1]
SEARCHES = [name for name in search.__all__ if hasattr(getattr(search, name), "fit")]


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_begins_with_its_paper_and_year(name):
    first = inspect.getdoc(getattr(search, name)).splitlines()[0]
    assert re.search(r"\(\S.* et al\., [A-Z]+ 20\d\d\)", first), first


def test_there_are_searches():
    assert {"AutoDim", "ESAPN", "CIESS", "SCALL", "NIS", "Mde", "FixedSizes"} <= set(SEARCHES)


@pytest.mark.parametrize("name", search.__all__)
def test_names_of_the_searches_are_explained(name):
    value = getattr(search, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value)
    else:  # an alias or a dict can hold no docstring
        assert f"`{name}`:" in search.__doc__


@pytest.mark.parametrize("cls", [MemoryReport, varemb.SizePlan])
def test_properties_and_methods_are_explained(cls):
    for name, value in vars(cls).items():
        if not name.startswith("_") and (inspect.isroutine(value) or isinstance(value, property)):
            assert inspect.getdoc(value), f"{cls.__name__}.{name}"


@pytest.mark.parametrize("unit", ["total", "bytes_full", "params", "params_full"])
def test_a_report_says_bytes_or_numbers(unit):
    assert inspect.getdoc(getattr(MemoryReport, unit)).startswith(("Bytes", "Numbers"))


@pytest.mark.parametrize("name", ["random", "by_frequency", "load", "save"])
def test_a_plan_says_what_it_raises(name):
    assert "Raises:" in inspect.getdoc(getattr(varemb.SizePlan, name))


def test_pages_that_are_named_are_there():
    there = {path.name for path in [*ROOT.glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]}
    written = {"comparison.md"}  # by a command
    for path in [*(ROOT / "varemb").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for page in re.findall(r"\w[\w-]*\.md\b", path.read_text()):
            assert page in there | written, f"{path}: {page}"
