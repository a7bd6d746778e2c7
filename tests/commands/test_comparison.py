from varemb.cli import main


def test_grids_without_tune_are_refused(tmp_path, capsys):
    words = ["compare", "--data", "ml-1m", "--data-dir", str(tmp_path), "--methods", "fde"]
    for option in ("--tune-lr", "--tune-weight-decay"):
        assert main([*words, option, "0.1,0.2"]) == 2
        error = capsys.readouterr().err
        assert error == f"varemb: compare: {option} says what --tune tries: add --tune\n"
    # With --tune the command goes on to the data.
    assert main([*words, "--tune", "--tune-lr", "0.1"]) == 2
    assert "ratings.parquet" in capsys.readouterr().err
