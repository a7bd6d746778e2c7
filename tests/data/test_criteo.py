"""Criteo's files, the keys and buckets of their cells, and the vocabulary made of them."""

import warnings

import numpy as np
import pytest
import torch
from data.real import REAL, needs_real

from varemb.cli import main
from varemb.data import (
    Vocabulary,
    criteo_vocabulary,
    encode_avazu,
    encode_criteo,
    load_avazu,
    load_criteo,
)
from varemb.data import encoding as encoding_module
from varemb.data.criteo import CRITEO
from varemb.files import load_json

pyarrow = pytest.importorskip("pyarrow", reason="the files are read by pyarrow")
pytest.importorskip("tqdm", reason="reading shows its progress")

from pyarrow import parquet  # noqa: E402

from varemb.data.keys import CellError, count_keys, key_text, text_keys  # noqa: E402

EMPTY = -(2**63)

pytestmark = pytest.mark.filterwarnings("ignore:criteo. field .* has the same id:UserWarning")


def make_row(label=0, *, i1="", i2="", c1="", c2=""):
    """A row of cells; all other fields have one value."""
    return [str(label), i1, i2, *["0"] * 11, c1, c2, *["aa"] * 24]


ROWS = [
    make_row(1, i1="1", i2="3", c1="68fd1e64", c2="b"),
    make_row(0, i1="", i2="100", c1="68fd1e64", c2="a"),
    make_row(0, i1="-1", i2="101", c1="05db9164", c2=""),
    make_row(1, i1="1", i2="0", c1="68fd1e64", c2=""),
]


def write_text(path, rows=ROWS, *, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join("\t".join(row) + end for row in rows).encode())
    return path


