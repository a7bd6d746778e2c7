"""Agents that learn actions in (0, 1)^A from rewards, and the memory they learn from.

SAC is soft actor-critic (Haarnoja et al., 2018) with a fixed entropy weight and no end of an
episode. For a state s, mean m(s) and log-deviation log sd(s) are heads of one network,

    x ~ N(m(s), sd(s)),  a = 0.5 + 0.5 tanh(x)
    log pi(a|s) = sum_A [log N(x) - log(0.5 (1 - tanh(x)^2) + 1e-6)]
    y    = r + gamma (min_i Qtarget_i(s', a') - w log pi(a'|s')),  a' ~ pi(.|s')
    L_Q  = mean (Q_1(s, a) - y)^2 + mean (Q_2(s, a) - y)^2
    L_pi = mean (w log pi(a|s) - min_i Q_i(s, a)),  a ~ pi(.|s)

DIFFERS: the target critics start as copies of the critics; SCALL's code starts them at random.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from varemb.search.settings import option

_LOG_STD = (-20.0, 2.0)


@dataclass(frozen=True)
class SACConfig:
    """Settings of SAC (T. Haarnoja et al., ICML 2018); defaults are those of SCALL's code."""

    hidden: int = option(512, "width of the two hidden layers")
    actor_lr: float = option(2e-4, "learning rate of the actor")
    critic_lr: float = option(3e-4, "learning rate of the critics")
    weight_decay: float = option(1e-4, "L2 of all networks")
    clip: float = option(1.0, "largest norm of the actor's gradient")
    gamma: float = option(0.99, "gamma, the discount")
    tau: float = option(0.005, "tau, the step of the target critics towards the critics")
    entropy: float = option(0.2, "w, weight of the entropy")
    capacity: int = option(10_000, "transitions that are kept")
    warm_up: int = option(12, "transitions before batches are larger than 1")
    replay_batch: int = option(8, "transitions of a batch")


class Replay:
    """The last transitions (state, action, reward, next state), sampled with repeats.

    A transition is drawn in proportion to its place in line, the newest most often.

    Args:
        capacity: transitions that are kept; the oldest go first.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, state: Tensor, action: Tensor, reward: float, following: Tensor) -> None:
        """Keeps a transition. state, following [S], action [A]"""
        reward_row = torch.tensor([reward], dtype=torch.float32)
        self._kept.append((state, action, reward_row, following))
        del self._kept[: -self.capacity]

    def sample(self, size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """States [b, S], actions [b, A], rewards [b, 1] and next states [b, S]."""
        weights = torch.arange(1.0, len(self._kept) + 1)
        chosen = torch.multinomial(weights, size, replacement=True, generator=generator).tolist()
        return tuple(
            torch.stack(part) for part in zip(*(self._kept[i] for i in chosen), strict=True)
        )

    def state(self) -> dict[str, Tensor]:
        """All transitions, for a checkpoint."""
        names = ("states", "actions", "rewards", "following")
        parts = zip(*self._kept, strict=True) if self._kept else ((),) * 4
        return {
            name: torch.stack(part) if part else torch.empty(0)
            for name, part in zip(names, parts, strict=True)
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `state` gave."""
        self._kept = list(zip(*(part.unbind() for part in state.values()), strict=True))


