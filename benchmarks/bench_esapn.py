"""`python -m benchmarks.bench_esapn`: events per second of ESAPN beside a dense six-table version.

Both learn the same batches in one process, in turns. Ids are drawn with the counts of a power law,
or come from MovieLens 1M in a shuffled order (`--data-dir`); raw ids are mapped for ours inside the
timed region and before it for the dense version. Every id has been seen before a batch is timed
(`--warmup`), so that rows have grown as they do in the middle of a stream.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.dense_esapn import DenseESAPN
from varemb.data import load_stream
from varemb.search import ESAPN, ESAPNConfig


@dataclass(frozen=True)
class Batch:
    """Events of a batch."""

    users: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    ratings: npt.NDArray[np.float32]
    times: None = None


def make_batches(data_dir: Path | None, size: int, count: int) -> list[Batch]:
    """Batches of a shuffled stream; ids count from 0."""
    if data_dir is not None:
        stream = load_stream("ml-1m", data_dir, "shuffle", 0)
        users = np.unique(stream.users, return_inverse=True)[1]
        items = np.unique(stream.items, return_inverse=True)[1]
        ratings = stream.ratings
    else:
        draw = np.random.default_rng(0)
        users = (6040 * draw.random(size * count) ** 2).astype(np.int64)
        items = (3706 * draw.random(size * count) ** 3).astype(np.int64)
        ratings = draw.integers(1, 6, size * count).astype(np.float32)
    starts = range(0, size * count, size)
    return [Batch(*(array[s : s + size] for array in (users, items, ratings))) for s in starts]


def main() -> None:
    """Prints events per second and bytes of both, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="folder of ml-1m; without it drawn ids")
    parser.add_argument("--batch", type=int, default=500, help="events of a batch")
    parser.add_argument("--warmup", type=int, default=100, help="batches before the timed ones")
    parser.add_argument("--rounds", type=int, default=100, help="timed batches")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--validation", default="uniform", help="uniform or last_batch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batches = make_batches(options.data_dir, options.batch, options.warmup + options.rounds)
    ours = ESAPN(ESAPNConfig(validation=options.validation, batch_size=options.batch))
    last = [max(int(getattr(b, name).max()) for b in batches) for name in ("users", "items")]
    dense = DenseESAPN(last[0] + 1, last[1] + 1, options.validation)
    times = np.zeros((len(batches), 2))
    lost = np.zeros((len(batches), 2))
    for number, batch in enumerate(batches):
        for turn in (number % 2, 1 - number % 2):
            start = time.perf_counter()
            if turn == 0:
                lost[number, 0] = ours.partial_fit(batch)["mse"]
            else:
                ids = torch.from_numpy(np.stack([batch.users, batch.items]))
                labels = torch.from_numpy((batch.ratings > 3.5).astype(np.float32))
                lost[number, 1] = dense.step(ids, labels)[1].mean()
            times[number, turn] = time.perf_counter() - start
    timed = times[options.warmup :]
    sizes = ours.nbytes()
    table = {"ours": sum(sizes[part] for part in ("weights", "index", "unify", "optimizer"))}
    table["dense"] = dense.nbytes()
    print(f"batch {options.batch}, {options.threads} threads, torch {torch.__version__}")
    print(f"{'':8}{'ms':>8}{'20 %':>8}{'80 %':>8}{'events/s':>10}{'MB of tables':>14}{'mse':>8}")
    for which, name in enumerate(table):
        low, median, high = np.percentile(timed[:, which], [20, 50, 80]) * 1e3
        rate, mse = options.batch / median * 1e3, lost[options.warmup :, which].mean()
        print(
            f"{name:8}{median:8.2f}{low:8.2f}{high:8.2f}{rate:10,.0f}{table[name] / 1e6:14.1f}"
            f"{mse:8.4f}"
        )
    ratios = np.percentile(timed[:, 1] / timed[:, 0], [20, 50, 80])
    print("dense / ours, time: {1:.2f} [{0:.2f}, {2:.2f}]".format(*ratios))


if __name__ == "__main__":
    main()
