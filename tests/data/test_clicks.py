import pytest
import torch

from varemb.data import PLANTED_DIMS, planted_clicks
from varemb.data.clicks import HOURS


def test_the_same_seed_gives_the_same_clicks():
    first, second = planted_clicks(500, seed=3), planted_clicks(500, seed=3)
    assert torch.equal(first.ids, second.ids) and torch.equal(first.labels, second.labels)
    assert not torch.equal(first.ids, planted_clicks(500, seed=4).ids)


def test_a_field_per_planted_dim_and_the_hour():
    data = planted_clicks(500, ids_per_field=7)
    assert data.field_names == (*PLANTED_DIMS, "hour")
    assert data.cardinalities == (7,) * len(PLANTED_DIMS) + (HOURS,)


@pytest.mark.parametrize("dim", [1, 2, 8])
def test_answers_of_a_field_have_the_planted_rank(dim):
    # With one field, the logit of the share of clicks is an id's answer to an hour, up to noise.
    rows, ids = 200_000, 20
    data = planted_clicks(rows, dims={"user": dim}, ids_per_field=ids, scale=1.0, seed=1)
    cells = data.ids[:, 0].long() * HOURS + data.ids[:, 1].long()
    clicks = torch.bincount(cells, data.labels, ids * HOURS)
    shares = (clicks / torch.bincount(cells, minlength=ids * HOURS)).view(ids, HOURS)
    strengths = torch.linalg.svdvals(torch.logit(shares.clamp(0.01, 0.99)))
    # The logit of a share of n rows has variance 4 / n near 1/2; the largest of a noise matrix:
    noise = (4 * ids * HOURS / rows) ** 0.5 * (ids**0.5 + HOURS**0.5)
    assert int((strengths > 1.5 * noise).sum()) == dim


@pytest.mark.parametrize("dim", [0, HOURS + 1])
def test_planted_dims_that_cannot_be_are_refused(dim):
    with pytest.raises(ValueError, match=r"dims must be in 1..16, got \{'user': "):
        planted_clicks(10, dims={"user": dim})