def write_parquet(path, rows=ROWS, *, types=None, drop=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = dict(zip(CRITEO.columns, zip(*rows, strict=True), strict=True))
    is_number = {CRITEO.label, *CRITEO.counts}
    arrays = {}
    for name, cells in columns.items():
        cells = [cell or None for cell in cells]
        kind = (types or {}).get(name, pyarrow.int32() if name in is_number else pyarrow.string())
        if name in is_number:
            cells = [cell if cell is None else float(cell) for cell in cells]
        arrays[name] = pyarrow.array(cells, pyarrow.float64() if name in is_number else None)
        arrays[name] = arrays[name].cast(kind)
    table = pyarrow.table({name: array for name, array in arrays.items() if name not in drop})
    parquet.write_table(table, path)
    return path


def load(path, **options):
    return load_criteo(path, progress=False, **options)


def column(data, name):
    return data.ids[:, data.field_names.index(name)].tolist()


def test_counts_are_put_in_the_buckets_of_the_formula():
    # ln(3)^2 = 1.2, ln(100)^2 = 21.2, ln(101)^2 = 21.3, ln(2^31 - 1)^2 = 461.7
    cells = pyarrow.array([-3, -1, 0, 1, 2, 3, 100, 101, 2**31 - 1, None])
    assert count_keys(cells).tolist() == [-5, -3, -2, -1, 0, 1, 21, 21, 461, EMPTY]
    floats = pyarrow.array([3.0, float("nan"), None])
    assert count_keys(floats).tolist() == [1, EMPTY, EMPTY]


def test_text_keys_are_the_texts():
    texts = ["68fd1e64", "", "-1", "a", "aa", "\u00e9\u00e9\u00e9\u00e9", "68fd1e65"]
    array = pyarrow.array(["skipped", *texts, None, "after"])[1:-1]  # a slice: offsets from 7
    keys = text_keys(array)
    assert [key_text(key) for key in keys] == [*texts, ""]
    assert len(set(keys.tolist())) == len(texts)
    whole = array[:-1]  # without an empty cell nothing is copied, and the slice stays one
    assert whole.null_count == 0 and whole.offset == 1
    assert text_keys(whole).tolist() == keys[:-1].tolist()
    for kind in (pyarrow.large_string(), pyarrow.binary()):
        assert text_keys(array.cast(kind)).tolist() == keys.tolist()
    assert text_keys(array.dictionary_encode()).tolist() == keys.tolist()
    assert text_keys(pyarrow.array([], pyarrow.string())).tolist() == []


def test_a_text_longer_than_a_key_is_refused():
    with pytest.raises(CellError, match="at most 8 letters, got '123456789'") as caught:
        text_keys(pyarrow.array(["1", "12345678", "123456789"]))
    assert caught.value.index == 2


def test_text_by_hand(tmp_path):
    data = load(write_text(tmp_path / "train.txt"), min_count=1)
    assert data.field_names == CRITEO.fields and len(data.field_names) == 39
    assert data.labels.tolist() == [1, 0, 0, 1]
    assert data.ids.dtype == torch.int32
    # Ids follow the keys: the empty bucket is the lowest number, the empty text the first text.
    assert column(data, "I1") == [3, 1, 2, 3]  # buckets -1, empty, -3, -1
    assert column(data, "I2") == [2, 3, 3, 1]  # buckets 1, 21, 21, -2
    assert column(data, "C1") == [2, 2, 1, 2]
    assert column(data, "C2") == [3, 2, 1, 1]
    assert column(data, "C26") == [1, 1, 1, 1]
    assert data.cardinalities[:2] == (4, 4)
    assert data.cardinalities[13:15] == (3, 4)
    assert data.cardinalities[15:] == (2,) * 24


@pytest.mark.parametrize(
    "min_count, first, second",
    [
        (2, [1, 0, 0, 1], [0, 0, 1, 1]),
        (3, [0, 0, 0, 0], [0, 0, 0, 0]),
        ({"C2": 3}, [0, 0, 0, 0], [0, 0, 0, 0]),
        ({"I1": 2}, [1, 0, 0, 1], [0, 0, 0, 0]),
    ],
)
def test_rare_values_share_an_id(tmp_path, min_count, first, second):
    data = load(write_text(tmp_path / "train.txt"), min_count=min_count)
    assert column(data, "I1") == first
    assert column(data, "C2") == second


def test_the_default_minimum_is_ten(tmp_path):
    rows = [make_row(c1="often")] * 10 + [make_row(c1="rare")] * 9
    data = load(write_text(tmp_path / "train.txt", rows))
    assert column(data, "C1") == [1] * 10 + [0] * 9


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_text_and_parquet_give_identical_data(tmp_path, end):
    text = load(write_text(tmp_path / "a.txt", end=end), min_count=1)
    kinds = {"I1": pyarrow.float64(), "label": pyarrow.bool_(), "C1": pyarrow.large_string()}
    kinds["C2"] = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    for name, types in (("plain", {}), ("other", kinds)):
        table = load(write_parquet(tmp_path / f"{name}.parquet", types=types), min_count=1)
        assert torch.equal(text.ids, table.ids)
        assert torch.equal(text.labels, table.labels)
        assert text.cardinalities == table.cardinalities


def test_the_last_line_needs_no_end(tmp_path):
    path = write_text(tmp_path / "train.txt")
    path.write_bytes(path.read_bytes()[:-1])
    assert len(load(path)) == 4


def test_files_are_found_by_name(tmp_path):
    write_parquet(tmp_path / "criteo" / "train_head_10k.parquet", ROWS[:1])
    assert len(load(tmp_path)) == len(load(tmp_path / "criteo")) == 1
    write_parquet(tmp_path / "criteo" / "train.parquet", ROWS[:2])
    assert len(load(tmp_path)) == 2
    write_text(tmp_path / "criteo" / "train.txt", ROWS[:3])
    assert len(load(tmp_path)) == 3
    encode_criteo(tmp_path, tmp_path / "criteo" / "encoded", progress=False)
    assert load(tmp_path).folder == tmp_path / "criteo" / "encoded"


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"criteo: there is no file or folder .*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"none of train.txt, train.parquet, .* is in"):
        load(tmp_path)


@pytest.mark.parametrize(
    "row, message",
    [
        (make_row()[:-1], r"line 3: must have 40 columns, got 39: '0\\t"),
        ([*make_row(), "x"], r"line 3: must have 40 columns, got 41: '0\\t"),
        ([""], r"line 3, column label: must be 0 or 1, got nothing"),
        (make_row(2), r"line 3, column label: must be 0 or 1, got 2"),
        (make_row("yes"), r"line 3, column label: must be 0 or 1, got 'yes'"),
        (make_row(""), r"line 3, column label: must be 0 or 1, got nothing"),
        (make_row(i2="3.5"), r"line 3, column I2: must be a whole number or empty, got '3.5'"),
        (make_row(i1="9" * 20), r"line 3, column I1: must be a whole number or empty"),
        (make_row(c2="123456789"), r"line 3, column C2: must have at most 8 letters, got '123456"),
        (make_row(c1="bad byte"), r"line 3, column C1: must be UTF-8, got 'bad\\\\xffbyte'"),
    ],
)
def test_broken_lines_are_named(tmp_path, row, message):
    path = write_text(tmp_path / "train.txt", [*ROWS[:2], row, *ROWS])
    path.write_bytes(path.read_bytes().replace(b"bad byte", b"bad\xffbyte"))
    with pytest.raises(ValueError, match=r"criteo: .*train.txt, " + message):
        load(path)


@pytest.mark.parametrize("bad", [500, 4321])
@pytest.mark.parametrize(
    "row, message",
    [
        (make_row(i1="x"), "column I1: must be a whole number"),
        (make_row(2), "column label: must be 0 or 1"),
        (make_row(c2="123456789"), "column C2: must have at most 8"),
    ],
)
def test_a_broken_line_far_down_is_named(tmp_path, bad, row, message):
    # Threads read ahead of the rows that were delivered.
    rows = [make_row(c1=f"{i % 7}") for i in range(5000)]
    rows[bad - 1] = row
    path = write_text(tmp_path / "train.txt", rows)
    with pytest.raises(ValueError, match=rf"line {bad}, {message}"):
        encoding_module.count_values(CRITEO, path, progress=False, block_bytes=1 << 13)


@pytest.mark.parametrize("name", ["train.txt", "train.parquet"])
def test_an_empty_file_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"")
    message = "is empty, it has no rows" if name == "train.txt" else "cannot be read: .*0 bytes"
    with pytest.raises(ValueError, match=rf"criteo: .*{name} {message}"):
        load(path)
    parquet.write_table(parquet.read_table(write_parquet(path)).slice(0, 0), path)
    if name == "train.parquet":
        with pytest.raises(ValueError, match="is empty, it has no rows"):
            load(path)


