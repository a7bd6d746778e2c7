"""ESAPN for rankings: policies let the rows of users and items grow, one size at a time.

The method of `search/esapn.py` (H. Liu et al., SIGIR 2020) on pairs that are all there from the
start, as CIESS compares with it. Row n has one size of D = {d_1 < ... < d_K}, at first d_1; its
loss is L_n = 1 - eval(n) on the validation pairs (Eq. 8 and 9 of CIESS). After a first training a
recommender goes through stages (Algorithm 1):

    2-6   a ~ policy(s_n), s = (frequency, size), one policy per side; a copy grown by a is trained;
          R_n = mean of the row's last T losses - L_n of the copy (Eq. 2); the copy is discarded;
          ascent on R log policy(a|s) (Eq. 6 and 7)
    7-10  a = argmax policy(s_n): chosen rows take the next size for good, the recommender is
          trained, and its L_n are kept

The sizes of the last stage are the plan, which is trained from new weights and tested.

DIFFERS: there is no stream. A stage is a few passes over the training pairs, all rows decide once
    in it, and a row's frequency is the number of its training pairs.
DIFFERS: the loss comes from pairs that are never learnt, and after a training with the sizes that
    were sampled: a row that has just grown ranks as it did before, and on learnt pairs wider rows
    are always the better ones.
DIFFERS: R less its mean over the rows of a side that decide, since all rows gain by learning.
DIFFERS: rows are padded with zeros, as those of the methods beside it, and get new random numbers
    where they grow. Matrices between sizes would be numbers that no sparsity counts. Adam's moments
    start anew in every training; the learning rate falls on.
DIFFERS: policies learn ten times as fast as in the paper: a stream gives them a step for each of
    tens of thousands of batches, a stage as many as its rows fill.
DIFFERS: the last layer of a policy starts at 0, so that no row grows before a reward spoke for it:
    what an untrained policy chose would stay, and a row decides `stages` times, not at every event.
DIFFERS: rows that cannot grow have no choice and teach a policy nothing, but stand in its batches,
    whose statistics would otherwise change with those who decide. Rows without a quality (no
    validation pairs; an item that nobody bought) decide, and teach nothing.

ESAPN has no budget: there is one plan, at the sparsity that results, as a level that asked for a
sparsity of 0. Rows only grow, so that `stages` decides much of it: on ml-1m (LightGCN, trainings of
2 epochs) it is .80 after 4 stages and .36 after 10. With `is_fitted` there is a level per sparsity,
with the plan's dims in proportion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varemb.search.pairwise import (
    MAX_WIDTH,
    Fitting,
    PairData,
    PairwiseConfig,
    Prepare,
    Quality,
    Trainer,
    packed_table,
    start_warm,
    timed,
)
from varemb.search.progress import run_steps
from varemb.search.retraining import (
    Candidate,
    RankingResult,
    measure_levels,
    open_progress,
    plan_candidate,
)
from varemb.search.settings import check_candidates, check_positive, check_rates, option
from varemb.search.sparsity import Dims, allowed_numbers, check_distinct, fit_dims
from varemb.search.stream_model import Policy
from varemb.search.training import seeded_from

_SIDES = ("user", "item")


@dataclass(frozen=True)
class RankingESAPNConfig:
    """Settings of the search; the symbols are ESAPN's."""

    sizes: tuple[int, ...] = option((2, 4, 8, 16, 64, 128), "D: dims that a row may have")
    stages: int = option(10, "times that all rows decide; each takes two trainings")
    past_losses: int = option(5, "T: losses of a row that the reward compares with")
    hidden: int = option(512, "outputs of the policies' hidden layer")
    policy_lr: float = option(0.001, "alpha_P: learning rate of the policies")
    policy_batch: int = option(500, "rows of a step of a policy")
    most_frequent: int = option(1000, "frequencies above it are the same to the policies")
    is_fitted: bool = option(False, "fit the plan to each sparsity; else it is measured as it is")
    sparsities: tuple[float, ...] = option((0.8, 0.9, 0.95), "c: of fitted plans, shares left out")
    seed: int = option(0, "of all randomness")

    @property
    def width(self) -> int:
        """D, the widest row."""
        return self.sizes[-1]


