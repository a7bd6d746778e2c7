"""TD3 (Fujimoto et al., 2018) for dims: an actor and twin critics, shared by all rows of a side.

For states s [b, S] and dims a in 1..D, with norm(a) = 2 (a - 1) / (D - 1) - 1,

    a'   = clip(mu_target(s') + clip(N(0, 2), -5, 5), 1, D)
    y    = r + gamma min_i Qtarget_i(s', norm(a'))
    L_Q  = mean (Q_1(s, norm(a)) - y)^2 + mean (Q_2(s, norm(a)) - y)^2
    L_mu = - mean Q_1(s, norm(mu(s))),  every second update

There is no end of an episode. Defaults are those of CIESS's code.

DIFFERS: the noise of a' is drawn per transition, as in TD3; CIESS's code draws one for a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from varemb.search.actor_critic import Critics, make_mlp, move_towards
from varemb.search.settings import option

_SMOOTHING, _SMOOTHING_LIMIT = 2.0, 5.0  # in units of dims
_DELAY = 2  # critics' updates per update of the actor
_CHUNK = 4096  # rows valued at once: the hidden layers of millions would take gigabytes
_LAST_LAYER = 0.003  # range of the actor's last layer: the first action is the middle of 1..D


@dataclass(frozen=True)
class TD3Config:
    """Settings of an agent."""

    hidden: int = option(256, "width of the two hidden layers")
    actor_lr: float = option(1e-3, "learning rate of the actor")
    critic_lr: float = option(3e-3, "learning rate of the critics")
    clip: float = option(0.01, "largest norm of a gradient")
    gamma: float = option(0.99, "gamma, the discount")
    tau: float = option(0.005, "tau, the step of the targets towards the networks")
    batch_size: int = option(4096, "transitions of an update")
    capacity: int = option(100, "iterations whose transitions are kept")


class Transitions:
    """The last transitions (state, dim, reward, next state), in one block; the oldest go first.

    Args:
        capacity: rows that are kept.
        state_size: S.

    Example:
        >>> kept = Transitions(2, 1)
        >>> for i in range(3):
        ...     kept.add(torch.full((1, 1), i), torch.ones(1), torch.zeros(1), torch.zeros(1, 1))
        >>> sorted(kept.sample(50, torch.Generator().manual_seed(0))[0].unique().tolist())
        [1.0, 2.0]
    """

    def __init__(self, capacity: int, state_size: int) -> None:
        self.capacity, self.state_size = capacity, state_size
        self._rows = torch.empty(0, 2 * state_size + 2)  # grows as transitions come
        self._next = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, states: Tensor, dims: Tensor, rewards: Tensor, following: Tensor) -> None:
        """Keeps n transitions. states, following [n, S], dims, rewards [n]"""
        rows = torch.cat([states, dims[:, None], rewards[:, None], following], 1).float()
        rows = rows[-self.capacity :]
        free = self.capacity - len(self._rows)
        self._rows = torch.cat([self._rows, rows[:free]])
        rows = rows[free:]
        places = (self._next + torch.arange(len(rows))) % self.capacity
        self._rows[places] = rows
        self._next = (self._next + len(rows)) % self.capacity

    def sample(self, size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """States [b, S], dims [b, 1], rewards [b, 1], next states [b, S], with repeats."""
        chosen = torch.randint(len(self._rows), (size,), generator=generator)
        return self._rows[chosen].split([self.state_size, 1, 1, self.state_size], 1)

    def clear(self) -> None:
        """Forgets all transitions."""
        self._rows, self._next = self._rows[:0].clone(), 0

    def state(self) -> dict[str, Any]:
        """All transitions, for a checkpoint."""
        return {"rows": self._rows, "next": self._next}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave."""
        self._rows, self._next = state["rows"], state["next"]


