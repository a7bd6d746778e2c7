"""Run folders that several processes want, that were killed early, and commands that use them."""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from command_line import error_of

from varemb import experiment
from varemb.cli import main
from varemb.compare.running import write_comparison
from varemb.data import ClickData, EventColumns
from varemb.experiment import Place, Task, run_train
from varemb.files import load_json
from varemb.plan import SizePlan
from varemb.report import Table
from varemb.runs import CHECKPOINT, HISTORY, METRICS, OPTIONS, PLAN, load_run, open_run
from varemb.search import TrainConfig
from varemb.search.progress import bars_only_in_terminals, make_bar
from varemb.streaming import FAMILIES, Source, make_config, run_stream


def work(folder, started):
    """A process that works in a folder until it is killed."""
    with open_run(folder, {"--seed": 0}, resume=True):
        started.set()
        signal.pause()


@pytest.fixture
def working():
    """Starts such a process, which has the folder when this returns."""
    context = multiprocessing.get_context("fork")
    started = context.Event()
    processes = []

    def start(folder):
        processes.append(context.Process(target=work, args=(folder, started)))
        processes[0].start()
        assert started.wait(60)
        return processes[0]

    yield start
    for process in processes:
        process.kill()
        process.join()


def enter(folder, *, resume=True):
    with open_run(folder, {"--seed": 0}, resume=resume) as is_finished:
        return is_finished


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_process_is_refused_and_leaves_the_folder_alone(tmp_path, working, resume):
    folder = tmp_path / "a"
    first = working(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=f"another process works in {folder}; wait until it is"):
        enter(folder, resume=resume)
    assert sorted(folder.rglob("*")) == before
    first.kill()
    first.join()
    assert enter(folder) is False


def test_a_second_block_of_one_process_is_refused_too(tmp_path):
    with (
        open_run(tmp_path / "a", {"--seed": 0}, resume=False),
        pytest.raises(ValueError, match="another process works in"),
    ):
        enter(tmp_path / "a")
    assert enter(tmp_path / "a") is False


def test_a_finished_run_is_read_by_all(tmp_path):
    with open_run(tmp_path, {"--seed": 0}, resume=False) as is_finished:
        assert not is_finished
        (tmp_path / METRICS).write_text("{}")
        assert enter(tmp_path) is True


def stop_in(folder, *, resume):
    with (
        contextlib.suppress(KeyboardInterrupt),
        open_run(folder, {"--seed": 0}, resume=resume),
    ):
        raise KeyboardInterrupt


def test_only_the_call_that_made_a_run_removes_it(tmp_path):
    folder = tmp_path / "a"
    assert enter(folder) is False
    stop_in(folder, resume=True)
    assert (folder / OPTIONS).exists() and (folder / CHECKPOINT).is_dir()
    (tmp_path / "b").mkdir()
    stop_in(tmp_path / "b", resume=False)
    assert not any((tmp_path / "b").iterdir())


def test_what_a_method_keeps_under_names_of_its_own_stays(tmp_path):
    with (
        contextlib.suppress(KeyboardInterrupt),
        open_run(tmp_path / "a", {"--seed": 0}, resume=False),
    ):
        (tmp_path / "a" / "plan-0.8.safetensors").write_text("work")
        raise KeyboardInterrupt
    assert enter(tmp_path / "a") is False


