"""`python -m benchmarks.supernet_step`: a step of AutoDim's supernet beside a step of FDE.

Wide&Deep over the fields of MovieLens 1M. A step is forward, backward and Adam on one batch; all
contenders get the same fresh batch in every round, in turns. The supernet is also timed as it is
usually written: for each candidate a lookup, a matrix product and a batch normalisation. That one
has the same numbers and must give the same output before anything is timed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from varemb import VarEmbedding
from varemb.data import ClickData
from varemb.models import WideDeep
from varemb.search.supernet import Supernet
from varemb.search.training import make_adam, train_step

# Rows of movieId, year, genres, userId, gender, age, occupation, zip.
CARDINALITIES = (3416, 81, 301, 6040, 2, 7, 21, 3439)
CANDIDATES = (2, 4, 8, 16)
STD = 0.01  # of the first numbers
EPS = 1e-5


class SeparateSupernet(nn.Module):
    """The numbers of a supernet (AD-2), used as N lookups, products and normalisations.

    Args:
        supernet: whose table, matrices and p are used.
        candidates: its dims. [N]
    """

    def __init__(self, supernet: Supernet, candidates: tuple[int, ...]) -> None:
        super().__init__()
        self.table, self.weight, self.p = supernet.table, supernet.weight, supernet.p
        self.scale = supernet.scale
        self.candidates = candidates

    def forward(self, ids: Tensor) -> Tensor:  # [B, F] -> [B, F, D]
        parts = []
        for n, dim in enumerate(self.candidates):
            e = self.table(ids, limit=dim)[:, :, :dim]  # [B, F, d_n]
            z = torch.einsum("bfd,fde->bfe", e, self.weight[:, :dim, n])  # [B, F, D]
            flat = z.flatten(1)  # [B, F * D], a channel per field and number
            norm = nn.functional.batch_norm(flat, None, None, training=True, eps=EPS)
            parts.append(self.p[:, n, None] * norm.view_as(z))
        return torch.stack(parts).sum(0) * self.scale


def make_rows(batch: int, rounds: int) -> ClickData:
    """Rows for all rounds; small ids are the popular ones."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(batch * rounds, len(CARDINALITIES), generator=generator) ** 3
    ids = (draws * torch.tensor(CARDINALITIES)).long()
    labels = torch.randint(0, 2, (batch * rounds,), generator=generator).float()
    return ClickData(ids, labels, tuple(map(str, range(len(CARDINALITIES)))), CARDINALITIES)


def make_step(table: nn.Module, data: ClickData) -> Callable[[Tensor], None]:
    """One step of Wide&Deep around a table on some rows."""
    model = WideDeep(CARDINALITIES, CANDIDATES[-1], table)
    adam = make_adam(model, 1e-3, 1e-3)

    def step(rows: Tensor) -> None:
        train_step(model, adam, data, rows)

    return step


def make_theta_step(supernet: Supernet, data: ClickData) -> Callable[[Tensor], None]:
    """The step on theta that AutoDim takes once per f steps: the gradient reaches p alone."""
    model = WideDeep(CARDINALITIES, CANDIDATES[-1], supernet)
    theta = torch.zeros(len(CARDINALITIES), len(CANDIDATES), requires_grad=True)

    def step(rows: Tensor) -> None:
        supernet.p = torch.softmax(theta, 1)
        loss = nn.functional.binary_cross_entropy_with_logits(
            model(data.ids[rows]), data.labels[rows]
        )
        torch.autograd.grad(loss, theta)

    return step


def measure_steps(batch: int, rounds: int, warmup: int) -> dict[str, np.ndarray]:
    """Seconds of each contender's step, by round. [rounds]"""
    torch.manual_seed(0)
    data = make_rows(batch, rounds + warmup)
    full = VarEmbedding.for_fields(CARDINALITIES, CANDIDATES[-1])
    nn.init.normal_(full.weight, std=STD)
    steps = {
        "FDE": make_step(full, data),
        "supernet": make_step(Supernet(CARDINALITIES, CANDIDATES, STD), data),
        "supernet, theta": make_theta_step(Supernet(CARDINALITIES, CANDIDATES, STD), data),
        "N lookups": make_step(
            SeparateSupernet(Supernet(CARDINALITIES, CANDIDATES, STD), CANDIDATES), data
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number, rows in enumerate(torch.arange(len(data)).split(batch)):
        for turn in range(len(names)):
            name = names[(turn + number) % len(names)]
            start = time.perf_counter()
            steps[name](rows)
            times[name].append(time.perf_counter() - start)
    return {name: np.array(values[warmup:]) for name, values in times.items()}


def check_same(batch: int) -> None:
    """Raises RuntimeError unless both ways of writing the supernet agree."""
    torch.manual_seed(0)
    supernet = Supernet(CARDINALITIES, CANDIDATES, STD)
    ids = make_rows(batch, 1).ids
    ours, theirs = supernet(ids), SeparateSupernet(supernet, CANDIDATES)(ids)
    worst = float((ours - theirs).detach().abs().max())
    if not worst < 1e-3:
        raise RuntimeError(f"supernet_step: the two supernets differ by {worst}")


def main() -> None:
    """Prints median, 20 and 80 percentiles, and the ratios to FDE of the same round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=2000, help="rows of a batch")
    parser.add_argument("--rounds", type=int, default=60, help="measured batches")
    parser.add_argument("--warmup", type=int, default=5, help="batches before them")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--f", type=int, default=10, help="steps per step on theta")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    check_same(options.batch)
    times = measure_steps(options.batch, options.rounds, options.warmup)
    times["search: supernet + theta / f"] = times["supernet"] + times["supernet, theta"] / options.f
    print(f"batch {options.batch}, {options.threads} threads, torch {torch.__version__}")
    print(f"{'step of':30}{'ms':>8}{'20 %':>8}{'80 %':>8}{'x FDE':>8}")
    for name, seconds in times.items():
        low, median, high = np.percentile(seconds, [20, 50, 80]) * 1e3
        ratio = np.median(seconds / times["FDE"])
        print(f"{name:30}{median:8.2f}{low:8.2f}{high:8.2f}{ratio:8.2f}")


if __name__ == "__main__":
    main()
