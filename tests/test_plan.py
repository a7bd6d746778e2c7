"""What a plan accepts and counts, and what its file gives back."""

import json

import numpy as np
import pytest
import torch

from varemb.files import save_tensors
from varemb.plan import SizePlan
from varemb.storage import PackedStorage

# The plan of the AutoDim paper for MovieLens-1M and the cardinalities it fits.
ML1M_SIZES = {
    "movieId": 3416,
    "year": 81,
    "genres": 301,
    "userId": 6040,
    "gender": 2,
    "age": 7,
    "occupation": 21,
    "zip": 3439,
}
ML1M_DIMS = dict(zip(ML1M_SIZES, [8, 2, 4, 8, 2, 2, 2, 4], strict=True))


def test_autodim_plan_for_movielens_saves_57_percent():
    plan = SizePlan.for_fields(ML1M_SIZES, 16, ML1M_DIMS)
    assert plan.num_params == 90_830
    assert plan.num_params_full == 212_912
    assert round(plan.sparsity, 3) == 0.573


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(1_086_810, 34_777_920), (2_018_012, 64_576_384)],
    ids=["criteo", "avazu"],
)
def test_full_width_counts_of_the_paper(rows, expected):
    assert SizePlan.uniform({"all": rows}, 32, 32).num_params == expected


def test_plan_keeps_order_widths_and_dims():
    plan = SizePlan({"b": [1, 2, 3], "a": torch.tensor([0, 300])}, {"a": 300, "b": 4})
    assert list(plan) == ["b", "a"]
    assert plan.widths == {"b": 4, "a": 300}
    assert plan["a"].tolist() == [0, 300]
    assert plan["a"].dtype == np.int16
    assert len(plan) == 2
    assert "a" in plan
    assert "c" not in plan
    assert plan.num_rows == 5
    assert plan.num_params == 306
    assert plan.num_params_full == 612
    assert plan.mean_dim == 306 / 5
    assert plan.nbytes() == 4 * 306
    assert plan.nbytes(torch.bfloat16) == 2 * 306


def test_plan_takes_dims_that_numpy_has_no_dtype_for():
    dims = torch.tensor([1, 4], dtype=torch.bfloat16)
    assert SizePlan({"a": dims}, 4) == SizePlan({"a": [1, 4]}, 4)


def test_plan_cannot_be_changed():
    source = np.array([1, 2])
    plan = SizePlan({"a": source}, 4)
    source[0] = 4
    assert plan["a"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        plan["a"][0] = 3
    plan.tables.clear()
    plan.widths.clear()
    assert list(plan) == ["a"]
    assert plan.widths == {"a": 4}
    with pytest.raises(AttributeError):
        plan.num_params = 3


def test_plans_are_equal_when_names_order_widths_and_dims_are():
    plan = SizePlan({"a": [1], "b": [2]}, 4)
    assert plan == SizePlan({"a": np.array([1.0]), "b": [2]}, {"b": 4, "a": 4})
    assert plan != SizePlan({"b": [2], "a": [1]}, 4)
    assert plan != SizePlan({"a": [1], "b": [2]}, 5)
    assert plan != SizePlan({"a": [1], "b": [3]}, 4)
    assert plan != SizePlan({"a": [1]}, 4)
    assert plan != "plan"
    with pytest.raises(TypeError, match="unhashable"):
        hash(plan)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ([1, 2, -1], "dims of item must be whole numbers in 0..8, got -1 at row 2"),
        ([1, 9], "got 9 at row 1"),
        ([1.0, 2.5], "got 2.5 at row 1"),
        ([float("nan")], "got nan at row 0"),
        ([float("inf")], "got inf at row 0"),
        ([2**40], "got 1099511627776 at row 0"),
        ([[1, 2]], r"item must be one list of numbers, got shape \(1, 2\)"),
        (3, r"got shape \(\)"),
        (["8"], "must be one list of numbers"),
        ([True, False], "must be one list of numbers"),
        ([None], "must be one list of numbers"),
    ],
)
def test_plan_refuses_bad_dims(dims, message):
    with pytest.raises(ValueError, match=message):
        SizePlan({"user": [1], "item": dims}, 8)


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (0, "width of item must be in 1..2048, got 0"),
        (2049, "got 2049"),
        (-8, "got -8"),
        (8.5, "width must be a whole number, got 8.5"),
        (float("nan"), "whole number, got nan"),
        (True, "whole number, got True"),
        ("8", "whole number, got '8'"),
        ({"user": 8}, r"width must name the tables \['item'\], got \['user'\]"),
        ({"item": 8, "user": 8}, "width must name the tables"),
    ],
)
def test_plan_refuses_bad_widths(width, message):
    with pytest.raises(ValueError, match=message):
        SizePlan({"item": [0]}, width)


