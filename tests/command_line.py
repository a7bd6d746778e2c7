"""The command line under test: its one-line errors, and processes of its own to stop."""

import signal
import subprocess
import sys

import pytest

from varemb.cli import main


def error_of(words: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line that the command ends with."""
    capsys.readouterr()
    try:
        code = main(words)
    except SystemExit as stop:  # argparse
        code = stop.code
    text = capsys.readouterr().err
    assert code == 2, text
    assert "Traceback" not in text
    lines = text.replace("\r", "\n").splitlines()  # a bar stands before a carriage return
    first, *rest = lines[next(i for i, line in enumerate(lines) if line.startswith("varemb: ")) :]
    assert all(line.startswith("see: varemb") for line in rest)
    return first


def start(words: list[str]) -> subprocess.Popen:
    """The command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "varemb", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets its background jobs ignore Ctrl-C, and they their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