class RankingESAPN:
    """ESAPN (H. Liu et al., SIGIR 2020) for rankings: policies let rows of users and items grow.

    Args:
        config: its settings.

    Example:
        >>> RankingESAPN(RankingESAPNConfig(sizes=(2, 8, 32))).config.width
        32
    """

    def __init__(self, config: RankingESAPNConfig) -> None:
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
        """The plan that the rows grew to, trained and tested; arguments and errors as CIESS.fit.

        A checkpoint is written after every stage and training. A training of the search takes
        `training.epochs`.

        Returns:
            One level whose sparsity is 0, for none was asked; `sparsity_reached` says what
            resulted. With `is_fitted` a level per sparsity. History has a record per stage, the
            first training being stage 0.

        Deterministic: yes, from config.seed, with the times in seconds aside.
        """
        config, rows = self.config, data.num_users + data.num_items
        check_ranking_esapn(config)
        allowed = {}
        if config.is_fitted:
            allowed = {c: allowed_numbers(rows, config.width, c) for c in config.sparsities}
        search = _Search(config, data, prepare, training)
        kept, state = open_progress(
            "esapn", config, search.trainer, data, checkpoint_dir, resume=resume
        )
        if state is not None:
            search.load_state(state)
        steps = 1 + config.stages
        run_steps("esapn", search, steps, kept.file.save, _show, progress=progress)
        kept.before = search.state()
        dims: Dims = search.dims[search.sizes].numpy()
        trainer, history = search.trainer, search.history
        del search  # and with it the last recommender
        result = measure_levels(
            _candidates(dims, allowed, data.num_users, config.width),
            data, prepare, trainer, training, config.width, config.seed,
            lambda quality: quality.mean, kept, progress=progress,
        )  # fmt: skip
        return replace(result, history=history)


def _candidates(
    dims: Dims, allowed: Mapping[float, int], num_users: int, width: int
) -> dict[float, list[Candidate]]:
    """The plan as it is, under 0; or fitted to the numbers that each sparsity allows."""
    if not allowed:
        return {0.0: [plan_candidate(dims, num_users, width)]}
    is_above = {c: int(dims.sum()) > numbers for c, numbers in allowed.items()}
    return {
        c: [plan_candidate(fit_dims(dims, width, most), num_users, width, is_cut=is_above[c])]
        for c, most in allowed.items()
    }


