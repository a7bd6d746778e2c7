"""`python -m benchmarks.bench_model_step`: a whole training step of DeepFM, and where time goes.

26 fields with the rows of Criteo's, the largest cut, and the MLP of DeepFM's paper; ids are drawn
by Zipf 1.05 in each field, and the data are in memory. A step is lookups, forward and backward of
the rest, the tables' backward and all optimizers. Tables are varemb's, with widths by frequency or
all of the full width, or `nn.Embedding`: padded, or padded times a mask, which is jagged widths as
they are usually written. All contenders run in turns, on the same fresh batch in every round.

Before anything is timed, jagged widths must give the numbers of the masked table, and equal widths
those of the padded one, with each optimizer that torch has for sparse gradients. Two lines have
other mathematics than their neighbours, and say so: torch's dense Adam moves rows that a batch has
not looked up, and row-wise Adagrad, which torch has not, keeps one number of state per row.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import varemb
from benchmarks import timing
from benchmarks.large import make_batches, multiplier_of
from benchmarks.run import describe_environment
from varemb import SizePlan, VarEmbedding
from varemb.files import save_json
from varemb.models import DeepFM
from varemb.storage import tensors_of

# Distinct values of Criteo's 26 categorical fields, cut to 400,000: 2.6 million in all.
CARDINALITIES = (
    1460, 583, 400_000, 400_000, 305, 24, 12_517, 633, 3, 93_145, 5683, 400_000, 3194, 27, 14_992,
    400_000, 10, 5652, 2173, 4, 400_000, 18, 15, 286_181, 105, 142_572,
)  # fmt: skip
HIDDEN = (400, 400, 400)
ZIPF = 1.05
LEARNING_RATE = 1e-3


class Clicks(NamedTuple):
    """A batch."""

    ids: Tensor  # [B, F], int64
    labels: Tensor  # [B]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A contender: its tables and what trains them.

    Attributes:
        tables: "jagged" and "equal" are varemb's, "masked" and "padded" torch's.
        make: makes the optimizer of the tables from their weights.
        is_sparse: torch's tables give sparse gradients.
        twin: the contender with the same mathematics, if another has them.
        beside: the contender whose time this one's is divided by.
    """

    tables: str
    make: Callable[..., torch.optim.Optimizer]
    is_sparse: bool = True
    twin: str | None = None
    beside: str = ""


ADAM, ADAGRAD = "varemb jagged, Adam", "varemb jagged, Adagrad"
ROW_WISE = "varemb jagged, row-wise Adagrad"
KINDS = {
    ADAM: Kind("jagged", varemb.optim.Adam, beside=ADAM),
    "varemb equal, Adam": Kind("equal", varemb.optim.Adam, beside=ADAM),
    "masked, SparseAdam": Kind("masked", torch.optim.SparseAdam, twin=ADAM, beside=ADAM),
    "padded, SparseAdam": Kind(
        "padded", torch.optim.SparseAdam, twin="varemb equal, Adam", beside=ADAM
    ),
    "padded, dense Adam *": Kind("padded", torch.optim.Adam, is_sparse=False, beside=ADAM),
    ADAGRAD: Kind("jagged", varemb.optim.Adagrad, beside=ADAGRAD),
    ROW_WISE + " *": Kind("jagged", varemb.optim.RowWiseAdagrad, beside=ADAGRAD),
    "varemb equal, Adagrad": Kind("equal", varemb.optim.Adagrad, beside=ADAGRAD),
    "masked, Adagrad": Kind("masked", torch.optim.Adagrad, twin=ADAGRAD, beside=ADAGRAD),
    "padded, Adagrad": Kind(
        "padded", torch.optim.Adagrad, twin="varemb equal, Adagrad", beside=ADAGRAD
    ),
}


