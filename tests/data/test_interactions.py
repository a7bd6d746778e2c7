"""Purchases from files and their splits: repeats, gaps, users and items without, saving, faults."""

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from varemb.data.interactions import (
    Interactions,
    Pairs,
    Split,
    load_interactions,
    read_edge_lists,
    read_interactions,
)


def random_interactions(users=30, items=40, count=600, seed=0):
    draw = np.random.default_rng(seed)
    return Interactions.from_ids(
        draw.integers(0, users, count) * 7 + 3, draw.integers(0, items, count) * 11
    )


def raw_pairs(interactions, pairs):
    users, items = pairs
    return set(
        zip(interactions.user_ids[users].tolist(), interactions.item_ids[items].tolist(),
            strict=True)
    )  # fmt: skip


def test_repeats_count_once_and_gaps_leave_no_rows():
    users, items = np.array([90, 7, 90, 7, 7]), np.array([5, 5, 5, 2**62, 5])
    bought = Interactions.from_ids(users, items, "mine")
    assert len(bought) == 3 and bought.repeats == 2 and bought.name == "mine"
    assert bought.user_ids.tolist() == [7, 90] and bought.item_ids.tolist() == [5, 2**62]
    assert raw_pairs(bought, bought.pairs) == {(90, 5), (7, 5), (7, 2**62)}


def test_split_parts_hold_every_pair_once_in_the_shares_of_each_user():
    bought = random_interactions()
    split = bought.split(42)
    parts = [raw_pairs(bought, part) for part in split.parts()]
    assert set.union(*parts) == raw_pairs(bought, bought.pairs)
    assert sum(map(len, parts)) == len(bought)
    counts = np.bincount(bought.pairs.users)
    for share, users in zip((0.5, 0.25, 0.25), (part.users for part in split.parts()), strict=True):
        assert (np.abs(np.bincount(users, minlength=len(counts)) - share * counts) <= 1).all()


@pytest.mark.parametrize(("count", "sizes"), [
    (1, (1, 0, 0)), (2, (1, 1, 0)), (3, (2, 0, 1)), (4, (2, 1, 1)), (5, (3, 1, 1)), (8, (4, 2, 2))
])  # fmt: skip
def test_split_rounds_half_up_and_leaves_a_first_pair_to_learn(count, sizes):
    users = np.concatenate([np.zeros(count, int), np.ones(8, int)])
    items = np.concatenate([np.arange(count), np.arange(8)])
    split = Interactions.from_ids(users, items).split(0)
    assert tuple(int((part.users == 0).sum()) for part in split.parts()) == sizes


def test_split_with_a_small_first_share_still_leaves_every_user_a_pair():
    split = random_interactions().split(0, (0.01, 0.49, 0.5))
    assert (np.bincount(split.train.users, minlength=30) == 1).all()


def test_split_repeats_with_its_seed_alone():
    bought = random_interactions()
    first, again, other = bought.split(1), bought.split(1), bought.split(2)
    for part, same in zip(first.parts(), again.parts(), strict=True):
        assert np.array_equal(part.users, same.users) and np.array_equal(part.items, same.items)
    assert not np.array_equal(first.test.items, other.test.items)


def test_split_is_saved_and_loaded(tmp_path):
    split = random_interactions().split(5)
    split.save(tmp_path / "split.safetensors")
    loaded = Split.load(tmp_path / "split.safetensors")
    assert (loaded.name, loaded.seed) == ("interactions", 5)
    for part, same in zip(split.parts(), loaded.parts(), strict=True):
        assert all(np.array_equal(*rows) for rows in zip(part, same, strict=True))
    assert np.array_equal(split.user_ids, loaded.user_ids)
    assert np.array_equal(split.item_ids, loaded.item_ids)


def test_a_damaged_split_is_refused(tmp_path):
    path = tmp_path / "split.safetensors"
    random_interactions().split(5).save(path)
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"split\.safetensors is corrupt"):
        Split.load(path)


@pytest.mark.parametrize(("fractions", "message"), [
    ((0.5, 0.5), "must be three, positive and add up to 1"),
    ((0.5, 0.5, 0.5), "must be three, positive and add up to 1"),
    ((1.0, 0.0, 0.0), "must be three, positive and add up to 1"),
    ((0.98, 0.01, 0.01), r"every part needs a pair; 3 pairs of 1 users give \[3, 0, 0\]"),
])  # fmt: skip
def test_split_refuses_shares_that_do_not_fit(fractions, message):
    bought = Interactions.from_ids(np.zeros(3, int), np.arange(3))
    with pytest.raises(ValueError, match=message):
        bought.split(0, fractions)


