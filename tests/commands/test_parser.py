"""What the command line says of commands that do not exist, and where its help points."""

import pytest
from command_line import error_of

from varemb.cli import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serch"], "no command 'serch' here, did you mean search?"),
        (["xyz"], "no command 'xyz' here, there are info, demo, search, train, compare, report, "),
        (["search", "autodin"], "no method 'autodin' here, did you mean autodim?"),
        (["search", "ciess"], "another command: varemb compare --model lightgcn --methods ciess"),
        (["search", "NIS"], "another command: varemb compare --model wide-deep --methods nis"),
    ],
)
def test_commands_that_do_not_exist(capsys, words, message):
    assert message in error_of(words, capsys)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--version"], ["varemb "]),
        (["search", "--help"], ["CIESS", "varemb compare --help"]),
        (["bench", "--help"], ["overhead", "OP [OPTION ...]", "--quick", "--json", "--threads"]),
    ],
)
def test_help_tells_what_is_where(capsys, words, parts):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(part in text for part in parts), text
