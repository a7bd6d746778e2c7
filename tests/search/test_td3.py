"""TD3: the agent that CIESS has for users and for items."""

import copy

import torch

from varemb.search import td3
from varemb.search.td3 import TD3, TD3Config


def test_a_critic_asked_in_chunks_says_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    agent = TD3(3, 32, 100, TD3Config(hidden=8), generator)
    states, dims = torch.rand(10, 3), torch.randint(1, 33, (10, 6))
    whole = agent.values(states, dims)
    monkeypatch.setattr(td3, "_CHUNK", 4)
    torch.testing.assert_close(agent.values(states, dims), whole)


def test_td3_learns_one_good_dim_and_resumes():
    generator = torch.Generator().manual_seed(0)
    config = TD3Config(
        hidden=32, batch_size=128, gamma=0.0, clip=1.0, tau=0.05, actor_lr=3e-3
    )  # fmt: skip
    agent = TD3(1, 32, 100, config, generator)
    states = torch.zeros(100, 1)
    for _ in range(10):
        dims = torch.randint(1, 33, (100,), generator=generator)
        agent.transitions.add(states, dims, -((dims - 24) / 8).square(), states)
    for _ in range(150):
        agent.update()
    again = TD3(1, 32, 100, config, generator)
    again.load_state(copy.deepcopy(agent.state()))  # a checkpoint is a copy too
    kept = generator.get_state()
    first = [agent.update() for _ in range(3)]
    generator.set_state(kept)
    assert first == [again.update() for _ in range(3)]
    assert 20 < float(agent.act(states[:1])) < 28


def make_agent(width=16):
    """An agent whose targets are unlike its networks, with transitions to learn from."""
    generator = torch.Generator().manual_seed(0)
    config = TD3Config(hidden=8, batch_size=1000, gamma=0.9, tau=0.25)
    agent = TD3(2, width, 1000, config, generator)
    for part in (agent.target_actor, agent.targets):
        for parameter in part.parameters():
            if parameter.dim() == 2:  # no bias
                parameter.normal_(generator=generator)
    states, following = torch.randn(2, 1000, 2, generator=generator)
    dims = torch.randint(1, width + 1, (1000,), generator=generator)
    agent.transitions.add(states, dims, torch.rand(1000, generator=generator), following)
    return agent


def test_the_loss_of_an_update_by_hand():
    agent = make_agent()
    kept = agent.generator.get_state()
    states, dims, rewards, following = agent.transitions.sample(1000, agent.generator)
    noise = 2 * torch.randn(1000, 1, generator=agent.generator)
    chosen = 8.5 + 7.5 * torch.tanh(agent.target_actor(following)) + noise.clamp(-5, 5)
    assert (noise.abs() > 5).any() and ((chosen < 1) | (chosen > 16)).any()
    scaled = 2 * (chosen.clamp(1, 16) - 1) / 15 - 1
    first, second = agent.targets(following, scaled)
    assert (first < second).any() and (second < first).any()
    wanted = rewards + 0.9 * torch.minimum(first, second)
    values = agent.critics(states, 2 * (dims - 1) / 15 - 1)
    expected = sum((value - wanted).square().mean() for value in values)
    agent.generator.set_state(kept)
    torch.testing.assert_close(agent.update(), float(expected.detach()), rtol=1e-5, atol=0)


def test_targets_follow_the_critics_always_and_the_actor_every_second_time():
    agent = make_agent()
    pairs = [(agent.targets, agent.critics), (agent.target_actor, agent.actor)]
    for steps in ((0.25, 0.0), (0.25, 0.25)):
        before = [copy.deepcopy(target) for target, _ in pairs]
        agent.update()
        for old, (target, source), step in zip(before, pairs, steps, strict=True):
            for was, mine, other in zip(
                old.parameters(), target.parameters(), source.parameters(), strict=True
            ):
                torch.testing.assert_close(mine, was + step * (other - was))