@pytest.mark.parametrize(("users", "error", "message"), [
    (np.array([1.0, 2.5]), TypeError, "mine: users must be whole numbers, got float64"),
    (np.array([True, False]), TypeError, "mine: users must be whole numbers, got bool"),
    (np.array([3, -4]), ValueError, r"users must be from 0 to 2\^63 - 1, got -4 at position 1"),
    (np.array([2**63], np.uint64), ValueError, "got 9223372036854775808 at position 0"),
])  # fmt: skip
def test_ids_that_are_none_are_refused(users, error, message):
    with pytest.raises(error, match=message):
        Interactions.from_ids(users, np.zeros(len(users), np.int32), "mine")


def pairs(*both):
    users, items = zip(*both, strict=True)
    return Pairs(np.array(users), np.array(items))


IDS = np.array([100, 200]), np.array([5, 6, 7])


@pytest.mark.parametrize(("parts", "message"), [
    ((pairs((0, 0)), pairs((1, 1)), pairs((0, 2))), "user 200 has pairs in valid or test but none"),
    ((pairs((0, 0)), pairs((0, 1)), pairs((1, 2))), "user 200 has pairs in valid or test but none"),
    ((pairs((0, 0), (1, 1)), pairs((0, 0)), pairs((0, 2))), "user 100 and item 5 stand twice"),
    ((pairs((0, 0), (1, 3)), pairs((0, 1)), pairs((0, 2))), r"items of train must be in \[0, 3\)"),
    ((pairs((0, 0)), Pairs(np.empty(0, int), np.empty(0, int)), pairs((0, 2))), "valid needs"),
])  # fmt: skip
def test_parts_that_are_no_split_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        Split(*parts, *IDS)


def test_items_that_nobody_bought_in_training_keep_a_row():
    split = Split(pairs((0, 0), (1, 0)), pairs((0, 1)), pairs((1, 2)), *IDS)
    assert split.num_items == 3


def test_edge_lists_are_put_together(tmp_path):
    (tmp_path / "train.txt").write_text("0 5 7 9\n1\n2 5\n")
    (tmp_path / "test.txt").write_text("0 6 7\n2 9 \n")
    bought = read_edge_lists(tmp_path)
    assert raw_pairs(bought, bought.pairs) == {(0, 5), (0, 7), (0, 9), (2, 5), (0, 6), (2, 9)}
    assert bought.repeats == 1 and bought.name == tmp_path.name


@pytest.mark.parametrize("line", ["1 x", "1 -2", "1 2.5", "1 99999999999999999999", "1,2"])
def test_edge_lists_name_the_line_that_is_none(tmp_path, line):
    (tmp_path / "train.txt").write_text(f"0 5\n{line}\n")
    (tmp_path / "test.txt").write_text("0 6\n")
    with pytest.raises(ValueError, match=r"train\.txt, line 2: must hold whole numbers"):
        read_edge_lists(tmp_path)


def test_edge_lists_name_what_is_missing_or_empty(tmp_path):
    (tmp_path / "train.txt").write_text("3\n")
    with pytest.raises(FileNotFoundError, match=r"test\.txt is missing"):
        read_edge_lists(tmp_path)
    (tmp_path / "test.txt").write_text("")
    with pytest.raises(ValueError, match="at least 1, got 0 and 0"):
        read_edge_lists(tmp_path, name="none")


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_interactions_of_any_file(tmp_path, suffix):
    path = tmp_path / f"bought.{suffix}"
    columns = {"who": [4, 4, 9], "when": [1, 2, 3], "what": [10, 20, 10]}
    if suffix == "parquet":
        parquet.write_table(pyarrow.table(columns), path)
    else:
        lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values()))]  # noqa: B905
        path.write_text("\n".join(lines) + "\n")
    bought = read_interactions(path, "who", "what")
    assert raw_pairs(bought, bought.pairs) == {(4, 10), (4, 20), (9, 10)}
    assert bought.name == path.name
    with pytest.raises(ValueError, match="lacks the column whom"):
        read_interactions(path, "whom", "what")


def test_known_data_by_name(tmp_path):
    folder = tmp_path / "amazon-book-kgat"
    folder.mkdir()
    table = pyarrow.table({"user": [0, 0, 1], "item": [3, 5, 3], "split": [0, 1, 0]})
    parquet.write_table(table, folder / "interactions.parquet")
    bought = load_interactions("amazon-book-kgat", tmp_path)
    assert len(bought) == 3 and bought.name == "amazon-book-kgat"  # both published parts
    ratings = pyarrow.table({"user_id": [1, 2], "movie_id": [7, 7], "rating": [5, 1]})
    parquet.write_table(ratings, tmp_path / "ratings.parquet")
    assert len(load_interactions("ml-1m", tmp_path)) == 2  # whatever the rating
    with pytest.raises(ValueError, match="no data 'netflix', there are ml-1m"):
        load_interactions("netflix", tmp_path)
    with pytest.raises(FileNotFoundError):
        load_interactions("amazon-grocery", tmp_path)
