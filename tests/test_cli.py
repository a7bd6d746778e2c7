"""The command line on a small data set: folders, kills, resumes, and errors of one line."""

import shlex
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import error_of, start

from varemb import cli
from varemb.cli import main
from varemb.files import load_json, load_jsonl
from varemb.plan import SizePlan

for package in ("sklearn", "tqdm"):
    pytest.importorskip(package, reason="training measures with scikit-learn and shows progress")

USERS, MOVIES = 60, 40
QUICK = [
    "--candidates", "2,4", "--batch-size", "200", "--search-batch-size", "200",
    "--max-epochs", "3", "--search-epochs", "2", "--threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """MovieLens 1M in small, as the publisher's three files."""
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    users = [f"{u}::{'FM'[u % 2]}::{25}::{u % 4}::{u % 9}" for u in range(1, USERS + 1)]
    movies = [f"{m}::Title ({1990 + m % 8})::Drama|War" for m in range(1, MOVIES + 1)]
    pairs = draw.permutation(USERS * MOVIES)
    taste = draw.normal(size=USERS)[:, None] * draw.normal(size=MOVIES) > 0
    ratings = [
        f"{p // MOVIES + 1}::{p % MOVIES + 1}::{4 if taste[p // MOVIES, p % MOVIES] else 2}::{p}"
        for p in pairs
    ]
    for name, lines in (("users", users), ("movies", movies), ("ratings", ratings)):
        (folder / f"{name}.dat").write_text("\n".join(lines) + "\n", "latin-1")
    return folder


@pytest.fixture(autouse=True)
def keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def search_words(data_dir: Path, out: Path, *more: str) -> list[str]:
    task = ["--data", "ml-1m", "--data-dir", str(data_dir), "--out", str(out)]
    return ["search", "autodim", *task, *QUICK, *more]


@pytest.fixture(scope="module")
def searched(data_dir, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "a"
    assert main(search_words(data_dir, out)) == 0
    return out


def test_search_writes_the_run_folder(searched):
    names = {path.name for path in searched.iterdir()}
    assert names == {
        "options.json", "plan.safetensors", "metrics.json", "history.jsonl", "checkpoint",
    }  # fmt: skip
    metrics = load_json(searched / "metrics.json")
    plan = SizePlan.load(searched / "plan.safetensors")
    (fde,) = metrics["compared"]
    for result, method in ((metrics, "autodim"), (fde, "fde")):
        assert result["method"] == method
        assert result["data"] == "ml-1m"
        assert result["model"] == "wide-deep"
        assert result["seed"] == 0
        assert set(result["bytes"]) >= {"weights", "index", "unify", "optimizer"}
        assert 0 < result["metrics"]["auc"] < 1
        assert result["rows_per_second"] > 0
        assert result["params_full"] == plan.num_params_full
        assert result["bytes"]["weights"] == 4 * result["params"]
    assert metrics["params"] == plan.num_params
    assert metrics["search_seconds"] > 0
    assert metrics["train_seconds"] > 0
    assert metrics["seconds"] == metrics["search_seconds"] + metrics["train_seconds"]
    assert fde["params"] == plan.num_params_full
    assert fde["bytes"]["unify"] == 0
    history = load_jsonl(searched / "history.jsonl")
    phases = [(record["phase"], record.get("method")) for record in history]
    assert phases.count(("warmup", None)) == 1
    assert phases.count(("search", None)) == 2
    assert phases.count(("train", "autodim")) == metrics["epochs"]
    assert phases.count(("train", "fde")) == fde["epochs"]


def test_search_prints_the_comparison(data_dir, tmp_path, capsys):
    assert main(search_words(data_dir, tmp_path / "a", "--seed", "1")) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if line.startswith("method"))
    columns = ["method", "AUC", "logloss", "numbers", "saved"]
    assert head.split() == [*columns, "weights", "index", "unify", "optimizer", "seconds"]
    assert [line.split()[0] for line in lines[lines.index(head) + 1 :][:2]] == ["AutoDim", "FDE"]
    assert any(line.startswith("userId") for line in lines)
    found = load_json(tmp_path / "a" / "metrics.json")
    gain = found["metrics"]["auc"] - found["compared"][0]["metrics"]["auc"]
    assert any(line.startswith(f"AutoDim against FDE: AUC {gain:+.4f}, ") for line in lines)
    assert lines[-1].endswith(f"next: varemb report {tmp_path / 'a'}")


def test_search_never_overwrites_a_run(data_dir, searched, capsys):
    before = {path: path.stat().st_mtime_ns for path in searched.rglob("*")}
    error = error_of(search_words(data_dir, searched), capsys)
    assert "holds a finished run; add --resume to continue it, or choose another --out" in error
    assert main(search_words(data_dir, searched, "--resume")) == 0
    assert "holds this run, finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in searched.rglob("*")} == before


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--seed", "3", "was started with --seed 0, got 3"),
        ("--candidates", "2,4,8", r"--candidates [2, 4], got [2, 4, 8]"),
        ("--lr", "0.5", "--lr 0.001, got 0.5"),
        ("--search-lr", "0.5", "--search-lr 0.001, got 0.5"),
        ("--f", "3", "--f 10, got 3"),
    ],
)
def test_resume_refuses_other_options_by_name(data_dir, searched, capsys, option, value, message):
    assert message in error_of(search_words(data_dir, searched, "--resume", option, value), capsys)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--lr", "-1", "training: --lr must be finite and at least 0, got -1.0"),
        ("--weight-decay", "inf", "training: --weight-decay must be finite"),
        ("--search-lr", "-1", "AutoDim: --search-lr must be finite"),
        ("--variant", "ad-9", "AutoDim: --variant must be ad-1, ad-2, ad-3, ad-4, got 'ad-9'"),
        ("--candidates", "8,4096", "AutoDim: --candidates must be at most 2048, got 4096"),
        (
            "--candidates",
            "8,2",
            "AutoDim: --candidates must be positive and increasing, got (8, 2)",
        ),
    ],
)
def test_settings_are_refused_before_the_data_is_read(tmp_path, capsys, option, value, message):
    words = ["search", "autodim", "--data", "ml-1m", "--data-dir", str(tmp_path), option, value]
    assert message in error_of(words, capsys)


