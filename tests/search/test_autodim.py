import pytest
import torch
from torch import nn
from torch.nn import functional as F

from varemb import SizePlan
from varemb.search.autodim import Supernet, gumbel_softmax, temperature

CARDINALITIES, CANDIDATES, WIDTH = (7, 4), (1, 2, 4), 4
# float32 sums in another order
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def make_supernet():
    torch.manual_seed(0)
    supernet = Supernet(CARDINALITIES, CANDIDATES, init_std=1.0)
    supernet.p = torch.softmax(torch.randn(2, 3), 1)
    return supernet


def make_ids(rows=50):
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.randint(c, (rows,), generator=generator) for c in CARDINALITIES], 1)


def naive_forward(supernet, ids, norms):
    """Eq. 1, 2 and 7 word by word: a lookup, a product and a batch normalisation per candidate."""
    dense, fields = supernet.table.weight.view(-1, WIDTH), []
    for m, start in enumerate((0, CARDINALITIES[0])):
        vector = 0
        for n, dim in enumerate(CANDIDATES):
            e = F.embedding(ids[:, m] + start, dense)[:, :dim]
            z = e @ supernet.weight[m, :dim, n]
            vector = vector + supernet.p[m, n] * norms[m][n](z)
        fields.append(vector)
    return torch.stack(fields, 1)


def make_norms():
    return [[nn.BatchNorm1d(WIDTH, affine=False) for _ in CANDIDATES] for _ in CARDINALITIES]


def test_supernet_equals_a_lookup_per_candidate():
    supernet, norms, ids = make_supernet(), make_norms(), make_ids()
    torch.testing.assert_close(supernet(ids), naive_forward(supernet, ids, norms), **TOLERANCE)


def test_supernet_evaluates_with_running_statistics():
    supernet, norms = make_supernet(), make_norms()
    for seed in range(3):
        torch.manual_seed(seed)
        ids = make_ids()[torch.randperm(50)[:20]]
        supernet(ids)
        naive_forward(supernet, ids, norms)
    supernet.eval()
    for row in norms:
        for norm in row:
            norm.eval()
    ids = make_ids(5)
    torch.testing.assert_close(supernet(ids), naive_forward(supernet, ids, norms), **TOLERANCE)


def test_supernet_gradients_equal_those_of_a_lookup_per_candidate():
    found, ids = [], make_ids()
    for forward in (lambda net: net(ids), lambda net: naive_forward(net, ids, make_norms())):
        supernet = make_supernet()
        supernet.p.requires_grad_()
        torch.manual_seed(2)
        (forward(supernet) * torch.randn(50, 2, WIDTH)).sum().backward()
        found.append([supernet.table.weight.grad, supernet.weight.grad, supernet.p.grad])
    for ours, naive in zip(*found, strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-3, atol=1e-4)


def test_supernet_looks_the_table_up_once(monkeypatch):
    supernet, calls = make_supernet(), []
    forward = supernet.table.forward
    monkeypatch.setattr(supernet.table, "forward", lambda ids: calls.append(1) or forward(ids))
    supernet(make_ids())
    assert len(calls) == 1


def test_a_field_that_is_constant_in_the_batch_gives_finite_numbers():
    supernet, ids = make_supernet(), make_ids()
    ids[:, 1] = 2
    out = supernet(ids)
    assert out.isfinite().all()
    torch.testing.assert_close(out[:, 1], torch.zeros(50, WIDTH), rtol=0, atol=1e-3)


def test_temperature_reaches_its_floor_at_step_19800():
    assert temperature(19_799) > 0.01
    assert temperature(19_800) == 0.01
    assert temperature(100_000) == 0.01
    assert temperature(0) == 1.0


@pytest.mark.parametrize(
    "values, numbers", [(1_086_810, 34_777_920), (2_018_012, 64_576_384)], ids=["Criteo", "Avazu"]
)
def test_numbers_at_full_width_are_those_of_the_paper(values, numbers):
    assert SizePlan.uniform({"all": values}, 32, 32).num_params == numbers


def test_the_plan_of_the_paper_saves_57_percent():
    rows = {"movieId": 3416, "year": 81, "genres": 301, "userId": 6040}
    rows |= {"gender": 2, "age": 7, "occupation": 21, "zip": 3439}
    dims = dict(zip(rows, (8, 2, 4, 8, 2, 2, 2, 4), strict=True))
    plan = SizePlan.for_fields(rows, 16, dims)
    assert (plan.num_params, plan.num_params_full) == (90_830, 212_912)
    assert round(plan.sparsity, 3) == 0.573


def test_gumbel_softmax_follows_the_logits():
    theta = torch.tensor([[0.1, 0.6, 0.3]]).log()
    generator = torch.Generator().manual_seed(0)
    draws = [gumbel_softmax(theta, 0.01, generator).argmax().item() for _ in range(4000)]
    shares = torch.bincount(torch.tensor(draws), minlength=3) / 4000
    torch.testing.assert_close(shares, theta.exp()[0], rtol=0, atol=0.03)
    assert torch.allclose(gumbel_softmax(theta, 1.0, generator).sum(), torch.tensor(1.0))
