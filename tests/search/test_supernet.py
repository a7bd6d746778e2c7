"""The supernet against its equations, word by word."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from varemb.models import FM
from varemb.search.supernet import VARIANTS, Supernet

CARDINALITIES, CANDIDATES, WIDTH = (7, 4), (1, 2, 4), 4
# float32 sums in another order
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def make_supernet(variant="ad-2"):
    torch.manual_seed(0)
    supernet = Supernet(CARDINALITIES, CANDIDATES, init_std=1.0, variant=variant)
    supernet.p = torch.softmax(torch.randn(2, 3), 1)
    return supernet


def test_first_logits_of_a_model_of_products_have_variance_1():
    torch.manual_seed(0)
    cardinalities = (50,) * 8
    supernet = Supernet(cardinalities, (2, 4, 8, 16), init_std=1.0)
    supernet.p = torch.eye(4)[3].repeat(8, 1)  # the widest candidate alone
    logits = FM(cardinalities, 16, supernet)(torch.randint(50, (2000, 8)))
    assert 0.8 < float(logits.detach().std()) < 1.25  # 21 without the scale


def make_ids(rows=50):
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.randint(c, (rows,), generator=generator) for c in CARDINALITIES], 1)


def naive_forward(supernet, ids, norms, variant="ad-2"):
    """Eq. 1 to 4 and 7 word by word: a lookup, a product or zeros, and a batch normalisation per
    candidate."""
    is_shared, unify = VARIANTS[variant]
    numbers = WIDTH if is_shared else sum(CANDIDATES)
    dense, fields = supernet.table.weight.view(-1, numbers), []
    for m, start in enumerate((0, CARDINALITIES[0])):
        vector = 0
        for n, dim in enumerate(CANDIDATES):
            first = 0 if is_shared else sum(CANDIDATES[:n])
            e = F.embedding(ids[:, m] + start, dense)[:, first : first + dim]
            if unify == "linear":
                z = e @ supernet.weight[m, first : first + dim, n]
            else:
                z = F.pad(e, (0, WIDTH - dim))
            vector = vector + supernet.p[m, n] * norms[m][n](z)
        fields.append(supernet.scale[m] * vector)
    return torch.stack(fields, 1)


def make_norms():
    """Running statistics are plain means: of fewer than ten batches."""
    return [
        [nn.BatchNorm1d(WIDTH, affine=False, momentum=None) for _ in CANDIDATES]
        for _ in CARDINALITIES
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_supernet_equals_a_lookup_per_candidate(variant):
    supernet, norms, ids = make_supernet(variant), make_norms(), make_ids()
    naive = naive_forward(supernet, ids, norms, variant)
    torch.testing.assert_close(supernet(ids), naive, **TOLERANCE)
    assert isinstance(supernet.weight, nn.Parameter) == (VARIANTS[variant][1] == "linear")


def test_separate_candidates_take_the_sum_of_their_numbers():
    rows = sum(CARDINALITIES)
    numbers = [make_supernet(name).table.weight.numel() for name in VARIANTS]
    assert numbers == [rows * 4, rows * 4, rows * 7, rows * 7]
    shared, separate = (
        Supernet((10,), (2, 8, 16, 24, 32), 1.0, name).table.weight.numel()
        for name in ("ad-2", "ad-4")
    )
    assert shared / separate == 32 / 82  # claim A4 of the paper: 39 %


@pytest.mark.parametrize("variant", VARIANTS)
def test_supernet_evaluates_with_running_statistics(variant):
    supernet, norms = make_supernet(variant), make_norms()
    for seed in range(3):
        torch.manual_seed(seed)
        ids = make_ids()[torch.randperm(50)[:20]]
        supernet(ids)
        naive_forward(supernet, ids, norms, variant)
    supernet.eval()
    for row in norms:
        for norm in row:
            norm.eval()
    ids = make_ids(5)
    naive = naive_forward(supernet, ids, norms, variant)
    torch.testing.assert_close(supernet(ids), naive, **TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_supernet_gradients_equal_those_of_a_lookup_per_candidate(variant):
    def naive(net):
        return naive_forward(net, ids, make_norms(), variant)

    found, ids = [], make_ids()
    for forward in (lambda net: net(ids), naive):
        supernet = make_supernet(variant)
        supernet.p.requires_grad_()
        torch.manual_seed(2)
        (forward(supernet) * torch.randn(50, 2, WIDTH)).sum().backward()
        found.append([*(p.grad for p in supernet.parameters()), supernet.p.grad])
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


def test_variances_of_large_numbers_stay_above_0():
    """Rounded, w C w may be below 0 where the batch has few distinct rows."""
    torch.manual_seed(72)
    supernet = Supernet((2, 7), (2, 8, 16, 24, 32), init_std=3.0)
    with torch.no_grad():
        supernet.weight.mul_(3)
    ids = torch.stack([torch.randint(2, (64,)), torch.randint(7, (64,))], 1)
    assert supernet(ids).isfinite().all() and supernet.var.min() >= 0


def test_the_first_batches_leave_nothing_of_the_statistics_before_them():
    """Numbers near 0 are evaluated as they were trained from the first batch on."""
    torch.manual_seed(0)
    supernet, ids = Supernet(CARDINALITIES, CANDIDATES, init_std=0.01), make_ids()
    trained = supernet(ids).detach()
    for _ in range(20):
        supernet(ids)
    supernet.eval()
    torch.testing.assert_close(supernet(ids).detach().std(), trained.std(), rtol=0.05, atol=0)