def test_resume_refuses_other_data(data_dir, searched, tmp_path, capsys):
    for path in data_dir.iterdir():
        lines = path.read_text().splitlines()
        kept = lines[:-1] if path.name == "ratings.dat" else lines
        (tmp_path / path.name).write_text("\n".join(kept) + "\n")
    error = error_of(search_words(tmp_path, searched, "--resume"), capsys)
    assert "was started with content of --data-dir checksum" in error


def wait_for(path: Path, run: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert run.poll() is None and time.monotonic() < deadline, run.poll()
        time.sleep(0.002)


def test_search_continues_after_ctrl_c_and_after_a_kill(data_dir, tmp_path):
    # Longer epochs than elsewhere, so that both signals arrive in the middle of the work.
    more = ["--batch-size", "20", "--search-batch-size", "20", "--max-epochs", "4"]
    out = tmp_path / "stopped"
    words = search_words(data_dir, out, *more)
    run = start(words)
    wait_for(out / "checkpoint" / "autodim.safetensors", run)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert "Traceback" not in errors
    last = errors.replace("\r", "\n").strip().splitlines()[-1]
    assert last.endswith(f"stopped; continue with: varemb {shlex.join(words)} --resume")
    assert not (out / "metrics.json").exists()

    words.append("--resume")
    run = start(words)
    wait_for(out / "checkpoint" / "train-autodim.safetensors", run)
    run.kill()
    run.communicate()
    assert run.returncode == -signal.SIGKILL
    assert not (out / "metrics.json").exists()
    assert main(words) == 0

    assert main(search_words(data_dir, tmp_path / "whole", *more)) == 0
    stopped, whole = (load_json(tmp_path / name / "metrics.json") for name in ("stopped", "whole"))
    for result, expected in (
        (stopped, whole),
        (stopped["compared"][0], whole["compared"][0]),
    ):
        for name in ("metrics", "valid", "params", "bytes", "epochs"):
            assert result[name] == expected[name], name
    plans = [SizePlan.load(tmp_path / name / "plan.safetensors") for name in ("stopped", "whole")]
    assert plans[0] == plans[1]


def test_train_on_a_plan(data_dir, searched, tmp_path, capsys):
    words = ["train", "--plan", str(searched / "plan.safetensors"), "--data", "ml-1m"]
    words += ["--data-dir", str(data_dir), "--out", str(tmp_path / "t"), "--threads", "1"]
    words += ["--max-epochs", "3", "--batch-size", "200"]
    assert main(words) == 0
    trained, found = (
        load_json(tmp_path / "t" / "metrics.json"),
        load_json(searched / "metrics.json"),
    )
    assert trained["method"] == "plan"
    assert trained["metrics"] == found["metrics"]
    assert trained["bytes"] == found["bytes"]
    assert "holds a finished run" in error_of(words, capsys)
    assert "--unify linear, got pad" in error_of([*words, "--resume", "--unify", "pad"], capsys)
    other = tmp_path / "other.safetensors"
    plan = SizePlan.load(searched / "plan.safetensors")
    SizePlan({name: plan[name] * 0 + 1 for name in plan}, 4).save(other)
    words[2] = str(other)
    assert "started with content of --plan" in error_of([*words, "--resume"], capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"userId": 61}, "its table userId has 61 rows, the field userId of ml-1m has 60"),
        ({"userId": None}, "it has no table userId"),
        ({"shoe": 3}, "ml-1m has no field shoe"),
    ],
)
def test_train_refuses_a_plan_for_other_tables(
    data_dir, searched, tmp_path, capsys, change, message
):
    plan = SizePlan.load(searched / "plan.safetensors")
    sizes = {name: len(plan[name]) for name in plan} | change
    rows = {name: count for name, count in sizes.items() if count}
    SizePlan.uniform(rows, 4, 2).save(tmp_path / "p")
    words = ["train", "--plan", str(tmp_path / "p"), "--data", "ml-1m"]
    words += ["--data-dir", str(data_dir), "--out", str(tmp_path / "t")]
    assert message in error_of(words, capsys)
    assert not (tmp_path / "t").exists()


