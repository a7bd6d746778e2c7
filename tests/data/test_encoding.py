"""Encoded folders: whole or not there, mapped and split on the disk, within little memory."""

import errno
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from varemb.data import Vocabulary, criteo_vocabulary, encode_criteo, load_criteo, open_encoded
from varemb.data import __main__ as command_module
from varemb.data import base as base_module
from varemb.data import mapped as mapped_module
from varemb.data.__main__ import main
from varemb.files import load_json, save_json
from varemb.search import TrainConfig

pytest.importorskip("pyarrow", reason="the files are read by pyarrow")
pytest.importorskip("tqdm", reason="reading shows its progress")

from benchmarks.reading import measure, write_criteo
from varemb.data.criteo import CRITEO
from varemb.data.encoding import count_values, encode_log
from varemb.data.mapped import building

VALUES = (7, 300, 5000, *[4] * 23)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """50,000 rows in Criteo's format."""
    path = tmp_path_factory.mktemp("criteo") / "train.txt"
    write_criteo(path, 1, values=VALUES)
    return path


@pytest.fixture(scope="module")
def encoded(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "encoded"
    encode_criteo(source, folder, progress=False)
    return folder


@pytest.fixture
def copied(encoded, tmp_path) -> Path:
    return Path(shutil.copytree(encoded, tmp_path / "encoded"))


def test_an_encoded_folder_holds_what_memory_does(source, encoded):
    memory, mapped = load_criteo(source, progress=False), load_criteo(encoded, progress=False)
    assert mapped.folder == encoded and memory.folder is None
    assert torch.equal(mapped.ids, memory.ids) and mapped.ids.dtype == torch.int32
    assert torch.equal(mapped.labels, memory.labels)
    assert mapped.field_names == memory.field_names
    assert mapped.cardinalities == memory.cardinalities
    # 40 distinct categories and more of the third: the file is no constant
    assert len(mapped.ids[:, 15].unique()) > 40


def test_batches_of_any_size_give_the_same(source, encoded, tmp_path):
    small = encode_log(CRITEO, source, tmp_path / "small", progress=False, block_bytes=1 << 15)
    assert torch.equal(small.ids, open_encoded(str(encoded)).ids)
    for name in ("ids.int32", "labels.float32", "rows.json"):
        assert (tmp_path / "small" / name).read_bytes() == (encoded / name).read_bytes(), name
    small, large = (
        Vocabulary.load(folder / "vocabulary.safetensors")
        for folder in (tmp_path / "small", encoded)
    )
    assert small.is_same(large) and small.distinct == large.distinct
    for name, counts in small.counts.items():
        assert np.array_equal(counts, large.counts[name]), name


@on_linux
def test_mapped_rows_are_not_in_memory(encoded):
    maps = Path("/proc/self/maps")
    data = open_encoded(encoded)
    lines = [line for line in maps.read_text().splitlines() if str(encoded) in line]
    assert {line.split("/")[-1] for line in lines} == {"ids.int32", "labels.float32"}
    # Shared and read-only: not counted as memory, so the file may be larger than it.
    assert all(line.split()[1] == "r--s" for line in lines)
    start = data.ids.data_ptr()
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    assert any(low <= start < high for low, high in ranges)


def test_parts_on_disk_hold_the_rows_of_parts_in_memory(source, copied, monkeypatch):
    monkeypatch.setattr(mapped_module, "_CHUNK_ROWS", 7001)
    memory, mapped = load_criteo(source, progress=False), open_encoded(copied)
    order = torch.randperm(len(memory), generator=torch.Generator().manual_seed(3))
    parts = mapped.split(3)
    assert [len(part) for part in parts] == [40_000, 5_000, 5_000]
    for part, rows in zip(parts, order.split([40_000, 5_000, 5_000]), strict=True):
        rows = rows.sort().values  # parts on the disk keep the order of the file
        assert torch.equal(part.ids, memory.ids[rows])
        assert torch.equal(part.labels, memory.labels[rows])
        assert part.cardinalities == memory.cardinalities
    monkeypatch.setattr(base_module, "_write_parts", None)  # they are there, and not written again
    again = mapped.split(3)
    assert torch.equal(again[0].ids, parts[0].ids)
    assert sorted(path.name for path in copied.iterdir() if path.is_dir()) == [
        "parts-seed3-0.8-0.1-0.1"
    ]


def test_training_reads_from_the_disk(copied):
    pytest.importorskip("sklearn", reason="training measures with scikit-learn")
    from varemb.experiment import MODELS, load_task
    from varemb.plan import SizePlan
    from varemb.search import train_plan

    config = TrainConfig(max_epochs=1)
    task = load_task("criteo", copied, "wide-deep", config)
    assert task.train.folder is not None and "wide-deep" in MODELS
    rows = dict(zip(task.train.field_names, task.train.cardinalities, strict=True))
    plan = SizePlan.uniform(rows, 4, 2)
    data = (task.train, task.valid, task.test)
    _, measured = train_plan(
        task.make_model(4), plan, *data, config, unify="pad", checkpoint=None, resume=False
    )
    assert 0 < measured["metrics"]["auc"] < 1


@pytest.mark.parametrize("name", ["ids.int32", "labels.float32"])
def test_damaged_files_are_named(copied, name):
    path = copied / name
    content = bytearray(path.read_bytes())
    content[1001] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is corrupt: its checksum does not match"):
        open_encoded(copied)
    path.write_bytes(content[:-4])
    with pytest.raises(ValueError, match=rf"{name} must have {len(content)} bytes, got"):
        open_encoded(copied)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"version": 1', '"version": 2', "must have varemb.rows version 1, got 2"),
        ('"format": "varemb.rows"', '"format": "x"', "must be a varemb.rows file"),
        ('"cardinalities"', '"sizes"', "lacks cardinalities"),
        ("{", "", "is not a JSON file"),
    ],
)
def test_damaged_notes_are_named(copied, old, new, message):
    path = copied / "rows.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"rows.json {message}"):
        open_encoded(copied)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("checksums", {}, "checksums must be of ids.int32 and labels.float32, got {}"),
        ("fields", 5, "fields must be a list of names, got 5"),
        ("rows", "50000", "rows must be a whole number above 0, got 50000"),
        ("data", None, "data must be a name, got None"),
        ("cardinalities", 7, "cardinalities must be a list of whole numbers .*, got 7"),
        ("cardinalities", [2.5] * 39, r"cardinalities must be a list .*, got \[2.5, "),
        ("cardinalities", [10**12] * 39, r"cardinalities must be .* from 1 to 2147483648, .*got"),
        ("cardinalities", [9] * 38, "must have a cardinality per field, 39, got 38"),
        ("cardinalities", [1] * 39, r"ids of I1 must be in \[0, 1\), its cardinality, got"),
    ],
)
def test_notes_of_other_types_are_named(copied, key, value, message):
    path = copied / "rows.json"
    save_json(path, load_json(path) | {key: value})
    with pytest.raises(ValueError, match=rf"rows.json: {message}"):
        open_encoded(copied)