@pytest.mark.parametrize("left", ["", "checkpoint", ".options.json.71-0a1b.tmp/options.json"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_killed_while_its_folder_was_made_begins_anew(tmp_path, left, resume):
    (tmp_path / "a" / left).mkdir(parents=True)
    assert enter(tmp_path / "a", resume=resume) is False
    assert sorted(os.listdir(tmp_path / "a")) == [CHECKPOINT, OPTIONS]


@pytest.mark.parametrize("mine", ["checkpoint/mine", ".thesis.tmp", "checkpoint.txt"])
def test_other_folders_are_no_runs(tmp_path, mine):
    (tmp_path / mine).mkdir(parents=True)
    for resume in (False, True):
        with pytest.raises(ValueError, match="holds no run of varemb; choose another --out"):
            enter(tmp_path, resume=resume)
    assert (tmp_path / mine).is_dir()


def test_a_file_is_no_run(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ValueError, match="holds no run of varemb"):
        enter(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "mine"


def clicks_of(labels):
    count = len(labels)
    ids = torch.arange(count, dtype=torch.int32)[:, None] % 5
    return ClickData(ids, torch.tensor(labels, dtype=torch.float32), ("user",), (5,))


@pytest.mark.parametrize("command", ["search autodim", "train", "compare"])
@pytest.mark.parametrize("label", [0, 1])
def test_labels_of_one_kind_are_refused_before_anything_runs(
    tmp_path, monkeypatch, capsys, command, label
):
    monkeypatch.setitem(experiment.DATA, "ml-1m", lambda folder: clicks_of([label] * 50))
    SizePlan.uniform({"user": 5}, 4, 2).save(tmp_path / "plan")
    own = {"train": ["--plan", str(tmp_path / "plan")], "compare": ["--methods", "fde"]}
    words = [*command.split(), "--data", "ml-1m", "--data-dir", ".", *own.get(command, [])]
    words += ["--out", str(tmp_path / "a")]
    message = f"--data ml-1m: rows to train on must have labels 0 and 1, got 40 rows, {40 * label}"
    assert message in error_of(words, capsys)
    assert not (tmp_path / "a").exists()


def test_a_part_without_an_auc_is_named(monkeypatch):
    one = clicks_of([0] * 9 + [1])
    parts = (clicks_of([0, 1]), clicks_of([0, 1]), one.split(0)[2])
    monkeypatch.setitem(experiment.DATA, "ml-1m", lambda folder: one)
    monkeypatch.setattr(ClickData, "split", lambda data, seed: parts)
    with pytest.raises(ValueError, match="rows to test on must have labels 0 and 1, got 1 rows"):
        experiment.load_task("ml-1m", Path("data"), "fm", TrainConfig())


EVENTS = "who,what,stars,when\n7,1,5,30\n9,1,1,10\n7,2,4.5,30\n8,3,2,20\n"
COLUMNS = ["--user-column", "who", "--item-column", "what", "--rating-column", "stars"]


@pytest.fixture
def events(tmp_path):
    """The words of a command that learns from four events."""
    pytest.importorskip("pyarrow", reason="the file is read by pyarrow")
    (tmp_path / "clicks.csv").write_text(EVENTS)
    columns = [*COLUMNS, "--time-column", "when", "--out", str(tmp_path / "a")]
    return ["--data", str(tmp_path / "clicks.csv"), *columns]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("esapn --threshold 99", "--threshold must have ratings of clicks on both sides, got 99 w"),
        ("esapn --threshold 0.5", "got 0.5 with 4 of 4 ratings above it"),
        ("esapn --threshold nan", "argument --threshold: must be a number, got 'nan'"),
        ("esapn --lowest nan", "argument --lowest: must be a number, got 'nan'"),
        ("esapn --task multiclass --highest NaN", "argument --highest: must be a number"),
        ("scall --memory nan", "argument --memory: must be a number, got 'nan'"),
        ("scall --memory inf", "search scall: --memory must be at most 1e+12, got inf"),
        ("scall --mean-dim inf", "search scall: --mean-dim must be at most 1e+12, got inf"),
        ("scall --memory 1 --seed -1", "--seed: must be a whole number in [0, 2^63), got '-1'"),
        ("esapn --order shuffle --seed -1", "--seed: must be a whole number in [0, 2^63)"),
        ("esapn --seed 9223372036854775808", "--seed: must be a whole number in [0, 2^63)"),
        ("esapn --seed x", "--seed: must be a whole number in [0, 2^63), got 'x'"),
        ("esapn --method fixed --dim 100000", "--dim must be at most 2048, got 100000"),
        ("esapn --method darts --sizes 1000,1100", "--sizes must be at most 2048 together, got 21"),
        ("esapn --threads 1000000000", "--threads must be at most "),
    ],
)
def test_options_that_no_stream_can_have_are_named(events, tmp_path, capsys, words, message):
    assert message in error_of(["search", *words.split(), *events], capsys)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("demo --seed -1", "argument --seed: must be a whole number in [0, 2^63), got '-1'"),
        ("demo --threads 1000000000", "--threads must be at most "),
        ("compare --methods fde --seeds 1,-1", "--seeds: must be a whole number in [0, 2^63)"),
        ("compare --methods mde --mde-alphas 0.1,nan", "--mde-alphas: must be numbers with commas"),
        ("compare --methods fde --lr nan", "argument --lr: must be a number, got 'nan'"),
    ],
)
def test_options_that_no_command_can_have_are_named(capsys, words, message):
    command, *rest = words.split()
    data = ["--data", "ml-1m"] if command == "compare" else []
    assert message in error_of([command, *data, *rest], capsys)