def test_train_refuses_a_plan_in_another_order(data_dir, searched, tmp_path, capsys):
    plan = SizePlan.load(searched / "plan.safetensors")
    SizePlan({name: plan[name] for name in reversed(list(plan))}, 4).save(tmp_path / "p")
    words = ["train", "--plan", str(tmp_path / "p"), "--data", "ml-1m"]
    words += ["--data-dir", str(data_dir), "--out", str(tmp_path / "t")]
    assert "tables in the order movieId, year" in error_of(words, capsys)


def test_train_refuses_a_damaged_plan(data_dir, tmp_path, capsys):
    (tmp_path / "p").write_bytes(b"\x80\x04 not a plan")
    words = ["train", "--plan", str(tmp_path / "p"), "--data", "ml-1m", "--data-dir", str(data_dir)]
    assert "p is a pickle file" in error_of(words, capsys)
    words[2] = str(tmp_path / "gone")
    missing = "train: --plan must be the plan.safetensors of a search, "
    assert f"{missing}{tmp_path / 'gone'} is no file" in error_of(words, capsys)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--canditates", "2,4"], "unknown option --canditates, did you mean --candidates?"),
        (["--candid", "2,4"], "unknown option --candid, did you mean --candidates?"),
        (["--zzz=3"], "unknown option --zzz"),
        (["leftover"], "unexpected argument 'leftover'"),
        (["--candidates", "2,x"], "whole numbers with commas between, such as 2,4,8, got '2,x'"),
        (["--candidates", "8,2"], "candidates must be positive and increasing, got (8, 2)"),
        (["--candidates", "4096"], "2048"),
        (["--data", "ml-2m"], "invalid choice: 'ml-2m'"),
        (["--model", "gpt"], "invalid choice: 'gpt'"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--lr", "fast"], "argument --lr: must be a number, got 'fast'"),
        (["--data-dir", "nowhere"], "nowhere"),
    ],
)
def test_search_refuses_what_it_does_not_know(data_dir, tmp_path, capsys, more, message):
    words = search_words(data_dir, tmp_path / "a", *more)
    assert message in error_of(words, capsys)
    assert not (tmp_path / "a").exists()