def test_cardinalities_are_those_of_the_vocabulary(copied):
    path = copied / "rows.json"
    save_json(path, load_json(path) | {"cardinalities": [10**9] * 39})
    with pytest.raises(ValueError, match=r"rows.json: the cardinality of I1 must be \d+, .*got 10"):
        load_criteo(copied)


def refuse_to_build_in(folder, monkeypatch):
    """Makes a folder one of a read-only mount; a test as root cannot do it by permissions."""

    def build(place):
        if folder in place.parents:
            raise OSError(errno.EROFS, "Read-only file system", str(place))
        return building(place)

    monkeypatch.setattr(base_module, "building", build)


def test_parts_of_a_read_only_folder_are_temporary(copied, tmp_path, monkeypatch):
    expected = open_encoded(copied).split(3)
    shutil.rmtree(copied / "parts-seed3-0.8-0.1-0.1")
    refuse_to_build_in(copied, monkeypatch)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with pytest.warns(UserWarning, match=rf"parts of {copied}, 0.0 GB, .*they go to {temporary}"):
        parts = open_encoded(copied).split(3)
    assert list(temporary.iterdir()) == []  # the maps hold what is left of the files
    for part, same in zip(parts, expected, strict=True):
        assert torch.equal(part.ids, same.ids) and torch.equal(part.labels, same.labels)
        assert part.folder is None and part.cardinalities == same.cardinalities


