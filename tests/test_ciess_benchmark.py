"""The benchmark of CIESS runs on small data and says what was asked for."""

import mmap

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from search.pairs import planted_pairs

from benchmarks.bench_ciess import DenseMasked, main, peak_bytes


@pytest.fixture(name="folder", scope="module")
def make_folder(tmp_path_factory):
    split = planted_pairs()
    users, items = (np.concatenate(rows) for rows in zip(*split.parts(), strict=True))
    folder = tmp_path_factory.mktemp("data")
    parquet.write_table(
        pyarrow.table({"user": users, "item": items}), folder / "interactions.parquet"
    )
    return str(folder)


def run(folder, *options):
    common = ["--data-dir", folder, "--data", "amazon-book-kgat", "--batch", "50", "--width", "8"]
    assert main([*common, "--threads", "1", *options]) == 0


def test_steps_rankings_and_iterations_are_measured(folder, capsys):
    run(folder, "--models", "mf,ncf", "--steps", "2", "--ranks", "1", "--iterations", "2",
        "--epochs", "1")  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert sum("step of 50" in line for line in lines) == 2
    assert sum("rank all users" in line for line in lines) == 2
    records = [line for line in lines if line.startswith("  sparsity")]
    assert len(records) == 2 and all("evaluation and rl" in line for line in records)


@pytest.mark.parametrize("table", ["packed", "masked"])
def test_memory_of_both_tables_is_measured(folder, capsys, table):
    run(folder, "--memory", table, "--sparsity", "0.5")
    assert f"lightgcn, {table}, sparsity 0.5" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ncf", "lightgcn"])
def test_losses_of_both_tables_stay_together(folder, capsys, name):
    run(folder, "--losses", "--models", name, "--sparsity", "0.5")
    apart = capsys.readouterr().out.rpartition("at most ")[2].split()[0]
    assert float(apart) < 1e-6


def test_peak_bytes_sees_what_is_freed_again():
    def fill():
        with mmap.mmap(-1, 32_000_000) as pages:  # new pages, whatever the allocator has kept
            pages.write(b"x" * 32_000_000)

    assert peak_bytes(fill) > 31e6


def test_a_masked_table_is_its_rows_cut():
    table = DenseMasked(torch.ones(2, 3), np.array([1, 2]))
    assert table(torch.tensor([1, 0])).tolist() == [[1, 1, 0], [1, 0, 0]]
