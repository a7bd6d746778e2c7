"""The agent: a problem with a known answer, its densities, its memory, its state."""

import math

import pytest
import torch

from varemb.search.actor_critic import SAC, Replay, SACConfig

SMALL = SACConfig(
    hidden=32, actor_lr=3e-3, critic_lr=1e-2, gamma=0.0, entropy=0.02, replay_batch=32, warm_up=32
)


def make_agent(config=SMALL, seed=0, states=2, actions=2):
    return SAC(states, actions, config, torch.Generator().manual_seed(seed))


def test_sac_finds_the_best_action_of_each_state():
    agent = make_agent()
    states = torch.eye(2)
    best = torch.tensor([[0.35, 0.7], [0.65, 0.4]])
    for step in range(400):
        state = states[step % 2]
        action = agent.explore(state)
        reward = -20 * float((action - best[step % 2]).square().sum())
        agent.replay.add(state, action, reward, states[(step + 1) % 2])
        agent.update()
    found = torch.stack([agent.best(state) for state in states])
    assert (found - best).abs().max() < 0.12


def test_sac_values_what_comes_after():
    # In state 0 the action decides the next state; only state 1 pays. gamma makes it worth it.
    agent = make_agent(
        SACConfig(
            hidden=32, actor_lr=3e-3, critic_lr=1e-2, gamma=0.9, tau=0.05, entropy=0.02,
            replay_batch=32, warm_up=32,
        ),
        actions=1,
    )  # fmt: skip
    states, state = torch.eye(2), 0
    for _ in range(400):
        action = agent.explore(states[state])
        following = int(action[0] > 0.5) if state == 0 else 0
        agent.replay.add(states[state], action, float(state), states[following])
        agent.update()
        state = following
    assert agent.best(states[0])[0] > 0.7


def test_log_density_is_that_of_the_drawn_actions():
    agent = make_agent(states=1, actions=1)
    torch.nn.init.normal_(agent.actor[-1].bias, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        actions, logs = agent._draw(torch.zeros(100_000, 1))
    place = (actions[:, 0] * 20).long().clamp(max=19)
    counts = torch.bincount(place, minlength=20)
    # The mean of 1 / p over a bin is the bin's width over its probability.
    for part in (counts > 2000).nonzero()[:, 0].tolist():
        probability = 1 / 20 / float((-logs[place == part]).exp().mean())
        assert math.isclose(probability, float(counts[part]) / 100_000, rel_tol=0.1)
    assert (counts > 2000).sum() >= 5


def test_first_mean_action_is_the_middle():
    assert make_agent(SACConfig(hidden=16)).best(torch.zeros(2)).tolist() == [0.5, 0.5]


def test_targets_start_as_copies_and_follow_slowly():
    agent = make_agent(SACConfig(hidden=16))
    pairs = list(zip(agent.targets.parameters(), agent.critics.parameters(), strict=True))
    assert all(torch.equal(target, critic) for target, critic in pairs)
    before = [target.clone() for target, _ in pairs]
    agent.replay.add(torch.ones(2), torch.full((2,), 0.5), 1.0, torch.ones(2))
    agent.update()
    for old, (target, critic) in zip(before, pairs, strict=True):
        torch.testing.assert_close(target, old + 0.005 * (critic - old))
    assert any(not torch.equal(old, target) for old, (target, _) in zip(before, pairs, strict=True))


def test_the_critics_loss_by_hand():
    """y takes the lower of two targets, and what the entropy of the next action is worth."""
    agent = make_agent(SACConfig(hidden=16, gamma=0.9, entropy=0.5, warm_up=1, replay_batch=200))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in agent.targets.parameters():
            parameter.normal_(generator=generator)
    for row in torch.rand(20, 7, generator=generator):
        agent.replay.add(row[:2], row[2:4], float(row[4]), row[5:])
    kept = agent.generator.get_state()
    states, actions, rewards, following = agent.replay.sample(200, agent.generator)
    with torch.no_grad():
        chosen, logs = agent._draw(following)
        first, second = agent.targets(following, chosen)
        wanted = rewards + 0.9 * (torch.minimum(first, second) - 0.5 * logs)
        values = agent.critics(states, actions)
    assert (first < second).any() and (second < first).any()
    expected = sum((value - wanted).square().mean() for value in values)
    agent.generator.set_state(kept)
    assert agent.update()["critic_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_replay_prefers_the_newest_and_forgets_the_oldest():
    replay = Replay(4)
    for number in range(6):
        replay.add(torch.tensor([float(number)]), torch.zeros(1), float(number), torch.zeros(1))
    rewards = replay.sample(10_000, torch.Generator().manual_seed(0))[2][:, 0]
    shares = torch.bincount(rewards.long(), minlength=6) / 10_000
    torch.testing.assert_close(shares, torch.tensor([0, 0, 0.1, 0.2, 0.3, 0.4]), atol=0.02, rtol=0)


@pytest.mark.parametrize("is_filled", [False, True])
def test_agent_continues_from_its_state(is_filled):
    agent = make_agent(SACConfig(hidden=16))
    states = torch.eye(2)
    for step in range(5 * is_filled):
        agent.replay.add(states[0], agent.explore(states[0]), float(step), states[1])
        agent.update()
    saved, at = agent.state(), agent.generator.get_state()
    saved = {name: _copied(part) for name, part in saved.items()}
    results = []
    other = make_agent(SACConfig(hidden=16), seed=9)
    other.load_state(saved)
    for each in (agent, other):
        each.generator.set_state(at)
        each.replay.add(states[1], torch.tensor([0.1, 0.9]), 1.0, states[0])
        results.append([each.update() for _ in range(3)])
    assert results[0] == results[1]
    assert torch.equal(agent.best(states[0]), other.best(states[0]))


def _copied(part):
    if isinstance(part, torch.Tensor):
        return part.clone()
    return (
        {name: _copied(value) for name, value in part.items()} if isinstance(part, dict) else part
    )
