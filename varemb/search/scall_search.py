"""SCALL's search on the last segment: trials of proposed sizes, and the agent that learns.

A trial trains a fresh LightGCN for one round and is rewarded by its ranking of the test part, which
is past by then:

    r = 10 (raw - low) / (high - low),  raw = fitness(trial) / fitness of the real run's first round
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varemb.budget import Ints
from varemb.nn import VarEmbedding
from varemb.search.actor_critic import SAC
from varemb.search.budget_table import make_table
from varemb.search.scall_config import SCALLConfig
from varemb.search.scall_state import Situation, state_size
from varemb.search.segment_training import SegmentTask, run_trial

_SETTLED = 4  # trials in which the mean share must not have moved
_MOVED = 0.01
_FIRST_REWARD = 0.5
_LOW, _HIGH = 0.8, 1.2  # of what uniform sizes reach: worth 0 and 10


class SizeSearch:
    """The agent over all segments, and the search in hand.

    Args:
        config: settings.
        generator: all randomness; the caller saves its state.

    Attributes:
        agent: None before the first search.
        last_reward: the last trial's fitness over the reference's.
        rewards: of the trials of the search in hand.
        seconds: spent in searches.
    """

    def __init__(self, config: SCALLConfig, generator: torch.Generator) -> None:
        self.config, self.generator = config, generator
        self.agent: SAC | None = None
        self.last_reward = _FIRST_REWARD
        self.seconds = 0.0
        self._open: dict[str, Any] | None = None

    @property
    def rewards(self) -> list[float]:
        return [] if self._open is None else self._open["rewards"]

    def close(self) -> None:
        """Ends the search in hand; the next `run` begins another."""
        self._open = None

    def choose(self, situation: Situation, table: VarEmbedding) -> Tensor | None:
        """The agent's action without exploration, for the rows of a new segment. [3]"""
        if self.agent is None:
            return None
        return self.agent.best(situation.state(table, self.last_reward))

    def run(
        self,
        task: SegmentTask,
        situation: Situation,
        table: VarEmbedding,
        reference: float,
        keep: Callable[[], None],
    ) -> None:
        """Trials until the agent's mean share settles; goes on where a loaded search stood.

        Nothing happens where the test part cannot tell sizes apart: the reference or uniform sizes
        find nothing.

        Args:
            task: the last segment.
            situation: its rows and their budget.
            table: the one that serves; it is only read.
            reference: fitness of the real run's first round.
            keep: called after every trial.
        """
        if not reference > 0:
            return
        began = time.perf_counter()
        if self._open is None:
            low, high = self._calibrate(task, situation, reference)
            state = situation.state(table, self.last_reward)
            self._open = {"low": low, "high": high, "state": state, "betas": [], "rewards": []}
        if not self._open["low"] < self._open["high"]:
            return
        if self.agent is None:
            self.agent = SAC(state_size(self.config), 3, self.config, self.generator)
        while not _is_settled(self._open["betas"], self.config):
            self._try_sizes(task, situation, reference, self.agent, self._open)
            self.seconds += time.perf_counter() - began
            began = time.perf_counter()
            keep()

    def _try_sizes(
        self,
        task: SegmentTask,
        situation: Situation,
        reference: float,
        agent: SAC,
        search: dict[str, Any],
    ) -> None:
        action = agent.explore(search["state"])
        raw, trial = self._run_trial(task, situation, situation.dims_for(action), reference)
        self.last_reward = raw
        reward = 10 * (raw - search["low"]) / (search["high"] - search["low"])
        following = situation.state(trial, raw)
        agent.replay.add(search["state"], action, reward, following)
        for _ in range(self.config.updates):
            agent.update()
        search["state"] = following
        search["betas"].append(float(agent.best(following)[0]))
        search["rewards"].append(reward)

    def _run_trial(
        self, task: SegmentTask, situation: Situation, dims: Ints, reference: float
    ) -> tuple[float, VarEmbedding]:
        """Fitness of a fresh model over the reference's, and its table."""
        config = self.config
        table = make_table(dims, config.width, situation.budget, config.init_std, self.generator)
        return run_trial(task, table, self.generator) / reference, table

    def _calibrate(
        self, task: SegmentTask, situation: Situation, reference: float
    ) -> tuple[float, float]:
        """Raw rewards that are worth 0 and 10."""
        if self.config.high > 0:
            return self.config.low, self.config.high
        uniform = situation.uniform_dims()
        raw = [
            self._run_trial(task, situation, uniform, reference)[0]
            for _ in range(self.config.calibrations)
        ]
        middle = float(np.median(raw))
        return _LOW * middle, _HIGH * middle

    def state(self) -> dict[str, Any]:
        """Everything that `load_state` continues from; not the generator."""
        return {
            "agent": None if self.agent is None else self.agent.state(),
            "open": self._open,
            "last_reward": self.last_reward,
            "seconds": self.seconds,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state. Draws from the generator."""
        if state["agent"] is not None:
            self.agent = SAC(state_size(self.config), 3, self.config, self.generator)
            self.agent.load_state(state["agent"])
        self._open, self.last_reward = state["open"], state["last_reward"]
        self.seconds = state["seconds"]


def _is_settled(betas: list[float], config: SCALLConfig) -> bool:
    """Whether the mean share of users has come to rest, or trials are used up."""
    if len(betas) >= config.max_trials:
        return True
    moves = np.abs(np.diff(betas[-_SETTLED - 1 :]))
    return len(betas) >= config.min_trials and bool((moves <= _MOVED).all())
