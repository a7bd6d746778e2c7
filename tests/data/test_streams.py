"""Streams read from files: the data sets that are known, any columns, and what is refused."""

import numpy as np
import pytest
from data.real import REAL, needs_real

from varemb.data import STREAMS, EventColumns, load_stream, load_stream_file, read_events

pyarrow = pytest.importorskip("pyarrow", reason="the files are read by pyarrow")

from pyarrow import parquet  # noqa: E402

COLUMNS = EventColumns("who", "what", "stars", "when")
EVENTS = [(7, 1, 5, 30), (9, 1, 0.5, 10), (7, 2, 4.5, 30), (8, 3, 2, 20)]


def write_parquet(path, rows=EVENTS, names=("who", "what", "stars", "when"), **changed):
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) | changed
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({n: c for n, c in columns.items() if c is not None}), path)
    return path


def write_text(path, rows=EVENTS, head="who,what,stars,when", between=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [*([head] if head else []), *(between.join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_orders_of_a_file(tmp_path):
    path = write_parquet(tmp_path / "e.parquet")
    timed = load_stream_file(path, COLUMNS)
    assert timed.users.tolist() == [9, 8, 7, 7]
    assert timed.items.tolist() == [1, 3, 1, 2]  # equal times as in the file
    assert timed.times.tolist() == [10, 20, 30, 30]
    assert timed.ratings.tolist() == [0.5, 2, 5, 4.5]
    assert timed.name == "e.parquet"
    filed = load_stream_file(path, COLUMNS, "file")
    assert filed.users.tolist() == [7, 9, 7, 8] and filed.times is None
    shuffled = [load_stream_file(path, COLUMNS, "shuffle", seed) for seed in (0, 0, 1, 2, 3)]
    orders = [each.users.tolist() + each.items.tolist() for each in shuffled]
    assert orders[0] == orders[1] and len({tuple(order) for order in orders}) > 1
    assert all(sorted(each.users) == [7, 7, 8, 9] for each in shuffled)
    with pytest.raises(ValueError, match=r"e.parquet: order must be one of time, .* got 'up'"):
        load_stream_file(path, COLUMNS, "up")


def test_many_events_of_one_time_stay_in_the_order_of_the_file(tmp_path):
    rows = [(1, place, 5, place % 2) for place in range(3000)]
    stream = load_stream_file(write_parquet(tmp_path / "e.parquet", rows), COLUMNS)
    assert stream.items.tolist() == [*range(0, 3000, 2), *range(1, 3000, 2)]


def test_text_and_parquet_give_the_same(tmp_path):
    want = load_stream_file(write_parquet(tmp_path / "e.parquet"), COLUMNS)
    quoted = [(a, b, c, f'"{d}"', '"a, b"') for a, b, c, d in EVENTS]
    for path, columns in (
        (write_text(tmp_path / "e.csv"), COLUMNS),
        (write_text(tmp_path / "q.csv", quoted, 'who,what,stars,"when","note, long"'), COLUMNS),
        (write_text(tmp_path / "e.tsv", head="who\twhat\tstars\twhen", between="\t"), COLUMNS),
        (
            write_text(tmp_path / "e.dat", head="", between="::"),
            EventColumns("who", "what", "stars", "when", delimiter="::", header=False),
        ),
    ):
        for order in ("time", "file", "shuffle"):
            got = load_stream_file(path, columns, order)
            want = load_stream_file(tmp_path / "e.parquet", COLUMNS, order)
            for column in ("users", "items", "ratings"):
                assert np.array_equal(getattr(got, column), getattr(want, column)), (path, column)
            assert (got.times is None) == (want.times is None)


def test_without_ratings_feedback_is_implicit(tmp_path):
    stream = load_stream_file(write_text(tmp_path / "e.csv"), EventColumns("who", "what"), "file")
    assert stream.ratings.tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"e.csv has no times to order by; choose order shuffle"):
        load_stream_file(tmp_path / "e.csv", EventColumns("who", "what"))


def test_dates_of_parquet_are_times(tmp_path):
    days = pyarrow.array([3, 1, 3, 2], pyarrow.date32())
    path = write_parquet(tmp_path / "e.parquet", when=days)
    assert load_stream_file(path, COLUMNS).users.tolist() == [9, 8, 7, 7]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((-7, 1, 5, 1), "line 4, column who: must be a whole number from 0 to .*, got '?-7"),
        ((2**63, 1, 5, 1), "line 4, column who: must be .*, got '9223372036854775808'"),
        (("u7", 1, 5, 1), "line 4, column who: must be .*, got 'u7'"),
        (("", 1, 5, 1), "line 4, column who: must be .*, got nothing"),
        ((7, 1, 5.5, 1), "line 4, column stars: must be a number from 0.5 to 5, got '?5.5"),
        ((7, 1, "nan", 1), "line 4, column stars: must be a number from 0.5 to 5, got '?nan"),
        ((7, 1, "good", 1), "line 4, column stars: must be .*, got 'good'"),
        ((7, 1, 5, "today"), "line 4, column when: must be a whole number, got 'today'"),
        ((7, 1, 5), "line 4: must have 4 columns, got 3: '7,1,5'"),
    ],
)
def test_bad_cells_of_text_are_named(tmp_path, row, message):
    path = write_text(tmp_path / "e.csv", [*EVENTS[:2], row, *EVENTS[2:]])
    with pytest.raises(ValueError, match=r"^e.csv: .*e.csv, " + message):
        load_stream_file(path, COLUMNS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"who": [7, 9, -1, 8]}, "row 2, column who: .*, got -1"),
        ({"who": pyarrow.array([7, 9, 1, 2**63], pyarrow.uint64())}, "row 3, column who: .*2.63"),
        ({"what": [1, None, 2, 3]}, "row 1, column what: must be a whole number .*, got nothing"),
        ({"who": ["a", "b", "c", "d"]}, "column who: must be .*, is stored as string"),
        ({"who": [1.0, 2.0, 3.0, 4.0]}, "column who: must be .*, is stored as double"),
        ({"stars": [5, float("nan"), 2, 3]}, "row 1, column stars: .*, got nan"),
        ({"stars": [5, 4, 2, 5.5]}, "row 3, column stars: .*from 0.5 to 5, got 5.5"),
        ({"when": [5.5, 4, 2, 5.5]}, "column when: must be a whole number, is stored as double"),
        ({"stars": None}, "lacks the column stars, it has"),
    ],
)
def test_bad_cells_of_parquet_are_named(tmp_path, changed, message):
    path = write_parquet(tmp_path / "e.parquet", **changed)
    with pytest.raises(ValueError, match=r"^e.parquet: .*e.parquet,? " + message):
        load_stream_file(path, COLUMNS)


