"""`varemb search esapn | scall` on small files: folders, progress, kills, errors of one line."""

import shlex
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import error_of, start

from varemb.cli import main
from varemb.files import load_json, load_jsonl
from varemb.plan import SizePlan

for package in ("pyarrow", "tqdm"):
    pytest.importorskip(package, reason="streams are read by pyarrow and show their progress")

EVENTS = 1200
ESAPN = ["--sizes", "2,4,8", "--hidden", "16", "--batch-size", "50", "--window", "300"]
SCALL = [
    "--memory", "0.004", "--threshold", "30", "--batch-size", "200", "--steps", "3",
    "--max-rounds", "1", "--min-trials", "1", "--max-trials", "1", "--calibrations", "1",
]  # fmt: skip
COLUMNS = ["--user-column", "who", "--item-column", "what"]
RATED = [*COLUMNS, "--rating-column", "stars", "--time-column", "when"]


@pytest.fixture(scope="module")
def clicks(tmp_path_factory) -> Path:
    """Users and items that keep coming, and ratings from which their taste can be learnt."""
    draw = np.random.default_rng(0)
    newest = 5 + 60 * np.arange(EVENTS) // EVENTS
    who, what = draw.integers(0, newest), draw.integers(0, newest)
    stars = 1 + 4 * ((who + what) % 2)
    events = zip(who, what + 10**15, stars, range(EVENTS), strict=True)
    lines = [",".join(map(str, event)) for event in events]
    path = tmp_path_factory.mktemp("data") / "clicks.csv"
    path.write_text("who,what,stars,when\n" + "\n".join(lines) + "\n")
    return path


def words_of(command: str, clicks: Path, out: Path, *more: str) -> list[str]:
    own = ESAPN if command == "esapn" else SCALL
    return ["search", command, "--data", str(clicks), *RATED, "--out", str(out), *own, *more]


def run(*words: str) -> None:
    assert main(list(words)) == 0


@pytest.mark.parametrize("method", ["esapn", "fixed", "darts", "autoemb", "scall"])
def test_search_writes_the_run_folder(clicks, tmp_path, capsys, method):
    command = "scall" if method == "scall" else "esapn"
    chosen = ["--method", method] if command == "esapn" else []
    own = [] if method != "fixed" else ["--dim", "8"]
    words = words_of(command, clicks, tmp_path / "run", *chosen, *own)
    if method == "fixed":
        del words[words.index("--sizes") : words.index("--sizes") + 2]
    run(*words)
    said = capsys.readouterr().out
    metrics = load_json(tmp_path / "run" / "metrics.json")
    plan = SizePlan.load(tmp_path / "run" / "plan.safetensors")
    assert list(plan) == ["user", "item"]
    assert metrics["data"] == "clicks" and metrics["order"] == "time"
    assert metrics["events"] == EVENTS
    assert (metrics["users"], metrics["items"]) == (len(plan["user"]), len(plan["item"]))
    assert metrics["params"] == plan.num_params <= metrics["params_full"]
    assert metrics["tables"]["widths"] and metrics["tables"]["width_by_frequency"]
    history = load_jsonl(tmp_path / "run" / "history.jsonl")
    assert history[-1]["events"] == EVENTS or command == "scall"
    assert {"bytes", "live_numbers", "mean_dim_user", "mean_dim_item"} <= set(history[0])
    quality = {"recall@20", "ndcg@20"} if command == "scall" else {"accuracy", "mse"}
    assert quality <= set(metrics["metrics"])
    if command == "scall":
        assert metrics["method"] == "scall 0.004MB"
        assert max(record["bytes"] for record in history) <= 4000
        assert {record["budget_bytes"] for record in history} == {4000}
    else:
        assert metrics["tables"]["quality_by_frequency"]
        names = {"fixed": "fixed-8", "esapn": "esapn sizes=2,4,8"}
        assert metrics["method"] == names.get(method, method)
    assert "clicks, order time: 1,200 events" in said
    assert said.rstrip().endswith(f"next: varemb report {tmp_path / 'run'}")


@pytest.mark.parametrize("command", ["esapn", "scall"])
def test_a_report_of_two_policies(clicks, tmp_path, capsys, command):
    pytest.importorskip("matplotlib", reason="the report draws with matplotlib")
    other = "always" if command == "esapn" else "uniform"
    run(*words_of(command, clicks, tmp_path / "own"))
    run(*words_of(command, clicks, tmp_path / "other", "--policy", other))
    run("report", str(tmp_path / "own"), str(tmp_path / "other"))
    page = (tmp_path / "own" / "report.html").read_text()
    names = {
        "esapn": ("ESAPN, sizes 2,4,8", "ESAPN, sizes 2,4,8, policy always"),
        "scall": ("SCALL, 0.004MB", "uniform, 0.004MB"),
    }
    for name in names[command]:
        assert f"<td>{name}, seed 0</td>" in page


