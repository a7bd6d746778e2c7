"""Clipping, scaling and accumulating gradients: which of the three ways to train allows which."""

import pytest
import torch
from torch import nn

import varemb
from varemb import VarEmbedding

INDICES = torch.tensor([[0, 1], [1, 4]])


def make(**options):
    torch.manual_seed(0)
    return VarEmbedding(5, 4, dims=[1, 2, 3, 4, 4], **options)


def loss(module):
    return module(INDICES).square().sum()


def test_dense_gradients_are_clipped_as_torchs():
    ours = make()
    plain = nn.Embedding.from_pretrained(ours.to_dense().detach(), freeze=False)
    for each in (ours, plain):
        loss(each).backward()
    limit = 0.5 * float(plain.weight.grad.norm())
    norms = [nn.utils.clip_grad_norm_(each.parameters(), limit) for each in (ours, plain)]
    torch.testing.assert_close(norms[0], norms[1])
    for each in (ours, plain):
        torch.optim.SGD(each.parameters(), 0.1).step()
    torch.testing.assert_close(ours.to_dense(), plain.weight.detach())  # zeros have no gradient


def test_dense_gradients_are_accumulated():
    once, twice = make(), make()
    (2 * loss(once)).backward()
    for _ in range(2):
        loss(twice).backward()
    torch.testing.assert_close(twice.weight.grad, once.weight.grad)


def test_sparse_gradients_are_not_clipped():
    table = make(sparse=True)
    loss(table).backward()
    with pytest.raises(NotImplementedError, match="linalg_vector_norm"):
        nn.utils.clip_grad_norm_(table.parameters(), 1.0)


def sparse_optimizer(table, name):
    return getattr(varemb.optim, name)(table.parameters(), lr=0.1, fused=False)


OPTIMIZERS = ["SGD", "Adagrad", "RowWiseAdagrad", "Adam"]


@pytest.mark.parametrize(
    ("sparse", "make_optimizer"),
    [(False, lambda table: torch.optim.Adam(table.parameters(), 0.1))]
    + [(True, lambda table, name=name: sparse_optimizer(table, name)) for name in OPTIMIZERS],
    ids=["torch Adam", *OPTIMIZERS],
)
def test_a_scaler_unscales_and_skips_steps_that_overflow(sparse, make_optimizer):
    scaled, plain = make(sparse=sparse), make(sparse=sparse)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizers = [make_optimizer(scaled), make_optimizer(plain)]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        scaler.scale(loss(scaled)).backward()
        scaler.step(optimizers[0])
        scaler.update()
        loss(plain).backward()
        optimizers[1].step()
    assert torch.equal(scaled.weight, plain.weight)  # 8 is a power of two
    assert not torch.equal(scaled.weight, make().weight)
    optimizers[0].zero_grad()
    scaler.scale(loss(scaled) * float("inf")).backward()
    scaler.step(optimizers[0])
    scaler.update()
    assert torch.equal(scaled.weight, plain.weight)
    assert scaler.get_scale() == 4.0


def test_a_fused_update_is_made_in_every_backward():
    fused, plain = make(), make()
    optimizer = varemb.optim.SGD(fused.parameters(), lr=0.1)
    for _ in range(2):
        loss(fused).backward()
        assert fused.weight.grad is None
    optimizer.step()
    steps = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(2):
        steps.zero_grad()
        loss(plain).backward()
        steps.step()
    torch.testing.assert_close(fused.weight, plain.weight)
