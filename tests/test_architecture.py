"""The rules of the house, read from the sources: layers, rooms, lengths, names. No exceptions."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "varemb"

# Left may import right; names of one line never import each other. "" is varemb/__init__.py.
LAYERS = [
    {""},
    {"__main__"},
    {"cli"},
    {"commands"},
    {"compare", "options", "streaming"},
    {"experiment"},
    {"report"},
    {"runs"},
    {"search", "data"},
    {"models"},
    {"convert"},
    {"nn", "optim", "memory", "info"},
    {"storage", "plan", "id_map", "bpr_sampler", "ranking"},
    {"ops", "budget"},
    {"rows", "_native", "files"},
]
TESTING_SEES = {"storage", "plan", "ops", "rows", "_native", "files", "budget"}
REQUIRED = {"torch", "numpy", "safetensors"}
OPTIONAL = {"matplotlib", "pyarrow", "scipy", "sklearn", "tqdm"}

OPERATIONS = ("lookup", "lookup_bag", "lookup_linear", "coalesce", "update", "repack")
# Rooms of an operation; a room that this release does not have asks for nothing.
ROOMS = {
    "varemb/ops": "{}.py",
    "varemb/ops/reference": "{}.py",
    "csrc/cpu": "{}.cpp",
    "csrc/cuda": "{}.cu",
    "varemb/ops/triton": "{}.py",
}

FILE_LIMIT = 400
SEARCH_LIMIT = 350
FRONT_LIMIT = 150
FUNCTION_LIMIT = 60

# A path that only exists on somebody's machine.
MACHINE_PATH = re.compile(r"(?<![\w.*\])}])/(?:home|root|tmp|work|mnt|Users|opt|srv)/\w")
TEXT_KINDS = {".md", ".py", ".h", ".cpp", ".cu", ".cuh", ".toml", ".yaml", ".yml", ".json", ""}


def find_sources(*folders: str, suffix: str = ".py") -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob(f"*{suffix}"))


MODULES = find_sources("varemb")
NATIVE = [*find_sources("csrc", suffix=".h"), *find_sources("csrc", suffix=".c*")]


def show(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def schema_names() -> list[str]:
    for node in parse(PACKAGE / "ops" / "schemas.py").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SCHEMAS":
            assert isinstance(node.value, ast.Dict)
            return [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
    raise AssertionError("ops/schemas.py defines no SCHEMAS")


def module_parts(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def is_module(parts: tuple[str, ...]) -> bool:
    return PACKAGE.joinpath(*parts).is_dir() or PACKAGE.joinpath(*parts).with_suffix(".py").exists()


def find_imports(path: Path, tree: ast.Module) -> Iterator[tuple[ast.stmt, tuple[str, ...]]]:
    """Each import of a file as the statement and the dotted name of the module, in full."""
    inside = ("varemb", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = tuple((node.module or "").split(".")) if node.module else ()
            if node.level:
                base = inside[: len(inside) - node.level + 1] + base
            for alias in node.names:
                full = (*base, alias.name)
                yield node, full if base[0] == "varemb" and is_module(full[1:]) else base


def layer_of(room: str) -> int:
    places = [i for i, layer in enumerate(LAYERS) if room in layer]
    assert places, f"varemb/{room} stands in no layer"
    return places[0]


def rooms_seen(room: str) -> set[str]:
    """Rooms that a room may import, itself aside."""
    if room == "testing":
        return TESTING_SEES
    return {name for layer in LAYERS[layer_of(room) + 1 :] for name in layer}


@pytest.mark.parametrize("path", MODULES, ids=show)
def test_imports_go_to_the_right(path):
    room = (*module_parts(path), "")[0]
    allowed = rooms_seen(room)
    for node, name in find_imports(path, parse(path)):
        if name[0] != "varemb":
            continue
        target = (*name[1:], "")[0]
        assert target in allowed or (target == room and room), (
            f"{show(path)}:{node.lineno}: varemb/{room or '__init__'} must not import "
            f"{'.'.join(name)}"
        )


@pytest.mark.parametrize("path", MODULES, ids=show)
def test_required_packages_at_the_top_optional_ones_inside_functions(path):
    tree = parse(path)
    top = {id(node) for node in tree.body}
    typing_only = {
        id(node)
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
    }
    is_triton = "triton" in module_parts(path)
    for node, name in find_imports(path, tree):
        package = name[0]
        where = f"{show(path)}:{node.lineno}: {package}"
        known = package in REQUIRED | OPTIONAL | {"varemb"} or package in sys.stdlib_module_names
        assert known or (is_triton and package == "triton"), f"{where} is not a known dependency"
        if id(node) in typing_only:
            continue
        place = "inside the function that needs it" if package in OPTIONAL else "at the top"
        assert (id(node) in top) == (place == "at the top"), f"{where} must be imported {place}"


@pytest.mark.parametrize("path", find_sources("varemb/ops/reference"), ids=show)
def test_the_reference_stands_alone(path):
    for _, name in find_imports(path, parse(path)):
        is_own = name[:3] == ("varemb", "ops", "reference") or name[:2] == ("varemb", "rows")
        assert is_own or name[0] == "torch" or name[0] in sys.stdlib_module_names, (
            f"{show(path)}: the reference must not import {'.'.join(name)}"
        )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_exists_in_every_room(operation):
    for room, pattern in ROOMS.items():
        if (ROOT / room).is_dir():
            assert (ROOT / room / pattern.format(operation)).exists(), f"{room} lacks {operation}"
    assert list((ROOT / "tests").rglob(f"test_{operation}.py")), f"tests lack {operation}"
    assert any(name.rstrip("_") == operation for name in schema_names()), (
        f"schemas lack {operation}"
    )
    functions = {
        node.name
        for node in parse(PACKAGE / "ops" / "reference" / f"{operation}.py").body
        if isinstance(node, ast.FunctionDef)
    }
    assert functions & {operation, f"{operation}_"}, f"reference/{operation}.py lacks it"


def test_no_operation_is_unknown():
    kernels = {path.stem for path in (ROOT / "csrc" / "cpu").glob("*.cpp")}
    assert kernels <= set(OPERATIONS)
    for name in schema_names():
        assert name.startswith(OPERATIONS), f"schema {name} belongs to no operation"


@pytest.mark.parametrize(
    "path", [*find_sources("varemb", "tests", "benchmarks"), *NATIVE], ids=show
)
def test_files_stay_short(path):
    limit = FILE_LIMIT
    if path.parent == PACKAGE / "search":
        limit = SEARCH_LIMIT
    elif path.parent == PACKAGE / "ops" and path.stem in OPERATIONS:
        limit = FRONT_LIMIT
    lines = len(path.read_text().splitlines())
    assert lines <= limit, f"{show(path)} has {lines} lines, at most {limit}"


@pytest.mark.parametrize("path", find_sources("varemb", "benchmarks"), ids=show)
def test_functions_stay_short(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef):
            is_described = ast.get_docstring(node) is not None
            first = node.body[min(int(is_described), len(node.body) - 1)]
            lines = (node.end_lineno or 0) - first.lineno + 1
            assert lines <= FUNCTION_LIMIT, (
                f"{show(path)}: {node.name} has {lines} lines, at most {FUNCTION_LIMIT}"
            )


@pytest.mark.parametrize("path", MODULES, ids=show)
def test_options_are_never_swallowed(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.args.kwarg is None, (
                f"{show(path)}: {node.name} takes **{node.args.kwarg.arg}"
            )


@pytest.mark.parametrize("path", MODULES, ids=show)
def test_nothing_unpickles(path):
    for _, name in find_imports(path, parse(path)):
        assert name[0] not in {"pickle", "marshal", "shelve", "dill", "joblib"}, show(path)
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in {"torch.load", "torch.save", "np.load", "np.save"}
    assert "allow_pickle" not in path.read_text()


@pytest.mark.parametrize("path", NATIVE, ids=show)
def test_native_files_use_the_stable_interface(path):
    is_host = path.parent == ROOT / "csrc" / "host"  # numpy in and out: pybind11, no torch
    stable = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/")
    for include in re.findall(r"#include <((?:torch|ATen|c10|pybind11)[^>]*)>", path.read_text()):
        assert include.startswith("pybind11/" if is_host else stable)


def test_no_file_is_called_after_nothing():
    for path in find_sources("varemb", "tests", "benchmarks"):
        words = set(path.stem.lower().split("_"))
        assert not words & {"utils", "util", "common", "helpers", "helper", "misc", "core"}, show(
            path
        )
        assert not (path.parent != PACKAGE and path.stem.startswith(f"{path.parent.name}_"))


def test_no_file_names_a_path_of_a_machine():
    texts = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in ("varemb", "csrc", "tests", "benchmarks", "docs", ".ci"):
        texts += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in texts:
        is_text = path.suffix in TEXT_KINDS and "__pycache__" not in path.parts
        if is_text and path.name != "build_info.json":
            found = MACHINE_PATH.search(path.read_text())
            assert found is None, f"{show(path)} names {found.group() if found else ''}"


def test_the_machine_path_rule_bites():
    bad = "/{}/me/data", " /{}/x", '"/{}/x"', "file:///{}/x"
    for name in ("home", "root", "tmp"):
        for text in bad:
            assert MACHINE_PATH.search(text.format(name)), text
    for good in ("../shared/data", "a/work/b", "docs/tmp/x", "https://x.org/home/y"):
        assert MACHINE_PATH.search(good) is None, good
