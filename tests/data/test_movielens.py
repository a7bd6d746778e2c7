import pytest
import torch
from data.real import REAL, needs_real

from varemb.data import load_ml1m

FIELDS = ("movieId", "year", "genres", "userId", "gender", "age", "occupation", "zip")
RATINGS = [(1, 10, 5), (1, 30, 3), (2, 10, 4), (9, 20, 1), (9, 10, 5)]
USERS = [(9, "F", 25, 3, "02139"), (1, "M", 1, 0, "98765-1"), (2, "F", 25, 20, "02139")]
MOVIES = [
    (10, "Fa\xe7ade (The) (1931)", "Drama|Comedy"),
    (20, "Twelve \x85 Monkeys (1995)", "Drama"),
    (30, "Seven (a.k.a. Se7en) (1995) ", "Drama|Comedy"),
    (40, "Unseen (2000)", "Horror"),
]
COLUMNS = {
    "ratings": ("user_id", "movie_id", "rating"),
    "users": ("user_id", "gender", "age", "occupation", "zip"),
    "movies": ("movie_id", "title", "year", "genres"),
}


def write_dat(folder, **changed):
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "ratings": [(*row, 978300760) for row in RATINGS],
        "users": USERS,
        "movies": MOVIES,
        **changed,
    }
    for name, rows in tables.items():
        text = "".join("::".join(map(str, row)) + "\n" for row in rows)
        (folder / f"{name}.dat").write_bytes(text.encode("latin-1"))
    return folder


def write_parquet(folder, **changed):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet files need pyarrow")
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    years = [1931, 1995, 1995, 2000]
    movies = [
        (i, title, year, genres) for (i, title, genres), year in zip(MOVIES, years, strict=True)
    ]
    rows = {"ratings": RATINGS, "users": USERS, "movies": movies}
    for name, columns in COLUMNS.items():
        cells_of = zip(columns, zip(*rows[name], strict=True), strict=True)
        table = {column: list(cells) for column, cells in cells_of}
        table.update(changed.get(name, {}))
        table = {column: cells for column, cells in table.items() if cells is not None}
        parquet.write_table(pyarrow.table(table), folder / f"{name}.parquet")
    return folder


def test_dat_files_by_hand(tmp_path):
    data = load_ml1m(write_dat(tmp_path))
    assert data.field_names == FIELDS
    # Unrated movie 40 takes no id; ids follow the sorted values.
    assert data.cardinalities == (3, 2, 2, 3, 2, 2, 3, 2)
    assert data.labels.tolist() == [1, 0, 1, 0, 1]
    assert data.ids.tolist() == [
        [0, 0, 1, 0, 1, 0, 0, 1],
        [2, 1, 1, 0, 1, 0, 0, 1],
        [0, 0, 1, 1, 0, 1, 2, 0],
        [1, 1, 0, 2, 0, 1, 1, 0],
        [0, 0, 1, 2, 0, 1, 1, 0],
    ]


def test_dat_and_parquet_give_identical_data(tmp_path):
    dat = load_ml1m(write_dat(tmp_path / "dat"))
    parquet = load_ml1m(write_parquet(tmp_path / "parquet"))
    assert torch.equal(dat.ids, parquet.ids) and dat.ids.dtype == parquet.ids.dtype
    assert torch.equal(dat.labels, parquet.labels)
    assert dat.cardinalities == parquet.cardinalities


def test_the_folder_may_be_the_parent(tmp_path):
    write_dat(tmp_path / "ml-1m")
    assert len(load_ml1m(tmp_path)) == len(load_ml1m(str(tmp_path / "ml-1m"))) == 5


def test_rare_movies_share_an_id(tmp_path):
    data = load_ml1m(write_dat(tmp_path), min_ratings=2)
    assert data.cardinalities[0] == 2
    assert data.ids[:, 0].tolist() == [1, 0, 1, 0, 1]


def test_missing_folder_and_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        load_ml1m(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"neither ratings.parquet nor ratings.dat"):
        load_ml1m(tmp_path)
    (write_dat(tmp_path) / "users.dat").unlink()
    with pytest.raises(FileNotFoundError, match=r"users.dat is missing"):
        load_ml1m(tmp_path)
    folder = write_parquet(tmp_path / "p")
    (folder / "movies.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"movies.parquet is missing"):
        load_ml1m(folder)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"ratings": [(1, 10, 5)]}, r"ratings.dat, line 1: must have the columns .*got 3 of 4"),
        (
            {"ratings": [(1, 10, "x", 0)]},
            r"ratings.dat, line 1, column rating: must be a whole number",
        ),
        (
            {"ratings": [(1, 10, 5, 0), (1, "9" * 20, 5, 0)]},
            r"ratings.dat, line 2, column movie_id: must be a whole number .*, got '9999",
        ),
        ({"ratings": [("1_0", 10, 5, 0)]}, r"line 1, column user_id: must be .*, got '1_0'"),
        ({"ratings": [(1, 10, 6, 0)]}, r"column rating: must be 1 to 5"),
        ({"ratings": [(1, 77, 5, 0)]}, r"column movie_id: 77 is not in movies"),
        ({"users": [*USERS, USERS[0]]}, r"users, column user_id: an id stands there twice"),
        ({"movies": [(10, "Nameless", "Drama")]}, r"column title: no year .* 'Nameless'"),
        ({"users": []}, r"users.dat, line 1: must have the columns"),
    ],
)
def test_broken_dat_files_are_named(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        load_ml1m(write_dat(tmp_path, **changed))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"users": {"zip": None}}, r"users.parquet lacks the column zip"),
        ({"users": {"age": [1, None, 25]}}, r"users.parquet, column age: has empty cells"),
        (
            {"ratings": {"rating": [5, 3, 4, 1, 2.5]}},
            r"row 4, column rating: must be a whole .*2.5",
        ),
    ],
)
def test_broken_parquet_columns_are_named(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        load_ml1m(write_parquet(tmp_path, **changed))


def test_a_truncated_parquet_file_is_named(tmp_path):
    path = write_parquet(tmp_path) / "users.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"users.parquet is truncated or no Parquet file"):
        load_ml1m(tmp_path)


@needs_real
def test_the_real_data_has_the_published_counts():
    pytest.importorskip("pyarrow", reason="Parquet files need pyarrow")
    data = load_ml1m(REAL)
    assert len(data) == 1_000_209
    assert data.cardinalities == (3706, 81, 301, 6040, 2, 7, 21, 3439)
    assert data.labels.sum() == 348_971 + 226_310