class _Search:
    """A search between two stages."""

    def __init__(
        self,
        config: RankingESAPNConfig,
        data: PairData,
        prepare: Prepare,
        training: PairwiseConfig,
    ) -> None:
        rows = data.num_users + data.num_items
        self.config, self.generator = config, torch.Generator().manual_seed(config.seed)
        self.trainer = Trainer.of_search(prepare, data, training, config.seed)
        with seeded_from(self.generator):
            self.policies = nn.ModuleList(
                Policy(len(config.sizes), 2, config.hidden, config.most_frequent) for _ in _SIDES
            )
        for policy in self.policies:
            assert isinstance(policy, Policy)
            nn.init.zeros_(policy.out.weight)
            nn.init.zeros_(policy.out.bias)
        self.adam = torch.optim.Adam(self.policies.parameters(), config.policy_lr)
        self.dims = torch.tensor(config.sizes)
        self.sides = torch.arange(data.num_users), torch.arange(data.num_users, rows)
        self.sizes = torch.zeros(rows, dtype=torch.int64)  # places in `dims`. [N]
        self.losses = torch.zeros(0, rows)  # the last T of each row, NaN without. [T, N]
        self.fitting: Fitting | None = None
        self.history: list[dict[str, Any]] = []

    def advance(self) -> dict[str, Any]:
        """The first training or the next stage; returns its record."""
        before = self.sizes
        if self.fitting is not None:
            self._improve_policies()
            with timed(self.trainer.seconds, "rl"), torch.no_grad():
                self.sizes = self.sizes.clone()
                for number, side in enumerate(self.sides):
                    logits = self._logits(number, side)
                    self.sizes[side] += (logits[:, 1] > logits[:, 0]) & self._can_grow(side)
        self.fitting, quality = self._train(self.sizes)
        self.losses = torch.cat([self.losses, 1 - quality.nodes()[None]])
        self.losses = self.losses[-self.config.past_losses :]
        dims = self.dims[self.sizes]
        return {
            "phase": "growth",
            "epoch": len(self.history),
            "grown": [int((self.sizes > before)[side].sum()) for side in self.sides],
            "quality": quality.mean,
            "valid": quality.means,
            "numbers": int(dims.sum()),
            "sparsity": 1 - float(dims.double().mean()) / self.config.width,
            **{
                f"mean_dim_{name}": float(dims[side].double().mean())
                for name, side in zip(_SIDES, self.sides, strict=True)
            },
        }

    def _train(self, sizes: Tensor) -> tuple[Fitting, Quality]:
        """A recommender with these sizes, trained on from the one at hand, which stays."""
        trainer = self.trainer
        make = packed_table(self.dims[sizes].numpy(), self.config.width)
        fitting = trainer.start(make, self.generator)
        if self.fitting is not None:
            start_warm(fitting.model, self.fitting.model)
            fitting.steps = self.fitting.steps
        trainer.advance(fitting, trainer.steps_of(trainer.config.epochs), self.generator)
        return fitting, trainer.rank(fitting.model)

    def _can_grow(self, rows: Tensor) -> Tensor:  # [n] -> [n]
        return self.sizes[rows] < len(self.dims) - 1

    def _logits(self, number: int, rows: Tensor) -> Tensor:  # [n] -> [n, 2]
        """What a side's policy says of rows with the sizes at hand: stay or grow."""
        state = F.one_hot(self.sizes[rows], len(self.dims)).float()
        logits: Tensor = self.policies[number](self.trainer.counts[rows], state)
        return logits

    def _improve_policies(self) -> None:
        """Lines 2-6: samples actions, trains a copy with them, ascends on the rewards."""
        trial = self.sizes.clone()
        with timed(self.trainer.seconds, "rl"), torch.no_grad():
            for number, side in enumerate(self.sides):
                chance = torch.softmax(self._logits(number, side), 1)[:, 1]
                grows = torch.rand(len(side), generator=self.generator) < chance
                trial[side] += grows & self._can_grow(side)
        if not self._can_grow(torch.arange(len(trial))).any():
            return
        _, quality = self._train(trial)
        rewards = self.losses.mean(0) - (1 - quality.nodes())  # Eq. 2
        with timed(self.trainer.seconds, "rl"):
            for number, side in enumerate(self.sides):
                self._ascend(number, side, (trial > self.sizes)[side].long(), rewards[side])

    def _ascend(self, number: int, side: Tensor, grows: Tensor, rewards: Tensor) -> None:
        """REINFORCE on a side's policy (Eq. 6 and 7), once through its rows. [n] each"""
        teaches = self._can_grow(side) & ~rewards.isnan()
        gains = torch.where(teaches, rewards - rewards[teaches].mean(), 0.0)
        order = torch.randperm(len(side), generator=self.generator)
        for batch in order.split(self.config.policy_batch):
            # Cross-entropy is -log policy(a|s).
            surprise = F.cross_entropy(
                self._logits(number, side[batch]), grows[batch], reduction="none"
            )
            self.adam.zero_grad()
            (gains[batch] * surprise).sum().backward()
            self.adam.step()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: at the end of the search no recommender any more."""
        model: dict[str, Any] = {}
        if self.fitting is not None and len(self.history) <= self.config.stages:
            model = {"model": self.fitting.model.state_dict(), "steps": self.fitting.steps}
        return {
            **model,
            "sizes": self.sizes,
            "losses": self.losses,
            "policies": self.policies.state_dict(),
            "adam": self.adam.state_dict(),
            "generator": self.generator.get_state(),
            "sampler": self.trainer.sampler.state(),
            "history": self.history,
            "seconds": dict(self.trainer.seconds),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over what `state` gave."""
        self.sizes, self.losses, self.history = state["sizes"], state["losses"], state["history"]
        if "model" in state:
            make = packed_table(self.dims[self.sizes].numpy(), self.config.width)
            self.fitting = self.trainer.start(make, torch.Generator())
            self.fitting.model.load_state_dict(state["model"])
            self.fitting.steps = state["steps"]
        self.policies.load_state_dict(state["policies"])
        self.adam.load_state_dict(state["adam"])
        self.generator.set_state(state["generator"])
        self.trainer.sampler.load_state(state["sampler"])
        self.trainer.seconds.update(state["seconds"])


def _show(record: dict[str, Any]) -> dict[str, str]:
    return {"sparsity": f"{record['sparsity']:.3f}", "quality": f"{record['quality']:.4f}"}


def check_ranking_esapn(config: RankingESAPNConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_candidates("ESAPN", config.sizes, "sizes")
    check_positive(
        "ESAPN", config, "stages", "past_losses", "hidden", "policy_batch", "most_frequent"
    )
    check_rates("ESAPN", config)
    if config.width > MAX_WIDTH:
        raise ValueError(f"ESAPN: sizes must be at most {MAX_WIDTH}, got {config.width}")
    if config.is_fitted:
        check_distinct("ESAPN", config.sparsities)
