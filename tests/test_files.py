"""Saves that are cut short, files that lie, and what comes back from files that do not."""

import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from varemb.files import (
    atomic_write,
    load_json,
    load_jsonl,
    load_metadata,
    load_state,
    load_tensors,
    save_json,
    save_jsonl,
    save_state,
    save_tensors,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int16, torch.int64, torch.uint8]


def build_safetensors(header: dict | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def describe(start: int, end: int, shape: list[int], dtype: str = "I16") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "table.safetensors"
    save_tensors(path, {"a": torch.arange(600.0), "b": torch.ones(3)}, {"made": "by a test"})
    return path


def test_atomic_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "note"
    atomic_write(path, b"a long first content")
    atomic_write(path, b"short")
    assert path.read_bytes() == b"short"
    assert os.listdir(tmp_path) == ["note"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_atomic_write_keeps_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch, call):
    path = tmp_path / "note"
    atomic_write(path, b"old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["note"]


@pytest.mark.parametrize("save", ["atomic_write", "save_tensors"])
def test_save_keeps_the_old_file_when_the_file_may_not_grow(tmp_path, save):
    # A real failed write: the kernel refuses every byte after the first 4096.
    path = tmp_path / "table"
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = {
        "atomic_write": lambda count: atomic_write(path, b"x" * count),
        "save_tensors": lambda count: save_tensors(path, {"a": torch.ones(count)}),
    }[save]
    store(10)
    before = path.read_bytes()
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old_limit[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            store(100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["table"]


def test_save_survives_a_kill_at_any_moment(tmp_path):
    path = tmp_path / "state.safetensors"
    script = (
        "import sys, torch\n"
        "from varemb.files import save_state\n"
        "i = 0\n"
        "while True:\n"
        "    save_state(sys.argv[1], {'i': i, 'x': torch.full((400_000,), float(i))})\n"
        "    i += 1\n"
        "    print(i, flush=True)\n"
    )
    for attempt in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(3):
            saves = int(writer.stdout.readline())
        time.sleep(0.0013 * attempt)
        writer.send_signal(signal.SIGKILL)
        writer.stdout.close()
        writer.wait()
        state = load_state(path)
        assert state["i"] >= saves - 1
        assert torch.equal(state["x"], torch.full((400_000,), float(state["i"])))


def test_save_removes_what_a_killed_save_left_behind(tmp_path):
    path = tmp_path / "pl*n"
    leftover, fresh = tmp_path / ".pl*n.17-aa.tmp", tmp_path / ".pl*n.18-bb.tmp"
    other = tmp_path / ".plan.17-aa.tmp"
    for file in (leftover, fresh, other):
        file.write_bytes(b"half")
    for file in (leftover, other):
        os.utime(file, (time.time() - 7200,) * 2)
    atomic_write(path, b"whole")
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, fresh.name, other.name])


def test_save_removes_all_that_a_save_killed_while_it_writes_left_behind(tmp_path):
    path = tmp_path / "table"
    script = (
        "import resource, signal, sys, torch\n"
        "from varemb.files import save_tensors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "save_tensors(sys.argv[1], {'a': torch.ones(100_000)})\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGXFSZ
    (leftover,) = tmp_path.iterdir()
    os.utime(leftover, (time.time() - 7200,) * 2)
    save_tensors(path, {"a": torch.ones(3)})
    assert os.listdir(tmp_path) == ["table"]


def test_save_keeps_a_link_and_the_permissions(tmp_path):
    path, link = tmp_path / "plan", tmp_path / "latest"
    atomic_write(path, b"one")
    path.chmod(0o640)
    link.symlink_to(path)
    atomic_write(link, b"two")
    assert link.is_symlink()
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_new_files_have_the_permissions_of_the_user(tmp_path, mask):
    old = os.umask(mask)
    try:
        atomic_write(tmp_path / "bytes", b"x")
        save_tensors(tmp_path / "tensors", {"a": torch.ones(1)})
    finally:
        os.umask(old)
    for name in ("bytes", "tensors"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~mask


def test_save_names_a_folder_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        atomic_write(tmp_path / "nowhere" / "plan", b"x")


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    path = tmp_path / "t"
    base = torch.arange(24).reshape(4, 6).to(dtype)
    tensors = {
        "whole": base,
        "shares memory": base[1],
        "not contiguous": base.T,
        "no dimension": base[0, 3],
        "empty": base[:0],
    }
    save_tensors(path, tensors)
    loaded = load_tensors(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], tensor), name


def test_metadata_comes_back(saved):
    assert load_metadata(saved) == {"made": "by a test"}


def test_nan_passes_through(tmp_path):
    save_tensors(tmp_path / "t", {"a": torch.tensor([1.0, float("nan"), float("-inf")])})
    assert torch.isnan(load_tensors(tmp_path / "t")["a"]).tolist() == [False, True, False]


def test_save_tensors_refuses_what_is_no_dense_tensor(tmp_path):
    with pytest.raises(TypeError, match="b must be a dense tensor, got list"):
        save_tensors(tmp_path / "t", {"a": torch.ones(1), "b": [1.0]})
    with pytest.raises(TypeError, match="sparse_coo"):
        save_tensors(tmp_path / "t", {"a": torch.ones(2).to_sparse()})


def test_load_refuses_every_truncation(saved):
    whole = saved.read_bytes()
    for length in [*range(0, 12), *range(12, len(whole), 97), len(whole) - 1]:
        saved.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"table\.safetensors"):
            load_tensors(saved)


def test_load_refuses_every_flipped_bit(saved):
    save_state(saved, {"a": torch.arange(600.0), "lr": 0.1})
    whole = saved.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    # Blanks fill the header up to a multiple of 8: the one place without content.
    content = len(whole[:header].rstrip())
    assert header - content < 8
    for place in [*range(content), *range(header, len(whole), 131), len(whole) - 1]:
        broken = bytearray(whole)
        broken[place] ^= 1 << (place % 8)
        saved.write_bytes(broken)
        with pytest.raises(ValueError, match=r"table\.safetensors"):
            load_state(saved)


def test_load_refuses_numbers_read_as_another_dtype(tmp_path):
    path = tmp_path / "s"
    save_state(path, {"a": torch.arange(6.0)})
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"'))
    with pytest.raises(ValueError, match="checksum does not match"):
        load_state(path)


def test_loaded_tensors_do_not_hang_on_the_file(tmp_path):
    path = tmp_path / "s"
    save_tensors(path, {"a": torch.arange(100_000.0)})
    loaded = load_tensors(path)["a"]
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(loaded, torch.arange(100_000.0))
    loaded.add_(1)


HOSTILE = {
    "absurd header": b"\xff" * 8 + b"{}",
    "header beyond the file": struct.pack("<Q", 10_000) + b"{}",
    "overlap": build_safetensors({"a": describe(0, 4, [2]), "b": describe(2, 6, [2])}, b"\0" * 6),
    "hole": build_safetensors({"a": describe(0, 4, [2]), "b": describe(6, 8, [1])}, b"\0" * 8),
    "beyond the end": build_safetensors({"a": describe(0, 40, [20])}, b"\0" * 4),
    "rest": build_safetensors({"a": describe(0, 4, [2])}, b"\0" * 9),
    "wrong shape": build_safetensors({"a": describe(0, 4, [3])}, b"\0" * 4),
    "huge shape": build_safetensors({"a": describe(0, 4, [2**40, 2**40])}, b"\0" * 4),
    "negative": build_safetensors({"a": describe(0, -4, [-2])}, b"\0" * 4),
    "unknown dtype": build_safetensors({"a": describe(0, 4, [2], "OBJ")}, b"\0" * 4),
    "no object": build_safetensors(b"[1, 2]"),
    "deep nesting": build_safetensors(b'{"a":' + b"[" * 200_000 + b"}"),
    "not text": build_safetensors(b"{\xff\xfe}"),
    "text": b"userId,movieId,rating\n1,1,5\n" * 10,
    "pickle": pickle.dumps({"a": [1.0] * 50}),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("load", [load_tensors, load_metadata, load_state])
def test_load_refuses_hostile_files(tmp_path, kind, load):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(ValueError, match=r"load: .*evil\.safetensors"):
        load(path)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_load_never_runs_a_pickle(tmp_path):
    bomb = Bomb()
    bomb.path = str(tmp_path / "exploded")
    plain, archive = tmp_path / "plain.pt", tmp_path / "archive.pt"
    plain.write_bytes(pickle.dumps(bomb))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(bomb))
    for path, reason in ((plain, "pickle file"), (archive, "zip archive")):
        with pytest.raises(ValueError, match=rf"{path.name} is a {reason}"):
            load_state(path)
    assert not (tmp_path / "exploded").exists()


def test_load_names_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        load_tensors(tmp_path / "gone")
    with pytest.raises(ValueError, match="is a folder"):
        load_tensors(tmp_path)


def test_a_header_that_starts_like_a_pickle_is_read(tmp_path):
    header = json.dumps({"a": describe(0, 4, [2])}).encode().ljust(0x0280)
    path = tmp_path / "t"
    path.write_bytes(build_safetensors(header, b"\1\0\2\0"))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert load_tensors(path)["a"].tolist() == [1, 2]


def test_jsonl_comes_back_and_damage_is_named(tmp_path):
    path = tmp_path / "history.jsonl"
    records = [{"epoch": 0}, {"epoch": 1, "valid": {"auc": 0.5}}]
    save_jsonl(path, records)
    assert load_jsonl(path) == records
    save_jsonl(path, [])
    assert load_jsonl(path) == []
    path.write_text('{"epoch": 0}\n{"epoch": 1, "lo')
    with pytest.raises(ValueError, match=r"history\.jsonl, line 2 is not JSON"):
        load_jsonl(path)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match=r"history\.jsonl, line 1 is not a JSON object"):
        load_jsonl(path)


def test_json_comes_back_and_damage_is_named(tmp_path):
    path = tmp_path / "metrics.json"
    save_json(path, {"auc": 0.81, "fields": ["userId"]})
    assert load_json(path) == {"auc": 0.81, "fields": ["userId"]}
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"metrics\.json is not a JSON file"):
        load_json(path)
