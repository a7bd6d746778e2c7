"""``python -m benchmarks.bench_ciess --data-dir DIR``: what an iteration of CIESS costs, by part.

Batches of triples at full width, rankings of all users, the graph, then one iteration of the search
with its parts, and the peak memory of one beside a full table times a mask. Wall seconds are the
fastest round; processor seconds are those of this process, which other programs on the machine do
not lengthen, and with one thread are what it would take alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import forget_peak, resident_bytes
from varemb import VarEmbedding
from varemb.data.interactions import INTERACTIONS, Split, load_interactions
from varemb.models.recommender import RECOMMENDERS, TRAININGS, prepare_recommender
from varemb.search.ciess import CIESS
from varemb.search.dim_agents import CIESSConfig
from varemb.search.pairwise import (
    PARTS,
    Fitting,
    MakeNodeTable,
    PairwiseConfig,
    Prepare,
    Trainer,
    packed_table,
)
from varemb.search.sparsity import allowed_numbers, random_dims

Dims = npt.NDArray[np.int64]

# The published code on two cores of a machine like ours.
PUBLISHED = {"lightgcn": "0.30-0.34", "ncf": "0.134"}
PUBLISHED_RANKING = {"lightgcn": "1.8-2.7", "ncf": "90"}


class DenseMasked(nn.Module):
    """A full table times a prefix mask, as the published code has it. [L] -> [L, D]

    Args:
        dense: first numbers. [N, D]
        dims: numbers of each row that are not masked. [N]
    """

    mask: Tensor

    def __init__(self, dense: Tensor, dims: Dims) -> None:
        super().__init__()
        self.weight = nn.Parameter(dense.clone())
        mask = torch.arange(dense.shape[1]) < torch.from_numpy(dims)[:, None]
        self.register_buffer("mask", mask.to(dense.dtype))

    def forward(self, rows: Tensor) -> Tensor:
        return F.embedding(rows, self.weight * self.mask)


def masked_table(dims: Dims, width: int) -> MakeNodeTable:
    """Makes full tables behind a mask."""
    return lambda std: DenseMasked(torch.randn(len(dims), width) * std, dims)


def prepare_for(split: Split, name: str, width: int) -> Prepare:
    """Makes recommenders of one kind over pairs of a split."""
    sizes = {"num_users": split.num_users, "num_items": split.num_items, "width": width}
    return partial(prepare_recommender, name, **sizes)


def clock(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def summary(times: Sequence[tuple[float, float]]) -> str:
    """The fastest wall time and the median processor time."""
    walls, processors = zip(*times, strict=True)
    return f"{min(walls):8.3f} {statistics.median(processors):10.3f}"


def make_trainer(split: Split, name: str, width: int, training: PairwiseConfig) -> Trainer:
    """A trainer of one kind of recommender, ranked for the validation pairs."""
    return Trainer.of_search(prepare_for(split, name, width), split, training, 0)


def measure_steps(
    split: Split, name: str, dims: Dims, options: argparse.Namespace
) -> tuple[Trainer, Fitting]:
    """Prints the parts of a step, of a ranking, and of the graph."""
    training = PairwiseConfig(batch_size=options.batch, **TRAININGS[name])
    build, _ = clock(lambda: make_trainer(split, name, options.width, training))
    trainer = make_trainer(split, name, options.width, training)
    generator = torch.Generator().manual_seed(0)
    fitting = trainer.start(packed_table(dims, options.width), generator)
    trainer.advance(fitting, 3, generator)
    before = dict(trainer.seconds)
    steps = [clock(lambda: trainer.advance(fitting, 1, generator)) for _ in range(options.steps)]
    ranks = [clock(lambda: trainer.rank(fitting.model)) for _ in range(options.ranks)]
    parts = {part: (trainer.seconds[part] - before[part]) / options.steps for part in PARTS[:4]}
    shares = ", ".join(f"{part} {value:.3f}" for part, value in parts.items())
    print(f"{name:9} step of {options.batch:,}   {summary(steps)}   {PUBLISHED.get(name, '-'):>9}")
    print(f"{'':9} mean wall by part: {shares}")
    print(f"{'':9} rank all users   {summary(ranks)}   {PUBLISHED_RANKING.get(name, '-'):>9}")
    print(f"{'':9} graph and lists, once a split: {build:.3f} s", flush=True)
    return trainer, fitting


def measure_iterations(split: Split, options: argparse.Namespace) -> None:
    """Prints the parts of a few iterations of the search."""
    training = PairwiseConfig(
        batch_size=options.batch, epochs=options.epochs, round_epochs=1, max_rounds=1
    )
    config = CIESSConfig(
        width=options.width, episodes=1, iterations=options.iterations, plans=1, sparsities=(0.8,)
    )
    result = CIESS(config).fit(
        split, prepare_for(split, "lightgcn", options.width), training, progress=False
    )
    print(f"one iteration of CIESS, LightGCN, {options.epochs} epochs (wall seconds)")
    for record in result.history:
        seconds = record["seconds"]
        other = seconds["sampling"] + seconds["evaluation"] + seconds["rl"]
        parts = ", ".join(f"{part} {seconds[part]:.2f}" for part in PARTS)
        print(
            f"  sparsity {record['sparsity']:.2f}: {record['total_seconds']:.1f} s: {parts}; "
            f"sampling, evaluation and rl {other / record['total_seconds']:.1%}",
            flush=True,
        )


def peak_bytes(run: Callable[[], object]) -> int:
    """Largest resident memory of this process during a call, above that before it."""
    forget_peak()
    before = resident_bytes("VmRSS")
    run()
    return resident_bytes("VmHWM") - before


def measure_memory(split: Split, table: str, options: argparse.Namespace) -> None:
    """Prints the peak memory of a training; one table a process, so that none reuses another's."""
    rows = split.num_users + split.num_items
    numbers = allowed_numbers(rows, options.width, options.sparsity)
    dims = random_dims(rows, options.width, options.sparsity, numbers, seed=0)
    make = packed_table if table == "packed" else masked_table
    training = PairwiseConfig(batch_size=options.batch, **TRAININGS[options.model])
    trainer = make_trainer(split, options.model, options.width, training)

    def train() -> None:
        generator = torch.Generator().manual_seed(0)
        fitting = trainer.start(make(dims, options.width), generator)
        trainer.advance(fitting, 3, generator)
        trainer.rank(fitting.model)

    taken = peak_bytes(train) / 1e6
    print(
        f"{options.model}, {table}, sparsity {options.sparsity}, {rows:,} rows: {taken:.1f} MB at "
        "the peak of a training and its ranking"
    )