@pytest.mark.parametrize(
    "rows, types, drop, message",
    [
        (ROWS, {}, ["C17"], r"lacks the column C17, it has \['label', 'I1'"),
        (ROWS, {}, ["label"], r"lacks the column label"),
        (ROWS, {"I1": pyarrow.string()}, [], r"column I1: must be a whole .* as string"),
        ([make_row(), make_row(i1="2.5")], {"I1": pyarrow.float64()}, [],
         r"row 1, column I1: must be a whole number or empty, got 2.5"),
        ([make_row(), make_row(3)], {}, [], r"row 1, column label: must be 0 or 1, got 3"),
        ([make_row(), make_row("")], {}, [], r"row 1, column label: must be 0 or 1, got nothing"),
    ],
)  # fmt: skip
def test_broken_parquet_files_are_named(tmp_path, rows, types, drop, message):
    path = write_parquet(tmp_path / "train.parquet", rows, types=types, drop=drop)
    with pytest.raises(ValueError, match=r"criteo: .*train.parquet,? " + message):
        load(path)


def test_a_truncated_parquet_file_is_named(tmp_path):
    path = write_parquet(tmp_path / "train.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"criteo: .*train.parquet cannot be read"):
        load(path)


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="every part needs a row"):
        load(write_text(tmp_path / "train.txt")).split(0)