class PaddedFields(nn.Module):
    """One `nn.Embedding` for all fields, times a mask where one is given."""

    def __init__(self, dense: Tensor, starts: Tensor, mask: Tensor | None, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(*dense.shape, sparse=sparse, _weight=dense)
        self.starts, self.mask = starts, mask

    @property
    def weight(self) -> nn.Parameter:
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:  # [B, F] -> [B, F, D]
        rows = ids + self.starts
        vectors: Tensor = self.table(rows)
        return vectors if self.mask is None else vectors * self.mask[rows]


class Given(nn.Module):
    """Stands where the model has a table: what has been looked up before."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = torch.empty(0)

    def forward(self, ids: Tensor) -> Tensor:
        return self.vectors


class Contender:
    """A model with its tables and optimizers; a step in three parts.

    Attributes:
        tables: vectors [B, F, D] and weights [B, F, 1] of ids [B, F].
    """

    def __init__(
        self, kind: Kind, plan: SizePlan, width: int, options: dict[str, Any], dropout: float
    ) -> None:
        torch.manual_seed(0)
        cardinalities = [len(plan[name]) for name in plan]
        self.tables = [
            _make_table(kind, cardinalities, width, plan),
            _make_table(kind, cardinalities, 1, None),
        ]
        self.given = (Given(), Given())
        self.model = DeepFM(cardinalities, width, self.given[0], hidden=HIDDEN, dropout=dropout)
        self.model.wide = self.given[1]
        weights = [table.weight for table in self.tables]
        self.table_optimizer = kind.make(weights, lr=LEARNING_RATE, **options)
        self.rest_optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)
        self.vectors: list[Tensor] = []

    def look_up(self, batch: Clicks) -> None:
        """The tables' forward."""
        self.vectors = [table(batch.ids) for table in self.tables]

    def train_rest(self, batch: Clicks) -> None:
        """Forward and backward of all but the tables, and its optimizer."""
        for given, vectors in zip(self.given, self.vectors, strict=True):
            given.vectors = vectors.detach().requires_grad_()
        logits = self.model(batch.ids)
        nn.functional.binary_cross_entropy_with_logits(logits, batch.labels).backward()
        self.rest_optimizer.step()
        self.rest_optimizer.zero_grad()

    def train_tables(self, batch: Clicks) -> None:
        """The tables' backward and optimizer."""
        torch.autograd.backward(self.vectors, [given.vectors.grad for given in self.given])
        self.table_optimizer.step()
        self.table_optimizer.zero_grad()

    def forget(self) -> None:
        """Drops what a step leaves behind."""
        self.vectors = []
        for given in self.given:
            given.vectors = torch.empty(0)

    def kept(self) -> list[Tensor]:
        """Numbers, index, mask and optimizer state of the tables."""
        found: list[Any] = [getattr(table, "mask", None) for table in self.tables]
        for table in self.tables:
            found += tensors_of(table)
        for state in self.table_optimizer.state.values():
            found += state.values()
        return [tensor for tensor in found if isinstance(tensor, Tensor) and tensor.numel() > 1]

    def runner(self) -> timing.Runner:
        """The step as `timing.measure` takes it."""
        stages = (
            ("tables forward", self.look_up),
            ("rest", self.train_rest),
            ("tables backward + optimizer", self.train_tables),
        )
        return timing.Runner(stages, self.kept, self.forget)

    @torch.no_grad()
    def logits(self, batch: Clicks) -> Tensor:  # [B]
        """What the model says of a batch, normalised by the batch as in training.

        A bias before a normalisation has no gradient but rounding, which Adam blows up; what has
        been collected for evaluation shows it, a batch's own normalisation takes it out.
        """
        for given, table in zip(self.given, self.tables, strict=True):
            given.vectors = table(batch.ids)
        logits: Tensor = self.model(batch.ids)
        self.forget()
        return logits


def _make_table(
    kind: Kind, cardinalities: list[int], width: int, plan: SizePlan | None
) -> VarEmbedding | PaddedFields:
    """A table of all fields; the same first numbers whatever the kind. Without plan: zeros."""
    is_jagged = plan is not None and kind.tables in ("jagged", "masked")
    dims = plan if is_jagged else None
    table = VarEmbedding.for_fields(cardinalities, width, dims=dims)
    with torch.no_grad():
        table.weight.mul_(0.0 if plan is None else 0.01)
    if kind.tables in ("jagged", "equal"):
        return table
    starts = torch.tensor([0, *cardinalities[:-1]]).cumsum(0)
    mask = torch.arange(width) < table.dims[:, None] if is_jagged else None  # [N, D]
    return PaddedFields(table.to_dense(), starts, mask, kind.is_sparse)


def make_plan(cardinalities: Sequence[int], width: int, share: float) -> SizePlan:
    """Widths by frequency, of a share of the full numbers in all."""
    counts = {}
    for field, rows in enumerate(cardinalities):
        rank = np.arange(rows) * pow(multiplier_of(rows), -1, rows) % rows
        frequency = (rank + 1.0) ** -ZIPF
        counts[str(field)] = frequency / frequency.sum()
    budget = round(share * width * sum(cardinalities))
    return SizePlan.by_frequency(counts, width, budget, power=0.5)


def make_clicks(cardinalities: Sequence[int], batch: int, count: int) -> list[Clicks]:
    """Fresh batches, the same ones for the same arguments."""
    cpu, generator = torch.device("cpu"), torch.Generator().manual_seed(0)
    columns = [
        make_batches(rows, ZIPF, batch, 1, count, cpu, seed=field)
        for field, rows in enumerate(cardinalities)
    ]
    return [
        Clicks(
            torch.stack([column[number].indices for column in columns], dim=1),
            torch.randint(0, 2, (batch,), generator=generator).float(),
        )
        for number in range(count)
    ]


def check_same(width: int, steps: int = 3) -> None:
    """Trains small models of each pair that has the same mathematics, in double precision: Adam
    makes whole steps of a gradient that is nothing but rounding.

    Raises:
        RuntimeError: two of them differ by more than rounding.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        _check_pairs(width, steps)
    finally:
        torch.set_default_dtype(before)


def _check_pairs(width: int, steps: int) -> None:
    cardinalities = [min(rows, 50) for rows in CARDINALITIES]
    plan = make_plan(cardinalities, width, 1 / 3)
    *batches, last = make_clicks(cardinalities, 64, steps + 1)
    # Where Adam's eps stands differs between optimizers; so small, it does not matter.
    options: dict[str, Any] = {"eps": 1e-20}
    for name, kind in KINDS.items():
        if kind.twin is None:
            continue
        pair = [Contender(k, plan, width, options, 0.0) for k in (kind, KINDS[kind.twin])]
        for batch in batches:
            for contender in pair:
                timing.run_once(contender.runner(), batch)
        outputs = [contender.logits(last) for contender in pair]
        if not torch.allclose(*outputs, rtol=1e-4, atol=3e-5):
            worst = float((outputs[0] - outputs[1]).abs().max())
            raise RuntimeError(f"{name} and {kind.twin} differ by {worst}")


def measure(
    names: Sequence[str], plan: SizePlan, width: int, batch: int, rounds: int, warmup: int
) -> list[dict[str, Any]]:
    """One record per contender: its time, by part, and that of the one it stands beside."""
    contenders = {name: Contender(KINDS[name], plan, width, {}, 0.5) for name in names}
    cardinalities = [len(plan[name]) for name in plan]
    batches = make_clicks(cardinalities, batch, rounds + warmup)
    times = dict(
        zip(
            names,
            timing.measure([c.runner() for c in contenders.values()], batches, warmup),
            strict=True,
        )
    )
    records = []
    for name, contender in contenders.items():
        own, beside = times[name], KINDS[name].beside
        parts = np.median(own, axis=0) / 1e6
        step = timing.summarize(own)
        record = {
            "name": name,
            "batch": batch,
            "examples_per_second": batch / step.median * 1e3,
            "step_ms": dataclasses.asdict(step),
            "parts_ms": {
                part: float(ms)
                for (part, _), ms in zip(contender.runner().stages, parts, strict=True)
            },
            "tables_bytes": timing.tensor_bytes(contender.kept()),
        }
        if beside in times:
            ratio = timing.speedup(times[beside], own)
            record |= {"beside": beside, "time_over": dataclasses.asdict(ratio)}
        records.append(record)
    return records


def format_records(records: Sequence[dict[str, Any]]) -> str:
    """One line per contender."""
    head = f"{'':34}{'examples/s':>11}{'step ms':>9}{'[20 %, 80 %]':>19}{'time over':>11}"
    lines = [f"{head}{'forward':>9}{'rest':>8}{'backward+opt':>14}{'tables MB':>11}"]
    for record in records:
        step, parts = record["step_ms"], list(record["parts_ms"].values())
        over = record.get("time_over", {}).get("median")
        spread = f"[{step['low']:.1f}, {step['high']:.1f}]"
        lines.append(
            f"{record['name']:34}{record['examples_per_second']:>11,.0f}{step['median']:>9.1f}"
            f"{spread:>19}{'' if over is None else f'{over:.2f} x':>11}{parts[0]:>9.1f}"
            f"{parts[1]:>8.1f}{parts[2]:>14.1f}{record['tables_bytes'] / 1e6:>11.1f}"
        )
    return "\n".join(lines)


LEGEND = """\
time over: of varemb's jagged table with the optimizer of that name, median over the rounds.
forward, backward+opt: of the tables; rest: all else, among it the MLP's Adam. Medians of parts.
* other mathematics than the lines around it: see above."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_model_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[2048, 16_384])
    parser.add_argument("--width", type=int, default=16, help="D")
    parser.add_argument("--share", type=float, default=1 / 3, help="mean of the widths over D")
    parser.add_argument("--most-rows", type=int, default=400_000, help="of a field")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", metavar="FILE.json", help="also write the results here")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    timing.keep_freed_memory()
    check_same(options.width)
    cardinalities = [min(rows, options.most_rows) for rows in CARDINALITIES]
    plan = make_plan(cardinalities, options.width, options.share)
    environment = describe_environment()
    print(environment)
    print(f"{plan.num_rows:,} rows in {len(plan)} fields, {plan.mean_dim:.2f} of {options.width}")
    records = []
    for batch in options.batch:
        found = measure(options.only, plan, options.width, batch, options.rounds, options.warmup)
        print(f"\nbatch {batch:,}\n{format_records(found)}", flush=True)
        records += found
    print(LEGEND)
    if options.out:
        save_json(options.out, {"environment": environment, "steps": records})
    return 0


if __name__ == "__main__":
    sys.exit(main())