def losses_of(trainer: Trainer, fitting: Fitting, steps: int) -> list[float]:
    """The loss of each of some steps, from the first triples on."""
    trainer.rewind()
    return [trainer.advance(fitting, 1, torch.Generator().manual_seed(step))
            for step in range(steps)]  # fmt: skip


def measure_losses(split: Split, name: str, options: argparse.Namespace) -> float:
    """Prints and returns how far losses of packed tables and of full ones times a mask go apart.

    Both begin with the same numbers and see the same triples. One row in a hundred is as wide as
    the table, so that both multiply blocks of one shape; in narrower ones sums are rounded
    differently, and Adam makes more of it with every step. So it does of MKL's sums, which depend
    on where blocks lie in memory unless MKL_CBWR is set, and on the threads.
    """
    rows = split.num_users + split.num_items
    numbers = allowed_numbers(rows, options.width, options.sparsity)
    dims = random_dims(rows, options.width, options.sparsity, numbers, seed=0)
    dims[::100] = options.width
    dense = torch.randn(2, rows, options.width, generator=torch.Generator().manual_seed(0))
    trainer = make_trainer(split, name, options.width, PairwiseConfig(**TRAININGS[name]))

    def start(make: Callable[[Tensor], nn.Module]) -> Fitting:
        tables = iter(dense)
        return trainer.start(lambda std: make(next(tables) * std), torch.Generator())

    def pack(first: Tensor) -> nn.Module:
        return VarEmbedding.from_pretrained(first, freeze=False, dims=torch.from_numpy(dims))

    packed, masked = start(pack), start(lambda first: DenseMasked(first, dims))
    with torch.no_grad():  # layers around the tables begin alike
        pairs = zip(packed.model.parameters(), masked.model.parameters(), strict=True)
        for mine, other in pairs:
            if mine.shape == other.shape:
                other.copy_(mine)
    both = zip(*(losses_of(trainer, each, 50) for each in (packed, masked)), strict=True)
    apart = max(abs(mine - other) for mine, other in both)
    print(
        f"{name}: losses of 50 steps, packed against full times a mask: at most {apart:.1e} apart"
    )
    return apart


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_ciess", description=__doc__)
    parser.add_argument("--data-dir", required=True, help="folder of the data sets")
    parser.add_argument("--data", default="ml-1m", choices=INTERACTIONS)
    parser.add_argument("--models", default=",".join(RECOMMENDERS), help="separated by commas")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--dim", type=int, default=0, help="of all rows; 0 is the width")
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--epochs", type=int, default=5, help="of an iteration of the search")
    parser.add_argument("--iterations", type=int, default=0, help="of the search, to be measured")
    parser.add_argument("--memory", choices=("packed", "masked"), help="measure memory alone")
    parser.add_argument("--losses", action="store_true", help="compare packed and masked alone")
    parser.add_argument("--model", default="lightgcn", choices=RECOMMENDERS, help="for --memory")
    parser.add_argument("--sparsity", type=float, default=0.9, help="for --memory and --losses")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    split = load_interactions(options.data, options.data_dir).split(42)
    if options.memory:
        measure_memory(split, options.memory, options)
        return 0
    if options.losses:
        for name in options.models.split(","):
            measure_losses(split, name, options)
        return 0
    rows = split.num_users + split.num_items
    dims = np.full(rows, options.dim or options.width)
    print(
        f"{options.data}: {len(split.train.users):,} training pairs, {split.num_users:,} users, "
        f"{split.num_items:,} items; dims {options.dim or options.width} of {options.width}, "
        f"{options.threads} threads, torch {torch.__version__}"
    )
    print(f"{'':9} seconds            {'wall':>8} {'processor':>10}   published")
    for name in options.models.split(","):
        measure_steps(split, name, dims, options)
    if options.iterations:
        measure_iterations(split, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