def stop_reading(line):
    """Takes what is said as a pipe that nobody reads any more."""
    raise BrokenPipeError


def stop_at(word):
    return lambda line: stop_reading(line) if word in line else None


def test_a_stream_is_saved_before_it_is_shown(events, tmp_path):
    family = FAMILIES["esapn"]
    config = make_config(family, "fixed", {"dim": 2, "hidden": 4})
    source = Source(events[1], columns=EventColumns("who", "what", "stars", "when"))
    with pytest.raises(BrokenPipeError):
        run_stream(family, "fixed", config, source, Place(tmp_path / "a"), stop_at("accuracy"))
    assert load_run(tmp_path / "a").metrics["method"] == "fixed-2"


def test_a_training_is_saved_before_it_is_shown(tmp_path):
    pytest.importorskip("sklearn", reason="training measures with scikit-learn")
    part = clicks_of([0, 1] * 10)
    task = Task("clicks", "fm", part, part, part, TrainConfig(batch_size=10, max_epochs=1))
    plan = SizePlan.uniform({"user": 5}, 4, 2)
    with pytest.raises(BrokenPipeError):
        run_train(task, plan, "pad", Place(tmp_path / "a"), stop_at("logloss"))
    run = load_run(tmp_path / "a")
    assert run.plan == plan and run.history and run.metrics["method"] == "plan"


def test_a_search_is_saved_before_it_is_shown(tmp_path):
    pytest.importorskip("sklearn", reason="training measures with scikit-learn")
    part = clicks_of([0, 1] * 10)
    task = Task("clicks", "fm", part, part, part, TrainConfig(batch_size=10, max_epochs=1))
    config = experiment.AutoDimConfig(candidates=(1, 2), search_epochs=1, warmup_epochs=0)
    with pytest.raises(BrokenPipeError):
        experiment.run_search(task, config, Place(tmp_path / "a"), stop_at("searched for"))
    assert (tmp_path / "a" / PLAN).exists() and (tmp_path / "a" / HISTORY).exists()


def test_a_comparison_is_saved_before_it_is_shown(tmp_path):
    table = Table("Of two", ["method"], [["FDE"]])
    with pytest.raises(BrokenPipeError):
        write_comparison(tmp_path, {}, [table], [], stop_reading, None)
    assert load_json(tmp_path / "comparison.json")["tables"] == [dataclasses.asdict(table)]
    assert "FDE" in (tmp_path / "comparison.md").read_text()


@pytest.mark.parametrize("name", ["uniform", "mde", "ciess"])
def test_the_command_that_is_pointed_to_can_be_run(tmp_path, capsys, name):
    hint = error_of(["search", name], capsys).partition("another command: varemb ")[2]
    words = hint.replace("DIR", str(tmp_path)).split()
    assert f"{tmp_path}" in error_of(words, capsys)  # the data are missing, nothing else


def test_bars_of_commands_stay_out_of_logs(capsys):
    pytest.importorskip("tqdm", reason="bars are drawn by tqdm")
    with bars_only_in_terminals():
        make_bar("steps", 3, progress=True).close()
        assert capsys.readouterr().err == ""
    make_bar("steps", 3, progress=True).close()
    assert "steps" in capsys.readouterr().err


def test_a_command_writes_no_bars_into_a_log(events, tmp_path, capsys):
    pytest.importorskip("tqdm", reason="bars are drawn by tqdm")
    words = ["search", "esapn", "--method", "fixed", "--dim", "2", "--hidden", "4", *events]
    assert main(words) == 0
    assert capsys.readouterr().err == ""
