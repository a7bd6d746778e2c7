"""Text files as they come: packed, with a byte order mark, quoted, of no columns at all."""

import gzip

import pytest
from data.test_avazu import HEADER, ROWS, write_csv
from data.test_criteo import load as load_clicks
from data.test_criteo import make_row, write_text
from data.test_movielens import write_dat

from varemb.data import EventColumns, load_avazu, load_ml1m, load_stream_file, read_edge_lists
from varemb.data.criteo import CRITEO
from varemb.data.reading import read_batches

pytest.importorskip("pyarrow", reason="the files are read by pyarrow")

MARK = b"\xef\xbb\xbf"

pytestmark = pytest.mark.filterwarnings("ignore:.* has the same id:UserWarning")


def pack(path):
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return packed


def read_users(path, columns=None):
    return load_stream_file(path, columns or EventColumns(), "file").users.tolist()


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_packed_text_is_read_with_and_without_header(tmp_path):
    assert read_users(pack(write(tmp_path / "e.csv", "item,user\n1,7\n2,9\n"))) == [7, 9]
    assert read_users(pack(write(tmp_path / "e.tsv", "item\tuser\n1\t7\n"))) == [7]
    assert len(load_clicks(pack(write_text(tmp_path / "train.txt")))) == 4
    assert len(load_avazu(pack(write_csv(tmp_path / "train.csv")), progress=False)) == 4
    write(tmp_path / "a.txt", "3 5 7\n")
    bought = read_edge_lists(tmp_path, files=[pack(tmp_path / "a.txt").name])
    assert bought.user_ids.tolist() == [3] and bought.item_ids.tolist() == [5, 7]


def test_faults_of_packed_text_are_named(tmp_path):
    rows = [make_row()] * 200 + [make_row("x")]
    with pytest.raises(ValueError, match=r"gz, line 201, column label: must be 0 or 1, got 'x'"):
        list(read_batches(CRITEO, pack(write_text(tmp_path / "train.txt", rows))))
    packed = pack(write(tmp_path / "e.csv", "user,item\n" + "1,2\n" * 1000))
    for content in (packed.read_bytes()[:-9], b"no gzip"):
        with pytest.raises(ValueError, match=r"e\.csv\.gz cannot be read: "):
            read_users(write(packed, content))
        with pytest.raises(ValueError, match=r"read_edge_lists: .*e\.csv\.gz cannot be read: "):
            read_edge_lists(tmp_path, files=[packed.name])


def test_lines_may_end_as_on_old_macs(tmp_path):
    assert read_users(write(tmp_path / "e.csv", "user,item\r1,2\r3,4\r")) == [1, 3]


def test_long_lists_of_names_are_cut(tmp_path):
    path = write(tmp_path / "e.csv", ",".join(map(str, range(5000))) + "\n1,2\n")
    with pytest.raises(ValueError, match=r"lacks the column user, it has .*\.\.\.$") as caught:
        read_users(path)
    assert len(str(caught.value)) < 600


def test_a_byte_order_mark_is_skipped(tmp_path):
    for path in (write_text(tmp_path / "train.txt"), write_csv(tmp_path / "train.csv")):
        write(path, MARK + path.read_bytes())
    assert len(load_clicks(tmp_path / "train.txt")) == 4
    assert len(load_avazu(tmp_path / "train.csv", progress=False)) == 4
    write(tmp_path / "train.txt", (tmp_path / "train.txt").read_bytes() + b"x")
    with pytest.raises(ValueError, match="line 5: must have 40 columns, got 1"):
        load_clicks(tmp_path / "train.txt")
    for path in write_dat(tmp_path / "ml-1m").iterdir():
        write(path, MARK + path.read_bytes())
    assert len(load_ml1m(tmp_path)) == 5
    write(tmp_path / "a.txt", MARK + b"3 5\n")
    assert read_edge_lists(tmp_path, files=["a.txt"]).user_ids.tolist() == [3]


def test_lines_within_quotes_are_counted(tmp_path):
    head = '"user",item,"a\nnote"\n'
    path = write(tmp_path / "e.csv", f'{head}1,2,"a\n\nb"\n3,4,c\n')
    assert read_users(path) == [1, 3]
    for bad in ("x,2,", "-5,2,", "9"):  # of another type, out of range, too short
        write(path, f'{head}1,2,"a\n\nb"\n{bad}\n5,6,c\n')
        with pytest.raises(ValueError, match=r"e\.csv, line 6(: must have 3|, column user: must)"):
            read_users(path)


def test_quoted_lines_may_cross_the_batches(tmp_path):
    columns = EventColumns("user", "item")
    row = '"' + "a\n" * 50_000 + '",1,2\n'
    path = write(tmp_path / "e.csv", "note,user,item\n" + row * 50 + "b,3,4\n")
    assert read_users(path, columns) == [1] * 50 + [3]


def test_a_file_of_no_text_is_named(tmp_path):
    path = write(tmp_path / "e.csv", b'user,item\n1,2\n"' + bytes([7, 255, 1, 44]) * 50_000)
    with pytest.raises(ValueError, match=r"e\.csv, line 3 is no text of columns: field larger"):
        read_users(path)
    with pytest.raises(ValueError, match=r"e\.csv, line 1 is no text of columns: field larger"):
        read_users(write(path, b'"' + b"\xff" * 200_000))


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"e\.csv has 2 columns named user, it has \['user', "):
        read_users(write(tmp_path / "e.csv", "user,item,user\n1,2,3\n"))
    names = ["C1", *HEADER[2:], "click", "id"]
    with pytest.raises(ValueError, match="has 2 columns named C1"):
        load_avazu(write_csv(tmp_path / "train.csv", ROWS, header=names), progress=False)


def test_delimiters(tmp_path):
    path = write(tmp_path / "e.csv", "user\titem\n1\t2\n")
    assert read_users(path, EventColumns(delimiter="\\t")) == [1]
    assert read_users(path, EventColumns(delimiter="\t")) == [1]
    for wrong in ("", "ab", ",;", ":::", '"', "\n", "\u00e9"):
        with pytest.raises(ValueError, match=r"e\.csv: the delimiter must be one letter, such as"):
            read_users(path, EventColumns(delimiter=wrong))


@pytest.mark.parametrize("line", ["1 1_000", "1 +6", "+1 6"])
def test_edge_lists_take_digits_alone(tmp_path, line):
    write(tmp_path / "a.txt", f"0 5\n{line}\n")
    with pytest.raises(ValueError, match=r"a\.txt, line 2: must hold whole numbers"):
        read_edge_lists(tmp_path, files=["a.txt"])