def test_plan_refuses_bad_tables():
    with pytest.raises(ValueError, match="at least one table"):
        SizePlan({}, 8)
    with pytest.raises(ValueError, match="table names must be text, got 3"):
        SizePlan({3: [1]}, 8)
    with pytest.raises(ValueError, match=r"dims must name the tables \['a'\], got \['b'\]"):
        SizePlan.for_fields({"a": 3}, 8, {"b": 2})
    with pytest.raises(ValueError, match="rows of a must be >= 0, got -3"):
        SizePlan.uniform({"a": -3}, 8, 2)
    with pytest.raises(KeyError, match=r"no table 'b', there are \['a'\]"):
        SizePlan({"a": [1]}, 8)["b"]


def test_a_table_without_rows_is_a_table():
    plan = SizePlan({"a": [], "b": [2]}, 8)
    assert plan.num_rows == 1
    assert plan.num_params == 2
    assert SizePlan({"a": []}, 8).mean_dim == 0.0
    assert "a" in plan.summary()


def test_summary_counts_by_hand():
    lines = SizePlan({"user": [8, 4, 0], "item": [2, 2]}, 8).summary().splitlines()
    assert [line.split() for line in lines] == [
        ["table", "rows", "width", "min", "mean", "max", "numbers", "saved"],
        ["user", "3", "8", "0", "4.00", "8", "12", "50.0%"],
        ["item", "2", "8", "2", "2.00", "2", "4", "75.0%"],
        ["all", "5", "0", "3.20", "8", "16", "60.0%"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_random_plan_is_uniform_over_candidates_and_repeatable():
    plan = SizePlan.random({"a": 3000, "b": 500}, 16, [2, 4, 8, 16], seed=1)
    assert plan == SizePlan.random({"a": 3000, "b": 500}, 16, [2, 4, 8, 16], seed=1)
    assert plan != SizePlan.random({"a": 3000, "b": 500}, 16, [2, 4, 8, 16], seed=2)
    values, counts = np.unique(plan["a"], return_counts=True)
    assert values.tolist() == [2, 4, 8, 16]
    # Five standard deviations of a count with p = 1/4.
    assert abs(counts - 750).max() < 5 * np.sqrt(3000 * 0.25 * 0.75)


def test_random_plan_per_table():
    plan = SizePlan.random({"a": 50, "b": 60, "c": 0}, 16, [1, 5, 16], seed=3, per="table")
    assert all(len(set(plan[name].tolist())) <= 1 for name in plan)
    drawn = {
        SizePlan.random({"a": 1}, 16, [1, 5, 16], seed=seed, per="table")["a"][0]
        for seed in range(40)
    }
    assert drawn == {1, 5, 16}


def test_random_plan_refuses_bad_candidates():
    with pytest.raises(ValueError, match="at least one candidate"):
        SizePlan.random({"a": 3}, 16, [], seed=0)
    with pytest.raises(ValueError, match=r"in 0\.\.16, got 32"):
        SizePlan.random({"a": 3}, 16, [32], seed=0)
    with pytest.raises(ValueError, match='per must be "row" or "table", got \'field\''):
        SizePlan.random({"a": 3}, 16, [2], seed=0, per="field")


def test_wide_plans_count_what_tables_store():
    plan = SizePlan({"a": [1, 16, 17, 0, 2048], "b": [257, 3]}, {"a": 2048, "b": 257})
    # a: 16 + 16 + 32 + 0 + 2048 in granules of 16; b: 258 + 4 in granules of 2.
    tables = [PackedStorage(torch.tensor(plan[name]), plan.widths[name]) for name in plan]
    assert [table.weight.numel() for table in tables] == [2112, 262]
    assert plan.num_params == 2112 + 262
    assert plan.num_params_full == 5 * 2048 + 2 * 257
    assert plan.mean_dim == (2082 + 260) / 7
    assert [line.split()[-2] for line in plan.summary().splitlines()[1:]] == [
        "2,112",
        "262",
        "2,374",
    ]
    assert SizePlan.uniform({"a": 100}, 257, 257).num_params == 25_800


def test_plan_file_gives_back_the_plan(tmp_path):
    plan = SizePlan(
        {"movie ü": [0, 2048, 3], "__metadata__": [5], "empty": []},
        {"movie ü": 2048, "__metadata__": 7, "empty": 1},
    )
    plan.save(tmp_path / "plan.safetensors")
    loaded = SizePlan.load(tmp_path / "plan.safetensors")
    assert loaded == plan
    assert list(loaded) == list(plan)
    assert loaded["movie ü"].dtype == np.int16


def test_plan_file_is_small(tmp_path):
    SizePlan.for_fields(ML1M_SIZES, 16, ML1M_DIMS).save(tmp_path / "plan")
    assert (tmp_path / "plan").stat().st_size < 2 * 13_307 + 2000


def entry(name: object = "item", width: object = 8) -> dict:
    return {"name": name, "width": width}


GOOD_DIMS = torch.tensor([1, 2], dtype=torch.int16)


@pytest.mark.parametrize(
    ("tensors", "tables", "reason"),
    [
        ({"0": torch.tensor([1, 9], dtype=torch.int16)}, [entry()], "got 9 at row 1"),
        ({"0": torch.tensor([-1, 0], dtype=torch.int16)}, [entry()], "got -1 at row 0"),
        ({"0": torch.tensor([1.0, 2.0])}, [entry()], "dims must be int16"),
        ({"0": GOOD_DIMS[None]}, [entry()], "must be one list of numbers"),
        ({"0": GOOD_DIMS}, [entry(width=5000)], "must be in 1..2048, got 5000"),
        ({"0": GOOD_DIMS}, [entry(width="8")], "whole number"),
        ({"0": GOOD_DIMS}, [entry(width=[])], "whole number"),
        ({"0": GOOD_DIMS}, [entry(), entry("user")], "'1'"),
        ({"0": GOOD_DIMS, "1": GOOD_DIMS}, [entry()], "1 tables described, 2 stored"),
        ({"0": GOOD_DIMS, "1": GOOD_DIMS}, [entry(), entry()], "2 tables described"),
        ({"0": GOOD_DIMS}, [{"name": "item"}], "width"),
        ({"0": GOOD_DIMS}, [3], "not subscriptable"),
        ({"0": GOOD_DIMS}, 3, "not iterable"),
        ({}, [], "at least one table"),
    ],
)
def test_load_refuses_a_plan_that_lies(tmp_path, tensors, tables, reason):
    path = tmp_path / "bad.safetensors"
    metadata = {"format": "varemb.plan", "version": "1", "tables": json.dumps(tables)}
    save_tensors(path, tensors, metadata)
    with pytest.raises(ValueError, match=rf"bad\.safetensors is no valid plan: .*{reason}"):
        SizePlan.load(path)


def test_load_refuses_other_files(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"0": GOOD_DIMS})
    with pytest.raises(ValueError, match=r"weights.safetensors must be a varemb\.plan file"):
        SizePlan.load(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        SizePlan.load(tmp_path / "missing")


def test_load_refuses_every_truncation(tmp_path):
    path = tmp_path / "plan.safetensors"
    SizePlan({"item": [1, 2, 3]}, 8).save(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"plan\.safetensors"):
            SizePlan.load(path)
