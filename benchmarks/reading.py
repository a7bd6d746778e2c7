"""``python -m benchmarks.reading --gigabytes 5``: encode a generated log; how fast, how large.

A file in Criteo's format is written, then counted and encoded by a process of its own, whose
largest resident memory is read from the kernel. Values of the categories follow a power law over as
many values as Criteo's fields have, so that most of them are rare, as there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import resident_bytes
from varemb.data import open_encoded
from varemb.data.criteo import CRITEO
from varemb.data.encoding import count_values, encode_log
from varemb.data.reading import BLOCK_BYTES

# Distinct values of C1..C26 in the competition's train.txt, rounded.
VALUES = (1_460, 580, 10_100_000, 2_200_000, 305, 24, 12_500, 630, 3, 93_000, 5_700, 8_350_000,
          3_200, 27, 15_000, 5_460_000, 10, 5_650, 2_170, 4, 7_050_000, 18, 15, 286_000, 105,
          142_000)  # fmt: skip
BLOCK_ROWS = 50_000
_BATCHES, _BATCH = 200, 2000  # random rows read back from the encoded folder


def write_criteo(
    path: Path, size: int, *, values: Sequence[int] = VALUES, seed: int = 0
) -> tuple[int, int]:
    """Writes a file of about `size` bytes in Criteo's format; returns its rows and bytes."""
    import pyarrow
    from pyarrow import csv

    draw = np.random.default_rng(seed)
    options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    schema = pyarrow.schema(
        [(CRITEO.label, pyarrow.int8())]
        + [
            (name, pyarrow.int32() if name in CRITEO.counts else pyarrow.string())
            for name in CRITEO.fields
        ]
    )
    rows = 0
    with open(path, "wb") as file, csv.CSVWriter(file, schema, write_options=options) as writer:
        while file.tell() < size:
            columns: dict[str, Any] = {CRITEO.label: draw.random(BLOCK_ROWS) < 0.256}
            for name in CRITEO.fields[: len(CRITEO.counts)]:
                numbers = draw.lognormal(2, 2, BLOCK_ROWS).astype(np.int32)
                columns[name] = pyarrow.array(numbers, mask=draw.random(BLOCK_ROWS) < 0.2)
            for number, count in enumerate(values):
                columns[CRITEO.fields[len(CRITEO.counts) + number]] = _hashes(draw, number, count)
            arrays = [
                pyarrow.array(column).cast(kind.type)
                for column, kind in zip(columns.values(), schema, strict=True)
            ]
            writer.write_batch(pyarrow.record_batch(arrays, schema=schema))
            rows += BLOCK_ROWS
    return rows, path.stat().st_size


def _hashes(draw: np.random.Generator, field: int, count: int) -> Any:
    """Values of a category as 8 hexadecimal digits, rank r with frequency about 1 / r."""
    import pyarrow

    ranks = np.exp(draw.random(BLOCK_ROWS) * np.log(count + 1)).astype(np.uint64)
    hashes = ((ranks * 2_654_435_761 + field * 97) % 2**32).astype(">u4")  # an odd factor: distinct
    pairs = np.frombuffer("".join(f"{i:02x}" for i in range(256)).encode(), np.uint16)
    text = pairs[hashes.view(np.uint8)].view(np.uint8)
    offsets = np.arange(0, len(text) + 1, 8, dtype=np.int32)
    buffers = [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(text)]
    return pyarrow.Array.from_buffers(pyarrow.string(), BLOCK_ROWS, buffers)


def measure(source: Path, folder: Path, *, block_bytes: int = BLOCK_BYTES) -> dict[str, Any]:
    """Seconds and memory of counting and of encoding, and of random batches read back."""
    warnings.simplefilter("ignore")
    before = resident_bytes("VmHWM")
    start = time.perf_counter()
    options: Any = {"progress": False, "block_bytes": block_bytes}
    vocabulary = count_values(CRITEO, source, **options)
    counted = time.perf_counter()
    distinct = sum(vocabulary.distinct.values())
    data = encode_log(CRITEO, source, folder, vocabulary=vocabulary, **options)
    encoded = time.perf_counter()
    peak = resident_bytes("VmHWM")
    generator = torch.Generator().manual_seed(0)
    for _ in range(_BATCHES):
        data.ids[torch.randint(len(data), (_BATCH,), generator=generator)]
    read = time.perf_counter()
    return {
        "rows": len(data),
        "distinct values": distinct,
        "ids": sum(data.cardinalities),
        "seconds to count": counted - start,
        "seconds to encode": encoded - counted,
        "rows per second": len(data) / (encoded - start),
        "memory before, MB": before / 1e6,
        "peak memory, MB": peak / 1e6,
        "encoded bytes, MB": sum(file.stat().st_size for file in folder.iterdir()) / 1e6,
        "random rows read back per second": _BATCHES * _BATCH / (read - encoded),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=5.0, help="size of the file (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the values (default 0)")
    parser.add_argument("--folder", type=Path, help="for the files (default: a temporary one)")
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source, folder = Path(name, "train.txt"), Path(name, "encoded")
        start = time.perf_counter()
        rows, size = write_criteo(source, int(options.gigabytes * 1e9), seed=options.seed)
        seconds = time.perf_counter() - start
        print(f"{rows:,} rows, {size / 1e9:.2f} GB, written in {seconds:.0f} s", flush=True)
        command = [sys.executable, "-m", "benchmarks.reading", "--measure", source, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return 1
        for key, value in json.loads(done.stdout).items():
            print(f"{key}: {value:,.1f}" if isinstance(value, float) else f"{key}: {value:,}")
        open_encoded(folder)  # compares its checksums
    return 0


if __name__ == "__main__":
    sys.exit(main())
