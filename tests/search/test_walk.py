"""Walks over dims and noise: laws of CIESS Eq. 13 and of its code, borders, seeds."""

import pytest
import torch

from varemb.search.walk import Noise, random_walk, walk_chances

PAPER = [0.1667, 0.1333, 0.1000, 0.0667, 0.0333, 0.0333, 0.0667, 0.1000, 0.1333, 0.1667]
CODE = [0.0438, 0.0547, 0.0730, 0.1095, 0.2190, 0.2190, 0.1095, 0.0730, 0.0547, 0.0438]


@pytest.mark.parametrize(("law", "chances", "mean"), [("paper", PAPER, 3.67), ("code", CODE, 2.19)])
def test_walk_chances_at_an_interior_node(law, chances, mean):
    found = walk_chances(128, 5, law)[63]
    torch.testing.assert_close(found, torch.tensor(chances), atol=5e-5, rtol=0)
    steps = torch.tensor([5.0, 4, 3, 2, 1, 1, 2, 3, 4, 5])
    assert float((found * steps).sum()) == pytest.approx(mean, abs=0.005)


@pytest.mark.parametrize("law", ["paper", "code"])
def test_walk_chances_at_a_border_go_to_neighbours_inside_only(law):
    chances = walk_chances(8, 5, law)
    torch.testing.assert_close(chances.sum(1), torch.ones(8))
    assert not chances[0, :5].any() and chances[0, 5:].all()  # dim 1: nothing below
    assert not chances[7, 5:].any()  # dim 8: nothing above
    assert chances[5].tolist()[7:] == [0, 0, 0]  # dim 6: 7 and 8 above


def test_random_walk_draws_by_its_chances():
    chances = walk_chances(128, 5, "paper")
    starts = torch.full((40_000,), 64)
    walk = random_walk(starts, 1, chances, torch.Generator().manual_seed(3))
    steps = walk[:, 1] - 64
    shares = torch.stack([(steps == step).float().mean() for step in (-5, -1, 1, 5)])
    expected = torch.tensor([0.1667, 0.0333, 0.0333, 0.1667])
    torch.testing.assert_close(shares, expected, atol=0.008, rtol=0)


def test_random_walk_stays_inside_starts_where_told_and_repeats_with_its_seed():
    starts = torch.arange(1, 9).repeat(500)
    chances = walk_chances(8, 5, "code")
    walk = random_walk(starts, 5, chances, torch.Generator().manual_seed(0))
    assert walk.shape == (4000, 6) and torch.equal(walk[:, 0], starts)
    assert walk.min() == 1 and walk.max() == 8
    moves = walk.diff(dim=1).abs()
    assert moves.min() == 1 and moves.max() == 5
    again = random_walk(starts, 5, chances, torch.Generator().manual_seed(0))
    assert torch.equal(walk, again)


def test_random_walk_with_one_dim_alone_stays():
    chances = walk_chances(1, 5, "paper")
    walk = random_walk(torch.ones(3, dtype=torch.int64), 4, chances, torch.Generator())
    assert torch.equal(walk, torch.ones(3, 5, dtype=torch.int64))


def test_noises_have_their_spread():
    generator = torch.Generator().manual_seed(0)
    gaussian = Noise("gaussian", 6.0).draw(50_000, generator)
    assert float(gaussian.std()) == pytest.approx(6, rel=0.02)
    uniform = Noise("uniform").draw(50_000, generator)
    assert -11 <= float(uniform.min()) < -10.9 and 10.9 < float(uniform.max()) <= 11
    assert not Noise("none").draw(4, generator).any()


def test_ou_noise_keeps_its_level_within_an_episode():
    noise, generator = Noise("ou"), torch.Generator().manual_seed(0)
    first, second = noise.draw(20_000, generator), noise.draw(20_000, generator)
    assert float(first.std()) == pytest.approx(4, rel=0.03)  # 40 sqrt(0.01)
    steps = second - first * (1 - 0.15 * 0.01)
    assert float(steps.std()) == pytest.approx(4, rel=0.03)
    assert float(torch.corrcoef(torch.stack([first, second]))[0, 1]) > 0.6
    noise.restart()
    assert float(noise.draw(20_000, generator).std()) == pytest.approx(4, rel=0.03)


@pytest.mark.parametrize(("width", "reach", "law"), [(0, 5, "paper"), (8, 0, "paper"), (8, 5, "x")])
def test_walk_refuses_what_is_no_walk(width, reach, law):
    with pytest.raises(ValueError, match="walk: the law must be paper or code"):
        walk_chances(width, reach, law)


def test_noise_refuses_unknown_kinds():
    with pytest.raises(ValueError, match="noise: must be one of gaussian"):
        Noise("pink")
