import pytest
import torch
from data.real import REAL, needs_real

from varemb.cli import main
from varemb.data import avazu_vocabulary, load_avazu
from varemb.data.avazu import AVAZU
from varemb.files import load_json

pyarrow = pytest.importorskip("pyarrow", reason="the files are read by pyarrow")
pytest.importorskip("tqdm", reason="reading shows its progress")

from pyarrow import parquet  # noqa: E402

HEADER = ["id", "click", *AVAZU.fields]

pytestmark = pytest.mark.filterwarnings("ignore:avazu. field .* has the same id:UserWarning")


def make_row(number, click=0, *, hour="14102100", device_ip="ddd2926e", c20="-1"):
    """A row of cells; all other fields have one value."""
    row = dict.fromkeys(HEADER, "1")
    row |= {"id": str(2**63 + number), "click": str(click)}  # ids are larger than int64 holds
    row |= {"hour": hour, "device_ip": device_ip, "C20": c20}
    return [row[name] for name in HEADER]


ROWS = [
    make_row(0, 1),
    make_row(1, 0, hour="14102101"),
    make_row(2, 0, device_ip="96809ac8", c20="100084"),
    make_row(3, 1, c20="100084"),
]


def write_csv(path, rows=ROWS, *, header=HEADER):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(",".join(row) + "\n" for row in [header, *rows]))
    return path


def load(path, **options):
    return load_avazu(path, progress=False, **options)


def column(data, name):
    return data.ids[:, data.field_names.index(name)].tolist()


def test_csv_by_hand(tmp_path):
    data = load(write_csv(tmp_path / "train.csv"), min_count=1)
    assert data.field_names == AVAZU.fields and len(data.field_names) == 22
    assert data.labels.tolist() == [1, 0, 0, 1]
    # Ids follow the bytes of the texts: digits before letters, a minus before digits.
    assert column(data, "hour") == [1, 2, 1, 1]
    assert column(data, "device_ip") == [2, 2, 1, 2]
    assert column(data, "C20") == [1, 1, 2, 2]
    assert column(data, "C14") == [1, 1, 1, 1]
    assert dict(zip(data.field_names, data.cardinalities, strict=True))["hour"] == 3


def test_the_default_minimum_is_four(tmp_path):
    rows = [make_row(i, device_ip="often") for i in range(4)]
    rows += [make_row(i, device_ip="rare") for i in range(3)]
    data = load(write_csv(tmp_path / "train.csv", rows))
    assert column(data, "device_ip") == [1] * 4 + [0] * 3


def test_columns_may_stand_in_any_order(tmp_path):
    order = sorted(range(len(HEADER)), key=lambda i: HEADER[i])
    rows = [[row[i] for i in order] for row in ROWS]
    path = write_csv(tmp_path / "other.csv", rows, header=[HEADER[i] for i in order])
    plain = load(write_csv(tmp_path / "train.csv"), min_count=1)
    assert torch.equal(load(path, min_count=1).ids, plain.ids)


def test_csv_and_parquet_give_identical_data(tmp_path):
    columns = dict(zip(HEADER, zip(*ROWS, strict=True), strict=True))
    kinds = {"id": pyarrow.uint64(), "click": pyarrow.int8(), "C20": pyarrow.float64()}
    kinds |= dict.fromkeys(("hour", "C1", "C14"), pyarrow.int32())
    arrays = {name: pyarrow.array(cells) for name, cells in columns.items()}
    arrays = {name: array.cast(kinds.get(name, array.type)) for name, array in arrays.items()}
    parquet.write_table(pyarrow.table(arrays), tmp_path / "train.parquet")
    table = load(tmp_path / "train.parquet", min_count=1)
    text = load(write_csv(tmp_path / "train.csv"), min_count=1)
    assert torch.equal(table.ids, text.ids) and torch.equal(table.labels, text.labels)


def test_unseen_values_get_the_id_of_rare_ones(tmp_path):
    vocabulary = avazu_vocabulary(
        write_csv(tmp_path / "train.csv"), min_count={"hour": 1}, progress=False
    )
    later = write_csv(tmp_path / "later.csv", [make_row(9, hour="14103000"), make_row(10)])
    assert column(load(later, vocabulary=vocabulary), "hour") == [0, 1]


@pytest.mark.parametrize(
    "header, rows, message",
    [
        ([n for n in HEADER if n != "click"], [], r"lacks the column click, it has \['id', 'hour'"),
        (HEADER, [], "is empty, it has no rows"),
        (HEADER, [ROWS[0], ROWS[1][:-1]], "line 3: must have 24 columns, got 23: '9223"),
        (HEADER, [ROWS[0], make_row(1, 2)], "line 3, column click: must be 0 or 1, got 2"),
        (HEADER, [make_row(1, "")], "line 2, column click: must be 0 or 1, got nothing"),
        (HEADER, [make_row(1, hour="2014102100")], "line 2, column hour: must have at most 8"),
    ],
)
def test_broken_files_are_named(tmp_path, header, rows, message):
    path = write_csv(tmp_path / "train.csv", rows, header=header)
    with pytest.raises(ValueError, match=r"avazu: .*train.csv,? " + message):
        load(path)


def test_a_file_of_no_bytes_is_empty(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"")
    with pytest.raises(ValueError, match=r"avazu: .*train.csv is empty, it has no rows"):
        load(tmp_path)


@needs_real
def test_the_real_head_has_the_published_columns():
    assert parquet.read_schema(REAL / "avazu" / "train_head_10k.parquet").names == HEADER
    with pytest.warns(UserWarning, match="avazu: field hour has the same id in all 9,999 rows"):
        data = load(REAL, min_count=1)
    assert len(data) == 9999
    assert data.labels.mean().item() == pytest.approx(0.1706, abs=5e-5)
    sizes = dict(zip(data.field_names, data.cardinalities, strict=True))
    expected = {"hour": 1, "device_ip": 7302, "device_model": 1168, "device_id": 1075}
    assert {name: sizes[name] - 1 for name in expected} == expected


@needs_real
def test_search_on_the_real_head(tmp_path):
    pytest.importorskip("sklearn", reason="training measures with scikit-learn")
    out = tmp_path / "run"
    words = ["search", "autodim", "--data", "avazu", "--data-dir", str(REAL), "--out", str(out)]
    words += ["--candidates", "2,4", "--max-epochs", "1", "--search-epochs", "1", "--threads", "1"]
    assert main(words) == 0
    metrics = load_json(out / "metrics.json")
    assert metrics["data"] == "avazu"
    assert 0.5 < metrics["metrics"]["auc"] < 1
    train = ["train", "--plan", str(out / "plan.safetensors"), "--data", "avazu"]
    train += ["--data-dir", str(REAL), "--out", str(tmp_path / "t"), "--max-epochs", "1"]
    assert main(train) == 0