def test_a_finished_run_is_shown_again(clicks, tmp_path, capsys):
    words = words_of("esapn", clicks, tmp_path / "run", "--events", "300")
    run(*words)
    said = capsys.readouterr().out.splitlines()
    assert "holds a finished run; add --resume" in error_of(words, capsys)
    run(*words, "--resume")
    again = capsys.readouterr().out.splitlines()
    assert "holds this run, finished" in again[0]
    assert again[1:3] == said[1:3]
    assert "--price 0.0, got 0.5" in error_of([*words, "--resume", "--price", "0.5"], capsys)


def test_search_continues_after_ctrl_c_and_after_a_kill(clicks, tmp_path):
    more = ["--checkpoint-every", "10", "--batch-size", "8"]
    words = words_of("esapn", clicks, tmp_path / "stopped", *more)
    for how in (signal.SIGINT, signal.SIGKILL):
        process = start(words)
        wait_for_a_checkpoint(tmp_path / "stopped" / "checkpoint", process)
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
        assert not (tmp_path / "stopped" / "metrics.json").exists(), errors
        if how == signal.SIGINT:
            assert process.returncode == 130, errors
            last = errors.replace("\r", "\n").strip().splitlines()[-1]
            assert last.endswith(f"stopped; continue with: varemb {shlex.join(words)} --resume")
            words.append("--resume")
    run(*words)
    run(*words_of("esapn", clicks, tmp_path / "whole", *more))
    stopped, whole = (load_json(tmp_path / name / "metrics.json") for name in ("stopped", "whole"))
    for name in ("metrics", "params", "tables"):
        assert stopped[name] == whole[name], name
    plans = [SizePlan.load(tmp_path / name / "plan.safetensors") for name in ("stopped", "whole")]
    assert plans[0] == plans[1]


def wait_for_a_checkpoint(folder: Path, process: subprocess.Popen) -> None:
    """Until a file of the folder is newer than now."""
    began, deadline = time.time(), time.monotonic() + 60
    while not any(path.stat().st_mtime > began for path in folder.glob("*.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline, process.poll()
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("esapn", ["--data", "ml-2m"], "--data must be one of ml-1m, ml-100k, "),
        ("esapn", ["--data", "ml-1m"], "--data ml-1m needs --data-dir"),
        ("esapn", ["--method", "fixed"], "--sizes is an option of esapn, darts, autoemb, not of f"),
        ("esapn", ["--method", "mde"], "invalid choice: 'mde'"),
        ("esapn", ["--order", "random"], "invalid choice: 'random'"),
        ("esapn", ["--lowest", "2"], "line 5, column stars: must be a number from 2 to 5, got 1"),
        ("esapn", ["--task", "ternary"], "task must be one of binary, multiclass, got 'ternary'"),
        ("esapn", ["--polciy", "always"], "unknown option --polciy, did you mean --policy?"),
        ("esapn", ["--item-column", "item"], "lacks the column item, it has ['who', 'what', "),
        ("scall", ["--memory", "0"], "give a budget, either --memory or --mean-dim, got"),
        ("scall", ["--memory", "0.0001"], "budget"),
        ("scall", ["--threshold", "100000"], "threshold"),
        ("scall", ["--threads", "0"], "--threads must be at least 1, got 0"),
    ],
)
def test_errors_are_one_line(clicks, tmp_path, capsys, command, more, message):
    assert message in error_of(words_of(command, clicks, tmp_path / "run", *more), capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("esapn", ["--lr", "-1"], "ESAPN: --lr must be finite and at least 0, got -1.0"),
        ("esapn", ["--policy-lr", "inf"], "--policy-lr must be finite"),
        ("esapn", ["--sizes", "8,2"], "ESAPN: --sizes must be positive and increasing"),
        ("esapn", ["--method", "fixed", "--dim", "0"], "FIXED: --dim must be at least 1, got 0"),
        ("esapn", ["--method", "darts", "--sizes", "8,2"], "DARTS: --sizes must be"),
        ("esapn", ["--method", "autoemb", "--most-frequent", "0"], "AutoEmb: --most-frequent must"),
        ("scall", ["--memory", "1", "--lr", "-1"], "SCALL: --lr must be finite"),
        ("scall", ["--memory", "1", "--width", "256"], "SCALL: --width must be at most 255"),
    ],
)
def test_settings_are_refused_before_the_data_is_read(capsys, command, more, message):
    words = ["search", command, "--data", "no-such-file", *more]
    assert message in error_of(words, capsys)


def test_files_without_times_or_ratings_name_the_missing_option(clicks, tmp_path, capsys):
    words = ["search", "esapn", "--data", str(clicks), *COLUMNS, "--out", str(tmp_path / "run")]
    missing = f"--rating-column must name the column of {clicks} with the ratings to learn"
    assert missing in error_of([*words, "--order", "file"], capsys)
    words += ["--rating-column", "stars"]
    missing = f"--time-column must name the column of {clicks} with the times; or choose --order"
    assert missing in error_of(words, capsys)
    assert not (tmp_path / "run").exists()


def test_help_names_every_option_once(capsys):
    for command in ("esapn", "scall"):
        with pytest.raises(SystemExit) as stop:
            main(["search", command, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert f"example: varemb search {command} --data" in text.replace("\n", " ")
        for option in ("--policy", "--order", "--resume", "--batch-size"):
            assert text.count(f"\n  {option} ") == 1, option
