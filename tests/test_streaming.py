"""Runs on streams: sources, run folders, names of methods, with a stand-in for the search."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from varemb.data import EventColumns
from varemb.experiment import Place
from varemb.files import load_json, load_jsonl
from varemb.plan import SizePlan
from varemb.runs import load_run
from varemb.search import StreamResult
from varemb.search.settings import option
from varemb.streaming import (
    FAMILIES,
    Family,
    Source,
    StreamMethod,
    make_config,
    method_label,
    run_stream,
)

EVENTS = [(7, 1, 5.0, 30), (9, 1, 1.0, 10), (7, 2, 4.5, 30), (8, 3, 2.0, 20)]


@dataclass(frozen=True)
class StandInConfig:
    task: str = option("binary", "what is predicted")
    threshold: float = option(1.5, "ratings above it are positive")
    lr: float = option(0.1, "learning rate")
    seed: int = option(0, "of all randomness")
    width: int = option(4, "of all rows")
    deep: bool = option(False, "more layers")


@dataclass(frozen=True)
class OtherConfig:
    task: str = option("binary", "what is predicted")
    lr: float = option(0.2, "learning rate")
    seed: int = option(0, "of all randomness")
    price: float = option(0.0, "of width")


class StandIn:
    """Remembers what it is given; every row ends with the width."""

    calls: list = []  # noqa: RUF012  shared by all runs of a test

    def __init__(self, config):
        self.config = config

    def fit(self, stream, *, progress=True, checkpoint_dir=None, resume=False):
        StandIn.calls.append((stream, checkpoint_dir, resume))
        sizes = {"user": len(np.unique(stream.users)), "item": len(np.unique(stream.items))}
        plan = SizePlan.uniform(sizes, 8, self.config.width)
        return StreamResult(
            plan, {"accuracy": 0.75, "mse": 0.2}, [{"events": len(stream), "bytes": 4}],
            {"widths": []}, plan.num_params, plan.num_params_full, {"weights": 4, "index": 0},
            2.0, len(stream) / 2,
        )  # fmt: skip


FAMILY = Family(
    "Stand",
    "mlp",
    True,
    {
        "stand": StreamMethod(StandIn, StandInConfig, lambda c: f"stand-{c.width}", ("deep",)),
        "other": StreamMethod(StandIn, OtherConfig, lambda c: "other", ("price",)),
    },
)
COLUMNS = EventColumns("who", "what", "stars", "when")


@pytest.fixture
def source(tmp_path) -> Source:
    pytest.importorskip("pyarrow", reason="the files are read by pyarrow")
    StandIn.calls.clear()
    return Source(str(write(tmp_path / "clicks.csv")), columns=COLUMNS)


def write(path: Path, rows=EVENTS) -> Path:
    lines = ["who,what,stars,when", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(source, folder=None, said=None, *, resume=False, **changes):
    lines = [] if said is None else said
    config = StandInConfig(**changes)
    return run_stream(FAMILY, "stand", config, source, Place(folder, resume), lines.append)


def test_a_run_leaves_its_folder(source, tmp_path):
    said = []
    result = run(source, tmp_path / "run", said, width=2, seed=3)
    assert result["method"] == "stand-2" and result["data"] == "clicks"
    assert result["seed"] == 3 and result["order"] == "time" and result["task"] == "binary"
    assert (result["events"], result["users"], result["items"]) == (4, 3, 3)
    assert result["params"] == 12 and result["params_full"] == 48
    assert load_json(tmp_path / "run" / "metrics.json") == result
    assert load_jsonl(tmp_path / "run" / "history.jsonl") == [{"events": 4, "bytes": 4}]
    kept = load_run(tmp_path / "run")
    assert kept.plan["user"].tolist() == [2, 2, 2] and list(kept.plan) == ["user", "item"]
    ((stream, folder, resume),) = StandIn.calls
    assert stream.users.tolist() == [9, 8, 7, 7]
    assert folder == tmp_path / "run" / "checkpoint" and not resume
    assert said[0] == "clicks, order time: 4 events, 3 users, 3 items; seed 3"
    assert "75.00 %" in said[1] and "accuracy" in said[1]
    assert said[-1].endswith(f"next: varemb report {tmp_path / 'run'}")


def test_a_finished_run_is_shown_again(source, tmp_path):
    first = run(source, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(ValueError, match="holds a finished run; add --resume"):
        run(source, tmp_path / "run")
    said = []
    assert run(source, tmp_path / "run", said, resume=True) == first
    assert len(StandIn.calls) == 1 and "holds this run, finished" in said[0] + said[1]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_an_unfinished_run_goes_on(source, tmp_path, monkeypatch):
    def stop(search, stream, *, checkpoint_dir, **options):
        (checkpoint_dir / "stand.safetensors").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(StandIn, "fit", stop)
        run(source, tmp_path / "run")
    with pytest.raises(ValueError, match="holds an unfinished run; add --resume"):
        run(source, tmp_path / "run")
    assert run(source, tmp_path / "run", resume=True)["params"] == 24
    ((_, _, resume),) = StandIn.calls
    assert resume


@pytest.mark.parametrize(
    ("source_change", "config_change", "message"),
    [
        ({}, {"lr": 0.5}, "--lr 0.1, got 0.5"),
        ({}, {"seed": 1}, "--seed 0, got 1"),
        ({"order": "file"}, {}, "--order time, got file"),
        ({"events": 2}, {}, "--events 0, got 2"),
    ],
)
def test_resume_refuses_other_options(source, tmp_path, source_change, config_change, message):
    run(source, tmp_path / "run")
    changed = Source(**{**vars(source), **source_change})
    with pytest.raises(ValueError, match=message):
        run(changed, tmp_path / "run", resume=True, **config_change)


def test_resume_refuses_other_events(source, tmp_path):
    run(source, tmp_path / "run")
    write(Path(source.data), [*EVENTS[:3], (8, 3, 2.5, 20)])
    with pytest.raises(ValueError, match="was started with content of --data checksum"):
        run(source, tmp_path / "run", resume=True)


def test_only_the_first_events_are_taken(source):
    run(Source(source.data, columns=COLUMNS, events=3))
    assert StandIn.calls[0][0].users.tolist() == [9, 8, 7]
    with pytest.raises(ValueError, match="--events must be at least 1, or 0 for all, got -1"):
        run(Source(source.data, columns=COLUMNS, events=-1))


def test_the_seed_shuffles(source):
    shuffled = Source(source.data, order="shuffle", columns=COLUMNS)
    orders = []
    for seed in (0, 1, 2, 3, 0):
        run(shuffled, seed=seed)
        orders.append(StandIn.calls[-1][0].ratings.tolist())
    assert orders[0] == orders[-1] and len({tuple(order) for order in orders}) > 1


def test_sources_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"--data must be one of ml-1m, .*, got 'ml-2m'"):
        run(Source("ml-2m"))
    with pytest.raises(ValueError, match="--data ml-1m needs --data-dir"):
        run(Source("ml-1m"))
    with pytest.raises(FileNotFoundError, match=r"ratings\.parquet"):
        run(Source("ml-1m", tmp_path))


def test_what_learns_ratings_needs_them(source, tmp_path):
    columns = EventColumns("who", "what", None, "when")
    with pytest.raises(ValueError, match=r"--rating-column must name the column of .*clicks\.csv"):
        run(Source(source.data, columns=columns), tmp_path / "run")
    write(Path(source.data), [(7, 1, 2.0, 10), (9, 1, 2.0, 30)])
    with pytest.raises(
        ValueError, match="Stand learns to predict ratings, and all of clicks are 2"
    ):
        run(source, tmp_path / "run")
    assert not (tmp_path / "run").exists() and not StandIn.calls


def test_names_tell_what_the_settings_make_of_a_method():
    stand, other = FAMILY.methods["stand"], FAMILY.methods["other"]
    assert method_label(stand, StandInConfig()) == "stand-4"
    assert method_label(stand, StandInConfig(lr=9.0, seed=1, deep=True)) == "stand-4 deep"
    assert method_label(other, OtherConfig(price=0.5)) == "other price=0.5"


def test_settings_of_other_methods_are_refused():
    assert make_config(FAMILY, "other", {"price": 0.5, "seed": 2}) == OtherConfig(price=0.5, seed=2)
    with pytest.raises(ValueError, match="--width is an option of stand, not of other"):
        make_config(FAMILY, "other", {"width": 2})


def test_every_method_has_its_class_and_name():
    labels = {}
    for family in FAMILIES.values():
        for name, method in family.methods.items():
            config = method.config()
            assert method.search(config).config is config
            labels[name] = method_label(method, config)
            assert {field.name for field in dataclasses.fields(config)} >= set(method.told)
    assert labels.pop("scall") == "scall mean-0"
    assert labels == {
        "esapn": "esapn", "fixed": "fixed-128", "darts": "darts", "autoemb": "autoemb",
    }  # fmt: skip
    scall = FAMILIES["scall"].methods["scall"]
    config = dataclasses.replace(scall.config(), memory=0.5, policy="uniform", width=64)
    assert method_label(scall, config) == "uniform 0.5MB width=64"
