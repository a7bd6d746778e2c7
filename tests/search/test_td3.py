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