def make_mlp(inputs: int, hidden: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    """Two hidden layers with ReLU; Xavier-uniform matrices, zero biases."""
    layers = nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
    return layers


def move_towards(target: nn.Module, source: nn.Module, tau: float) -> None:
    """target <- (1 - tau) target + tau source, in place."""
    with torch.no_grad():
        for mine, other in zip(target.parameters(), source.parameters(), strict=True):
            mine.lerp_(other, tau)


class Critics(nn.Module):
    """Two estimates of the return of an action: [b, S], [b, A] -> two [b, 1]."""

    def __init__(
        self, state_size: int, action_size: int, hidden: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        inputs = state_size + action_size
        self.first = make_mlp(inputs, hidden, 1, generator)
        self.second = make_mlp(inputs, hidden, 1, generator)

    def forward(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([states, actions], 1)
        return self.first(both), self.second(both)


class SAC:
    """An agent with a Gaussian policy squashed into (0, 1)^A.

    Args:
        state_size: S.
        action_size: A.
        config: its settings.
        generator: all randomness; the caller saves its state.

    Attributes:
        replay: the transitions it learns from, the newest most often.

    Example:
        >>> agent = SAC(4, 3, SACConfig(hidden=8), torch.Generator().manual_seed(0))
        >>> agent.best(torch.zeros(4))  # no bias yet
        tensor([0.5000, 0.5000, 0.5000])
    """

    def __init__(
        self, state_size: int, action_size: int, config: SACConfig, generator: torch.Generator
    ) -> None:
        self.config, self.generator = config, generator
        self.actor = make_mlp(state_size, config.hidden, 2 * action_size, generator)
        self.critics = Critics(state_size, action_size, config.hidden, generator)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.replay = Replay(config.capacity)
        self._actor_adam = torch.optim.Adam(
            self.actor.parameters(), config.actor_lr, weight_decay=config.weight_decay
        )
        self._critic_adam = torch.optim.Adam(
            self.critics.parameters(), config.critic_lr, weight_decay=config.weight_decay
        )

    @torch.no_grad()
    def best(self, state: Tensor) -> Tensor:
        """The action without exploration, 0.5 + 0.5 tanh(m(s)). [S] -> [A]"""
        mean: Tensor = self.actor(state).chunk(2)[0]
        return 0.5 + 0.5 * torch.tanh(mean)

    @torch.no_grad()
    def explore(self, state: Tensor) -> Tensor:
        """An action drawn from the policy. [S] -> [A]"""
        return self._draw(state[None])[0][0]

    def _draw(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Actions and their log-densities. [b, S] -> [b, A], [b, 1]"""
        mean, log_std = self.actor(states).chunk(2, 1)
        log_std = log_std.clamp(*_LOG_STD)
        noise = torch.randn(mean.shape, generator=self.generator)
        squashed = torch.tanh(mean + log_std.exp() * noise)
        log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_slope = torch.log(0.5 * (1 - squashed.square()) + 1e-6)
        return 0.5 + 0.5 * squashed, (log_normal - log_slope).sum(1, keepdim=True)

    def update(self) -> dict[str, float]:
        """One step of both critics, of the actor, and of the targets.

        Returns:
            `critic_loss`, `actor_loss` and `entropy` (mean of -log pi).
        """
        config = self.config
        size = config.replay_batch if len(self.replay) >= config.warm_up else 1
        states, actions, rewards, following = self.replay.sample(size, self.generator)
        with torch.no_grad():
            next_actions, next_logs = self._draw(following)
            lower = torch.minimum(*self.targets(following, next_actions))
            wanted = rewards + config.gamma * (lower - config.entropy * next_logs)  # y
        first, second = self.critics(states, actions)
        critic_loss = (first - wanted).square().mean() + (second - wanted).square().mean()
        self._critic_adam.zero_grad()
        critic_loss.backward()
        self._critic_adam.step()

        drawn, logs = self._draw(states)
        actor_loss = (config.entropy * logs - torch.minimum(*self.critics(states, drawn))).mean()
        self._actor_adam.zero_grad()
        actor_loss.backward()
        nn.utils.clip_grad_norm_(self.actor.parameters(), config.clip)
        self._actor_adam.step()
        move_towards(self.targets, self.critics, config.tau)
        return {
            "critic_loss": critic_loss.item(),
            "actor_loss": actor_loss.item(),
            "entropy": -logs.mean().item(),
        }

    def state(self) -> dict[str, Any]:
        """Networks, optimizers and transitions, for a checkpoint; not the generator."""
        return {
            "replay": self.replay.state(),
            **{name: part.state_dict() for name, part in self._parts().items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave."""
        self.replay.load_state(state["replay"])
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        return {
            "actor": self.actor,
            "critics": self.critics,
            "targets": self.targets,
            "actor_adam": self._actor_adam,
            "critic_adam": self._critic_adam,
        }