def test_empty_and_missing_files_are_named(tmp_path):
    for path in (write_text(tmp_path / "e.csv", []), write_text(tmp_path / "n.csv", [], head="")):
        with pytest.raises(ValueError, match=r"is empty, it has no rows|lacks the column who"):
            load_stream_file(path, COLUMNS)
    with pytest.raises(FileNotFoundError, match=r"gone\.csv"):
        load_stream_file(tmp_path / "gone.csv", COLUMNS)
    with pytest.raises(FileNotFoundError, match=r"gone\.parquet"):
        load_stream_file(tmp_path / "gone.parquet", COLUMNS)
    with pytest.raises(ValueError, match="must be different columns"):
        load_stream_file(tmp_path / "e.csv", EventColumns("who", "who"), "file")
    (tmp_path / "no.parquet").write_text("PAR1 no")
    with pytest.raises(ValueError, match=r"no\.parquet cannot be read"):
        load_stream_file(tmp_path / "no.parquet", COLUMNS)


def test_files_are_read_in_batches(tmp_path):
    rows = sorted(EVENTS, key=lambda row: row[3])
    path = write_text(tmp_path / "e.csv", rows)
    batches = list(read_events(path, COLUMNS, 3, order="time"))
    assert [batch.users.tolist() for batch in batches] == [[9, 8, 7], [7]]
    unordered = read_events(write_text(tmp_path / "u.csv"), COLUMNS, order="time")
    with pytest.raises(ValueError, match=r"u.csv: event 1, column times: .* 10 after 30"):
        list(unordered)
    assert len(next(read_events(tmp_path / "u.csv", COLUMNS))) == 4
    with pytest.raises(ValueError, match="column times is missing"):
        next(read_events(path, EventColumns("who", "what"), order="time"))


RATED = [(1, 10, 5, 978300760), (2, 11, 3, 978300750)]
NAMES = ("user_id", "movie_id", "rating", "timestamp")


def test_movielens_of_the_publisher_has_times(tmp_path):
    write_text(tmp_path / "ml-1m" / "ratings.dat", RATED, head="", between="::")
    write_text(tmp_path / "ml-100k" / "u.data", RATED, head="", between="\t")
    for name in ("ml-1m", "ml-100k"):
        stream = load_stream(name, tmp_path)
        assert (stream.users.tolist(), stream.ratings.tolist()) == ([2, 1], [3, 5])
        assert stream.name == name
        assert load_stream(name, tmp_path / name, "file").users.tolist() == [1, 2]


def test_movielens_without_times_is_not_ordered_by_them(tmp_path):
    write_parquet(tmp_path / "ratings.parquet", RATED, NAMES, timestamp=None)
    with pytest.raises(ValueError, match=r"ml-1m: ratings.parquet has no times to order by"):
        load_stream("ml-1m", tmp_path)
    assert load_stream("ml-1m", tmp_path, "file").items.tolist() == [10, 11]
    write_parquet(tmp_path / "ratings.parquet", [(1, 10, 6, 1)], NAMES)
    with pytest.raises(ValueError, match=r"row 0, column rating: must be a number from 1 to 5"):
        load_stream("ml-1m", tmp_path)


def test_sequences_are_merged_by_position(tmp_path):
    rows = [(1, 5, 0), (1, 6, 1), (2, 5, 0), (3, 7, 0), (3, 5, 1)]
    folder = tmp_path / "yelp-sequences"
    write_parquet(folder / "interactions.parquet", rows, ("user", "item", "position"))
    stream = load_stream("yelp-sequences", tmp_path)
    assert stream.users.tolist() == [1, 2, 3, 1, 3] and stream.times.tolist() == [0, 0, 0, 1, 1]


def test_unknown_streams_and_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="no stream 'ml-2m', there are ml-1m, ml-100k"):
        load_stream("ml-2m", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none of ratings.parquet, u.data is in"):
        load_stream("ml-100k", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*gone"):
        load_stream("ml-100k", tmp_path / "gone")


REAL_COUNTS = {
    "ml-1m": (1_000_209, 6040, 3706),
    "ml-100k": (100_000, 943, 1682),
    "amazon-grocery": (121_892, 14_681, 8687),
    "yelp-sequences": (316_354, 30_431, 20_033),
}


@needs_real
@pytest.mark.parametrize("name", STREAMS)
def test_the_real_data_has_the_published_counts(name):
    stream = load_stream(name, REAL, "shuffle" if name == "ml-1m" else "time")
    found = (len(stream), len(np.unique(stream.users)), len(np.unique(stream.items)))
    assert found == REAL_COUNTS[name]