class TD3:
    """An agent that gives every row of a side a dim.

    Args:
        state_size: S.
        width: D.
        rows: transitions of an iteration, at most.
        config: its settings.
        generator: all randomness; the caller saves its state.

    Example:
        >>> agent = TD3(3, 128, 10, TD3Config(hidden=8), torch.Generator().manual_seed(0))
        >>> agent.act(torch.zeros(2, 3)).round()  # the middle of 1..128
        tensor([64., 64.])
    """

    def __init__(
        self, state_size: int, width: int, rows: int, config: TD3Config, generator: torch.Generator
    ) -> None:
        self.width, self.config, self.generator = width, config, generator
        self.actor = make_mlp(state_size, config.hidden, 1, generator)
        last = self.actor[-1]
        assert isinstance(last, nn.Linear)
        nn.init.uniform_(last.weight, -_LAST_LAYER, _LAST_LAYER, generator=generator)
        self.critics = Critics(state_size, 1, config.hidden, generator)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self._actor_adam = torch.optim.Adam(self.actor.parameters(), config.actor_lr)
        self._critic_adam = torch.optim.Adam(self.critics.parameters(), config.critic_lr)
        self.transitions = Transitions(config.capacity * rows, state_size)
        self.updates = 0

    def _dims(self, actor: nn.Module, states: Tensor) -> Tensor:  # [b, S] -> [b, 1]
        middle, half = (self.width + 1) / 2, (self.width - 1) / 2
        dims: Tensor = middle + half * torch.tanh(actor(states))
        return dims

    def _norm(self, dims: Tensor) -> Tensor:
        return 2 * (dims - 1) / max(self.width - 1, 1) - 1

    @torch.no_grad()
    def act(self, states: Tensor) -> Tensor:
        """mu(s), dims that are not whole yet. [n, S] -> [n]"""
        return self._dims(self.actor, states)[:, 0]

    @torch.no_grad()
    def values(self, states: Tensor, dims: Tensor) -> Tensor:
        """Q_1 of several dims for each row. [n, S], [n, k] -> [n, k]"""
        return torch.cat([
            self._values(*chunk)
            for chunk in zip(states.split(_CHUNK), dims.split(_CHUNK), strict=True)
        ])  # fmt: skip

    def _values(self, states: Tensor, dims: Tensor) -> Tensor:
        repeated = states.repeat_interleave(dims.shape[1], 0)
        both = torch.cat([repeated, self._norm(dims.reshape(-1, 1).float())], 1)
        values: Tensor = self.critics.first(both)  # the second is not asked
        return values.view(dims.shape)

    def update(self) -> float:
        """One step of the critics and their targets, and every second time of the actor and its.

        Returns:
            The critics' loss.
        """
        config = self.config
        states, dims, rewards, following = self.transitions.sample(
            config.batch_size, self.generator
        )
        with torch.no_grad():
            noise = _SMOOTHING * torch.randn(dims.shape, generator=self.generator)
            noise = noise.clamp(-_SMOOTHING_LIMIT, _SMOOTHING_LIMIT)
            after = (self._dims(self.target_actor, following) + noise).clamp(1, self.width)
            lower = torch.minimum(*self.targets(following, self._norm(after)))
            wanted = rewards + config.gamma * lower  # y
        first, second = self.critics(states, self._norm(dims))
        loss = (first - wanted).square().mean() + (second - wanted).square().mean()
        self._descend(loss, self.critics, self._critic_adam)
        self.updates += 1
        if self.updates % _DELAY == 0:
            both = torch.cat([states, self._norm(self._dims(self.actor, states))], 1)
            self._descend(-self.critics.first(both).mean(), self.actor, self._actor_adam)
            move_towards(self.target_actor, self.actor, config.tau)
        move_towards(self.targets, self.critics, config.tau)
        return float(loss.detach())

    def _descend(self, loss: Tensor, network: nn.Module, adam: torch.optim.Adam) -> None:
        parameters = list(network.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(parameters, self.config.clip)
        adam.step()

    def state(self) -> dict[str, Any]:
        """Networks, optimizers and transitions, for a checkpoint; not the generator."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {**parts, "transitions": self.transitions.state(), "updates": self.updates}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.transitions.load_state(state["transitions"])
        self.updates = state["updates"]

    def _parts(self) -> dict[str, Any]:
        return {
            "actor": self.actor,
            "critics": self.critics,
            "target_actor": self.target_actor,
            "targets": self.targets,
            "actor_adam": self._actor_adam,
            "critic_adam": self._critic_adam,
        }
