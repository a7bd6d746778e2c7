"""CIESS: an agent gives every user and item a dim, for ranking under a sparsity.

Y. Qu et al., *Continuous Input Embedding Size Search For Recommender Systems*, SIGIR 2023 (arXiv
2304.03501). Nodes n are users and items; d_n is a row's dim, D the widest.

    eval(u) = mean over k in {5, 10, 20} of (Recall@k + NDCG@k) / 2, of validation pairs    (Eq. 8)
    eval(v) = mean eval(u) over the users who have item v in training                       (Eq. 9)
    q_n = min(eval(n) / eval(n) of a fully trained full-size recommender, 1)                (Eq. 7)
    s_n = (frequency scaled per side, (d_n - 1) / (D - 1), q_n)                             (Eq. 6)
    r_n = q_n - lambda (d_n / D)^2                                                         (Eq. 10)
    d_n = argmax of Q(s_n, .) over a random walk from mu(s_n) + noise            (Eq. 11, 13 and 14)

Every iteration trains a new recommender with the proposed dims and updates the agents (TD3, one per
side). The best plans within each sparsity (Eq. 15) are then trained fully, and the one with the
best mean q on the validation pairs (Eq. 16) is trained on both and tested.

DIFFERS: no mask over a full table: each recommender has a packed table of the proposed dims.
DIFFERS: nodes whose full-size quality is 0 (no validation hits, or an item that nobody bought) give
    the agents no transitions and count in no mean; their dims are chosen like all others.
DIFFERS: a plan within a sparsity is widened in proportion until it takes all the numbers that the
    sparsity allows (`is_full`). The best plans above it take turns with those within: a short
    search meets few within a high sparsity. The third is what the actors choose at the end without
    noise and walk, which make one row narrower than another for no reason; the fourth its mean of
    either side for all rows of it, since an actor also answers to q, which for one row is mostly
    the luck of some validation pairs. Plans that are cut are named.
DIFFERS: of NCF both tables have the dims and count; the published code leaves one of them full.
DIFFERS: the released code shifts quality to [-1, 1], rewards raw quality, and adds one noise for
    all rows after the critic's choice. `noise_scope="shared"` does the last of these, with a noise
    for users and one for items: what a side's width is worth against the other's is explored too.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varemb.search.dim_agents import CIESSConfig, Side, check_ciess
from varemb.search.pairwise import (
    PairData,
    PairwiseConfig,
    Prepare,
    Quality,
    Recommender,
    Trainer,
    packed_table,
    start_warm,
    timed,
)
from varemb.search.progress import run_steps
from varemb.search.retraining import (
    RankingResult,
    measure_levels,
    open_progress,
    plan_candidate,
)
from varemb.search.rounds import Unfinished, seconds_since, train_while_better
from varemb.search.sparsity import Dims, TopPlans, allowed_numbers, fit_dims

_SIDES = ("user", "item")
_LEAST_PEAK = 1e-5  # quality of the full size below which a node says nothing


class CIESS:
    """CIESS (Y. Qu et al., SIGIR 2023): an agent gives every user and item a dim.

    Args:
        config: its settings.

    Example:
        >>> CIESS(CIESSConfig(episodes=6, iterations=5)).config.cost
        0.4
    """

    def __init__(self, config: CIESSConfig) -> None:
        self.config = config

    def fit(
        self,
        data: PairData,
        prepare: Prepare,
        training: PairwiseConfig,
        *,
        progress: bool = True,
        checkpoint_dir: Path | None = None,
        resume: bool = False,
    ) -> RankingResult:
        """Plans for every sparsity from one search, trained and tested.

        Args:
            data: pairs to learn from, to choose by and to test on.
            prepare: makes recommenders over some pairs; called twice, for graphs of the training
                pairs and of these with the validation pairs.
            training: how recommenders are trained.
            progress: show a bar over the trainings.
            checkpoint_dir: folder of ciess.safetensors, written after every training; a full one
                has a file of its own there, written after every round, until it is done.
            resume: continue from it; the result is the one of an uninterrupted run.

        Raises:
            ValueError: settings that do not fit, a sparsity that the rows cannot meet, or a damaged
                or foreign checkpoint.
            FloatingPointError: the loss is not finite.

        Deterministic: yes, from config.seed, with the times in history and seconds aside.
        """
        config = self.config
        check_ciess(config)
        search = _Search(config, data, prepare, training)
        kept, state = open_progress(
            "ciess", config, search.trainer, data, checkpoint_dir, resume=resume
        )
        if state is not None:
            search.load_state(state)
        unfinished = kept.unfinished("peaks")
        if search.peaks is None:
            search.find_peaks(unfinished, progress=progress)
            kept.file.save(search.state())
        unfinished.remove()  # also what a run left that was stopped between these two
        steps = config.episodes * config.iterations
        run_steps("ciess", search, steps, kept.file.save, _show, progress=progress)
        for side in search.sides:  # nothing is learnt from them any more
            side.agent.transitions.clear()
        kept.before = search.state()
        candidates = {
            sparsity: [
                plan_candidate(dims, data.num_users, config.width, is_cut=is_cut)
                for dims, is_cut in search.plans(sparsity)
            ]
            for sparsity in config.sparsities
        }
        result = measure_levels(
            candidates, data, prepare, search.trainer, training, config.width, config.seed,
            lambda quality: float(search.ratios(quality).nanmean()), kept, progress=progress,
        )  # fmt: skip
        return replace(result, history=search.history)


class _Search:
    """A search between two trainings."""

    def __init__(
        self, config: CIESSConfig, data: PairData, prepare: Prepare, training: PairwiseConfig
    ) -> None:
        self.config, self.generator = config, torch.Generator().manual_seed(config.seed)
        rows = data.num_users + data.num_items
        self.top = TopPlans(
            {c: allowed_numbers(rows, config.width, c, config.unit) for c in config.sparsities},
            config.plans,
        )
        self.trainer = Trainer.of_search(prepare, data, training, config.seed)
        self.sides = [
            Side(config, part, self.trainer.counts[part], self.generator)
            for part in (slice(0, data.num_users), slice(data.num_users, rows))
        ]
        self.peaks: Tensor | None = None  # eval of the full size; NaN where it says nothing. [N]
        self.history: list[dict[str, Any]] = []
        self.earlier: Recommender | None = None

    def find_peaks(self, kept: Unfinished | None = None, *, progress: bool = False) -> None:
        """Quality of a fully trained full-size recommender: the denominator of Eq. 7."""
        make = packed_table(np.full(len(self.trainer.counts), self.config.width), self.config.width)
        _, quality, _ = train_while_better(
            self.trainer, make, self.generator, kept, progress=progress
        )
        peaks = quality.nodes()
        self.peaks = torch.where(peaks > _LEAST_PEAK, peaks, torch.nan)

    def ratios(self, quality: Quality) -> Tensor:  # [N]
        """Eq. 7; NaN where the full size says nothing."""
        assert self.peaks is not None
        return (quality.nodes() / self.peaks).clamp(max=1)

    def advance(self) -> dict[str, Any]:
        """One iteration: dims, a training, rewards, updates; returns its record."""
        config, seconds = self.config, self.trainer.seconds
        before, start = dict(seconds), time.perf_counter()
        episode, iteration = divmod(len(self.history), config.iterations)
        with timed(seconds, "rl"):
            for side in self.sides:
                if iteration == 0:
                    side.restart()
                side.choose()
        dims = torch.cat([side.dims for side in self.sides])
        quality = self._train(dims)
        with timed(seconds, "rl"):
            ratios = self.ratios(quality)
            rewards = ratios - config.cost * (dims / config.width).square()  # Eq. 10
            losses = [side.learn(ratios[side.part], rewards[side.part]) for side in self.sides]
        reward, mean_q = float(rewards.nanmean()), float(ratios.nanmean())
        self.top.offer(dims.numpy(), mean_q, reward)
        means = {f"mean_dim_{name}": float(side.dims.double().mean())
                 for name, side in zip(_SIDES, self.sides, strict=True)}  # fmt: skip
        return {
            "phase": "search", "episode": episode + 1, "iteration": iteration + 1,
            "reward": reward, "quality": mean_q, "numbers": int(dims.sum()),
            "sparsity": 1 - float(dims.double().mean()) / config.width, **means,
            "valid": quality.means, "critic_loss": sum(losses) / len(losses),
            "seconds": seconds_since(self.trainer, before),
            "total_seconds": time.perf_counter() - start,
        }  # fmt: skip

    def _train(self, dims: Tensor) -> Quality:
        trainer = self.trainer
        fitting = trainer.start(packed_table(dims.numpy(), self.config.width), self.generator)
        if self.earlier is not None:
            start_warm(fitting.model, self.earlier)
        trainer.advance(fitting, trainer.steps_of(trainer.config.epochs), self.generator)
        if self.config.is_warm:
            self.earlier = fitting.model
        return trainer.rank(fitting.model)

    def plans(self, sparsity: float) -> list[tuple[Dims, bool]]:
        """The plans that are trained fully for a sparsity, each with whether it is cut to it."""
        config, allowed = self.config, self.top.allowed[sparsity]
        plans = self.top.plans(sparsity, config.width, fill=config.is_full)
        of_rows = [side.act() for side in self.sides]
        of_sides = [torch.full_like(dims, round(float(dims.double().mean()))) for dims in of_rows]
        last = []
        for dims in (torch.cat(of_rows).numpy(), torch.cat(of_sides).numpy()):
            is_cut = int(dims.sum()) > allowed
            is_fitted = is_cut or config.is_full
            last.append((fit_dims(dims, config.width, allowed) if is_fitted else dims, is_cut))
        return [*plans[:2], *last, *plans[2:]][: config.plans]

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "peaks": self.peaks,
            "history": self.history,
            "top": self.top.state(),
            "generator": self.generator.get_state(),
            "sampler": self.trainer.sampler.state(),
            "seconds": dict(self.trainer.seconds),
            "sides": [side.state() for side in self.sides],
            "earlier": None if self.earlier is None else self.earlier.state_dict(),
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over what `state` gave."""
        self.peaks, self.history = state["peaks"], state["history"]
        self.top.load_state(state["top"])
        self.generator.set_state(state["generator"])
        self.trainer.sampler.load_state(state["sampler"])
        self.trainer.seconds.update(state["seconds"])
        for side, saved in zip(self.sides, state["sides"], strict=True):
            side.load_state(saved)
        if state["earlier"] is not None:
            dims = torch.cat([side.dims for side in self.sides])
            make = packed_table(dims.numpy(), self.config.width)
            self.earlier = self.trainer.start(make, torch.Generator()).model
            self.earlier.load_state_dict(state["earlier"])


def _show(record: dict[str, Any]) -> dict[str, str]:
    return {
        "reward": f"{record['reward']:.3f}",
        "sparsity": f"{record['sparsity']:.3f}",
        "R@20": f"{record['valid']['recall@20']:.4f}",
    }