@pytest.mark.filterwarnings("default")
def test_fields_with_one_id_are_kept_and_named(tmp_path):
    path = write_text(
        tmp_path / "train.txt", [make_row(c1=f"{i}", c2=f"{i % 2}") for i in range(4)]
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load(path, min_count=2)
    texts = [str(warning.message) for warning in caught]
    assert "criteo: field I1 has the same id in all 4 rows: one value" in texts
    assert "criteo: field C1 has the same id in all 4 rows: 4 values, all of them rare" in texts
    assert not any("field C2 " in text for text in texts)
    assert column(data, "I1") == [1] * 4 and column(data, "C1") == [0] * 4


@pytest.mark.parametrize(
    "min_count, message",
    [
        (0, "min_count of I1 must be at least 1, got 0"),
        ({"C2": -1}, "min_count of C2 must be at least 1, got -1"),
        ({"C27": 2}, "min_count is for the field C27, which is none of I1, I2"),
    ],
)
def test_minimum_counts_must_be_counts_of_fields(tmp_path, min_count, message):
    with pytest.raises(ValueError, match=message):
        load(write_text(tmp_path / "train.txt"), min_count=min_count)


def test_a_vocabulary_is_saved_and_reused(tmp_path):
    path = write_text(tmp_path / "train.txt")
    vocabulary = criteo_vocabulary(path, min_count=2, progress=False)
    assert vocabulary.rows == 4
    assert vocabulary.counts["C1"].tolist() == [3]
    assert vocabulary.distinct["C1"] == 2
    vocabulary.save(tmp_path / "v.safetensors")
    stored = Vocabulary.load(tmp_path / "v.safetensors")
    assert stored.is_same(vocabulary) and stored.min_counts == vocabulary.min_counts
    assert torch.equal(load(path, vocabulary=stored).ids, load(path, min_count=2).ids)
    unseen = [make_row(c1="new", i1="70000"), make_row(c1="68fd1e64", i1="1")]
    data = load(write_text(tmp_path / "test.txt", unseen), vocabulary=stored)
    assert column(data, "C1") == [0, 1] and column(data, "I1") == [0, 1]
    assert data.cardinalities == vocabulary.cardinalities
    with pytest.raises(ValueError, match="give min_count or a vocabulary"):
        load(path, vocabulary=stored, min_count=2)


def test_a_vocabulary_of_other_data_is_refused_by_name(tmp_path):
    path = write_text(tmp_path / "train.txt")
    ours = criteo_vocabulary(path, progress=False)
    message = "avazu: the vocabulary is of other data, criteo: its field 0 is I1, that of avazu is"
    with pytest.raises(ValueError, match=message + " hour"):
        load_avazu(path, vocabulary=ours, progress=False)
    keys = {name: keys for name, keys in ours.keys.items() if name != "C26"}
    shorter = Vocabulary("criteo", 4, keys, ours.counts, ours.distinct, ours.min_counts)
    with pytest.raises(ValueError, match="its field 38 is none, that of criteo is C26"):
        load(path, vocabulary=shorter)
    same_fields = Vocabulary("other", 4, ours.keys, ours.counts, ours.distinct, ours.min_counts)
    with pytest.raises(ValueError, match="criteo: the vocabulary is of other data, other"):
        load(path, vocabulary=same_fields)


def test_a_damaged_vocabulary_is_named(tmp_path):
    path = tmp_path / "v.safetensors"
    source = write_text(tmp_path / "train.txt")
    criteo_vocabulary(source, min_count=1, progress=False).save(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"v.safetensors is corrupt: its checksum"):
        Vocabulary.load(path)


def test_rows_that_do_not_fit_into_memory_are_refused(tmp_path, monkeypatch):
    # 4 rows of 160 bytes, and as much again for a split
    path = write_text(tmp_path / "train.txt")
    monkeypatch.setattr(encoding_module, "machine_memory", lambda: 4 * 160 * 2)
    load(path)
    monkeypatch.setattr(encoding_module, "machine_memory", lambda: 4 * 160 * 2 - 1)
    message = r"encode the file once with python -m varemb.data criteo .*train.txt --out FOLDER"
    with pytest.raises(ValueError, match=message):
        load(path)
    with pytest.raises(ValueError, match=message):
        load(path, vocabulary=criteo_vocabulary(path, progress=False))
    assert len(encode_criteo(path, tmp_path / "encoded", progress=False)) == 4


def test_avazu_does_not_open_what_criteo_encoded(tmp_path):
    encode_criteo(write_text(tmp_path / "train.txt"), tmp_path / "encoded", progress=False)
    with pytest.raises(ValueError, match=r"avazu: .*rows.json is of other data, criteo"):
        load_avazu(tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"avazu: .* is encoded already"):
        encode_avazu(tmp_path, tmp_path / "again", progress=False)


@needs_real
def test_the_real_head_has_the_published_columns():
    data = load(REAL, min_count=1)
    assert len(data) == 10_000
    assert data.labels.mean().item() == pytest.approx(0.2182)
    table = parquet.read_table(REAL / "criteo" / "train_head_10k.parquet")
    sizes = dict(zip(data.field_names, data.cardinalities, strict=True))
    for name in ("C1", "C3", "C16", "C26"):
        assert sizes[name] == 1 + len(table[name].unique())
    for name in ("C3", "C17"):  # the same rows share a value in both
        cells = np.array(table[name].fill_null("").to_pylist())
        ranks = np.unique(cells, return_inverse=True)[1]
        assert column(data, name) == (ranks + 1).tolist()
    texts = [name for name in table.column_names if name.startswith("C")]
    with_empty = sum(table[name].null_count > 0 for name in texts)
    assert sum(sizes[name] - 1 for name in texts) - with_empty == 43_579


@needs_real
def test_search_on_the_real_head(tmp_path):
    pytest.importorskip("sklearn", reason="training measures with scikit-learn")
    out = tmp_path / "run"
    words = ["search", "autodim", "--data", "criteo", "--data-dir", str(REAL), "--out", str(out)]
    words += ["--candidates", "2,4", "--max-epochs", "1", "--search-epochs", "1", "--threads", "1"]
    assert main(words) == 0
    metrics = load_json(out / "metrics.json")
    assert metrics["data"] == "criteo"
    assert 0.5 < metrics["metrics"]["auc"] < 1
    train = ["train", "--plan", str(out / "plan.safetensors"), "--data", "criteo"]
    train += ["--data-dir", str(REAL), "--out", str(tmp_path / "t"), "--max-epochs", "1"]
    assert main(train) == 0
