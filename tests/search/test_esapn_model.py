"""Layers of the recommender behind streams, against torch's."""

import pytest
import torch
from torch import nn

from varemb.search.stream_model import (
    SMALLEST,
    GroupedBatchNorm,
    Inference,
    Policy,
    batch_norm,
    linear,
    tanh,
)


def test_linear_and_tanh_are_torchs():
    layer = nn.Linear(38, 70)
    x = torch.randn(50, 38, requires_grad=True)
    grad = torch.randn(50, 70)
    found = []
    for forward in (lambda: tanh(linear(x, layer)), lambda: torch.tanh(layer(x))):
        out = forward()
        found.append((out.detach(), *torch.autograd.grad(out, [x, *layer.parameters()], grad)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-5)
    extreme = torch.tensor([-200.0, -1e-3, 0.0, 1e-3, 200.0])
    torch.testing.assert_close(tanh(extreme), torch.tanh(extreme), atol=2e-7, rtol=0)


def test_groups_are_normalised_apart():
    torch.manual_seed(0)
    norm = GroupedBatchNorm(3, 5)
    peers = [nn.BatchNorm1d(5, affine=False) for _ in range(2)]
    group = torch.arange(40) % 2
    for _ in range(3):
        x = (torch.randn(40, 5) * 3 + group[:, None]).requires_grad_()
        grad = torch.randn(40, 5)
        out = norm(x, group, track=True)
        (ours,) = torch.autograd.grad(out, x, grad)
        for g in range(2):
            part = x[group == g].detach().requires_grad_()
            expected = peers[g](part)
            (theirs,) = torch.autograd.grad(expected, part, grad[group == g])
            torch.testing.assert_close(out[group == g], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(ours[group == g], theirs, atol=1e-5, rtol=1e-5)
    for g in range(2):
        torch.testing.assert_close(norm.running_mean[g], peers[g].running_mean)
        torch.testing.assert_close(norm.running_var[g], peers[g].running_var)
    assert norm.running_mean[2].tolist() == [0] * 5 and norm.running_var[2].tolist() == [1] * 5


def test_small_groups_use_running_statistics_and_leave_them():
    norm = GroupedBatchNorm(2, 3)
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    small = SMALLEST - 1
    group = torch.tensor([0] * small + [1] * SMALLEST)
    x = torch.randn(len(group), 3, requires_grad=True)
    out = norm(x, group, track=True)
    torch.testing.assert_close(out[:small], (x[:small] - 1) / (4 + 1e-5) ** 0.5)
    torch.testing.assert_close(out[small:].mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    assert norm.running_mean[0].tolist() == [1.0] * 3 and norm.running_mean[1].tolist() != [1.0] * 3
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad[:small], torch.full((small, 3), (4 + 1e-5) ** -0.5))


def test_gradient_of_grouped_normalisation():
    norm = GroupedBatchNorm(2, 2).double()
    x = torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
    group = torch.tensor([0] * 12 + [1] * 8)
    assert torch.autograd.gradcheck(lambda x: norm(x, group, track=False), x)


@pytest.mark.parametrize("rows", [1, SMALLEST - 1, SMALLEST])
def test_statistics_of_the_batch_need_rows_enough(rows):
    norm = nn.BatchNorm1d(4)
    norm.running_mean.fill_(2.0)
    x = torch.randn(rows, 4)
    expected = norm.train(rows >= SMALLEST)(x) if rows >= SMALLEST else norm.eval()(x)
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(1.0)
    torch.testing.assert_close(batch_norm(x, norm, track=False), expected)
    assert norm.running_mean.tolist() == [2.0] * 4


def test_networks_take_one_row():
    inference = Inference(4, 8, 5)
    assert inference(torch.randn(2, 4), track=True).shape == (1, 5)
    policy = Policy(6, 2, 8, most=10)
    logits = policy(torch.tensor([10, 11, 5000]), torch.eye(6)[[1, 1, 1]])
    assert logits.shape == (3, 2)
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