def test_search_names_what_the_data_folder_lacks(data_dir, tmp_path, capsys):
    for path in data_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "users.dat").unlink()
    words = search_words(tmp_path, tmp_path / "a")
    assert "users.dat" in error_of(words, capsys)
    assert not (tmp_path / "a").exists()
    words = ["search", "autodim", "--data", "ml-1m"]
    assert "--data ml-1m needs --data-dir" in error_of(words, capsys)


def test_a_folder_that_holds_something_else_is_left_alone(data_dir, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert "holds no run" in error_of(search_words(data_dir, tmp_path), capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_default_folder_is_named_after_the_run(data_dir, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "run_search", lambda task, config, place: seen.append((config, place)))
    monkeypatch.chdir(tmp_path)
    words = ["search", "autodim", "--data", "ml-1m", "--data-dir", str(data_dir), "--seed", "7"]
    assert main([*words, "--lambda", "0.5"]) == 0
    ((config, place),) = seen
    assert place.folder == Path("runs/autodim-ml-1m-wide-deep-seed7")
    assert config.seed == 7
    assert config.lambda_ == 0.5


def test_ctrl_c_without_a_run_is_one_line(monkeypatch, capsys):
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_demo", stop)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "varemb: stopped\n"
    assert main(["demo", "--out", "a b"]) == 130
    assert capsys.readouterr().err == (
        "varemb: stopped; continue with: varemb demo --out 'a b' --resume\n"
    )
    assert main(["demo", "--out", "a", "--resume"]) == 130
    assert capsys.readouterr().err.endswith("demo --out a --resume\n")


def test_traceback_is_shown_on_request(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--traceback"]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" in errors
    assert "load_run" in errors


def test_no_command_and_help(capsys):
    assert "COMMAND" in error_of([], capsys)
    for words in (["--help"], ["search", "autodim", "--help"], ["report", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "example: varemb report runs/seed0" in text
    assert "--tau-floor" in text


def test_info_says_what_is_there_and_what_is_not(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_version", lambda package: None if package == "matplotlib" else "9.9")
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = {line.split("  ", 1)[0]: line.split("  ", 1)[1].strip() for line in lines}
    assert words["torch"] == torch.__version__
    assert words["matplotlib"] == "missing: pip install 'varemb[plots]'"
    assert words["backends reference"] == "available"
    assert "backends cpu" in words


def test_report_of_a_run(searched, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the report draws with matplotlib")
    assert main(["report", str(searched), "--out", str(tmp_path / "r")]) == 0
    written = capsys.readouterr().out.split()
    assert written == [str(tmp_path / "r" / "report.png"), str(tmp_path / "r" / "report.html")]
    auc = load_json(searched / "metrics.json")["metrics"]["auc"]
    assert f"{auc:.4f}" in (tmp_path / "r" / "report.html").read_text()
    assert "no folder of a run" in error_of(["report", str(tmp_path / "gone")], capsys)


def test_bench_hands_over(monkeypatch, tmp_path, capsys):
    calls = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess:
        calls.append((command[1:], options["cwd"]))
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(cli.subprocess, "run", run)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "run.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "lookup", "--quick"]) == 1
    assert calls == [(["-m", "benchmarks.run", "lookup", "--quick"], tmp_path)]


def test_bench_outside_a_checkout_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site" / "varemb" / "cli.py"))
    assert "run it from a checkout" in error_of(["bench", "lookup"], capsys)