def test_parts_without_a_place_are_refused(copied, tmp_path, monkeypatch):
    refuse_to_build_in(copied, monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(OSError, match=rf"Read-only file system: .*; {tmp_path} has 0.0 GB, TMPDIR"):
        open_encoded(copied).split(3)


def test_a_folder_without_rows_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no encoded rows, it has no rows.json"):
        open_encoded(tmp_path)


def test_a_folder_is_not_overwritten(source, copied):
    with pytest.raises(FileExistsError, match=r"encoded exists; choose another folder"):
        encode_criteo(source, copied, progress=False)
    assert len(open_encoded(copied)) == 50_000
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        encode_criteo(source, copied / "a" / "b", progress=False)


def test_a_failed_encode_leaves_nothing(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("0\t1\n")
    with pytest.raises(ValueError, match="must have 40 columns"):
        encode_criteo(path, tmp_path / "encoded", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["train.txt"]


def test_a_killed_encode_is_not_taken_for_whole(source, tmp_path):
    folder = tmp_path / "encoded"
    words = [sys.executable, "-m", "varemb.data", "criteo", str(source), "--out", str(folder)]
    run = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / ".encoded.partial" / "ids.int32").exists():
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not folder.exists()
    (tmp_path / ".encoded.partial" / "parts").mkdir()  # whatever else a kill may leave
    (tmp_path / ".encoded.partial" / "parts" / "0").write_bytes(b"old")
    assert len(encode_criteo(source, folder, progress=False)) == 50_000
    assert [path.name for path in tmp_path.iterdir()] == ["encoded"]
    names = {"ids.int32", "labels.float32", "rows.json", "vocabulary.safetensors"}
    assert {path.name for path in folder.iterdir()} == names


def test_a_folder_is_written_once_at_a_time(source, tmp_path):
    folder = tmp_path / "encoded"
    with building(folder) as partial:
        (partial / "ids.int32").write_bytes(b"theirs")
        with pytest.raises(FileExistsError, match=r"another process is writing .*encoded"):
            encode_criteo(source, folder, progress=False)
        assert (partial / "ids.int32").read_bytes() == b"theirs"
    assert [path.name for path in folder.iterdir()] == ["ids.int32"]


def test_an_encoded_folder_keeps_its_vocabulary(source, encoded):
    stored = Vocabulary.load(encoded / "vocabulary.safetensors")
    assert stored.is_same(criteo_vocabulary(source, progress=False))
    assert load_criteo(encoded, vocabulary=stored, min_count=None).folder == encoded
    assert load_criteo(encoded, min_count=10).folder == encoded
    with pytest.raises(ValueError, match="was encoded with another vocabulary or min_count"):
        load_criteo(encoded, min_count=2)
    other = criteo_vocabulary(source, min_count=2, progress=False)
    with pytest.raises(ValueError, match="was encoded with another vocabulary or min_count"):
        load_criteo(encoded, vocabulary=other)
    with pytest.raises(ValueError, match="is encoded already"):
        criteo_vocabulary(encoded)


def test_the_command_encodes(source, encoded, tmp_path, capsys):
    words = ["criteo", str(source), "--out", str(tmp_path / "a")]
    assert main(words) == 0
    assert "50,000 rows, 39 fields" in capsys.readouterr().out
    vocabulary = encoded / "vocabulary.safetensors"
    assert main([*words[:-1], str(tmp_path / "b"), "--vocabulary", str(vocabulary)]) == 0
    assert torch.equal(open_encoded(tmp_path / "a").ids, open_encoded(tmp_path / "b").ids)
    capsys.readouterr()
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("varemb: encode: ")


def test_the_command_is_stopped_with_one_line(source, tmp_path, capsys, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_module, "encode_log", stop)
    assert main(["criteo", str(source), "--out", str(tmp_path / "a")]) == 130
    assert capsys.readouterr().err == f"varemb: stopped; {tmp_path / 'a'} was not made\n"


@on_linux
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Four times the rows, 45 MB more of text, need no more memory."""
    peaks = []
    for size in (15_000_000, 60_000_000):
        path = tmp_path / f"{size}.txt"
        write_criteo(path, size, values=VALUES)
        code = (
            "import sys, pathlib; from benchmarks.reading import measure;"
            "print(measure(*map(pathlib.Path, sys.argv[1:]), block_bytes=1 << 18)"
            "['peak memory, MB'])"
        )
        words = [sys.executable, "-c", code, str(path), str(tmp_path / f"out{size}")]
        root = Path(__file__).parents[2]
        done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout))
    assert peaks[1] - peaks[0] < 15, peaks


def test_the_generated_log_is_as_large_as_asked(source, tmp_path):
    rows, size = write_criteo(tmp_path / "b.txt", 1, values=VALUES)
    assert rows == 50_000 and size == (tmp_path / "b.txt").stat().st_size
    assert (tmp_path / "b.txt").read_bytes() == source.read_bytes()
    facts = measure(source, tmp_path / "encoded")
    assert facts["rows"] == 50_000
    distinct = count_values(CRITEO, source, progress=False).distinct
    assert facts["distinct values"] == sum(distinct.values())
    assert (distinct["C1"], distinct["C4"]) == (7, 4)
