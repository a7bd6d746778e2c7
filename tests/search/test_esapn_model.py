"""Layers of the recommender behind streams, against torch's."""

import pytest
import torch
from torch import nn

from varemb.search.stream_events import loss_slopes, losses
from varemb.search.stream_model import (
    SMALLEST,
    GroupedBatchNorm,
    HiddenLayer,
    Inference,
    Policy,
    batch_norm,
    flat_parameter,
    raise_to_width,
    tanh,
)


@pytest.mark.parametrize("rows", [SMALLEST - 1, 50])
def test_hidden_layer_is_torchs(rows):
    layer = HiddenLayer(38, 70)
    x = torch.randn(rows, 38, requires_grad=True)
    grad = torch.randn(rows, 70)
    peer = nn.Sequential(layer.linear, nn.BatchNorm1d(70), nn.Tanh()).train(rows >= SMALLEST)
    found = []
    for forward, norm in ((lambda: layer(x, track=True), layer.norm), (lambda: peer(x), peer[1])):
        out = forward()
        inputs = [x, layer.linear.weight, norm.weight, norm.bias]
        found.append((out.detach(), *torch.autograd.grad(out, inputs, grad)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.norm.running_mean, peer[1].running_mean)
    torch.testing.assert_close(layer.norm.running_var, peer[1].running_var)


def test_tanh_is_torchs():
    x = torch.tensor([-200.0, -1e-3, 0.0, 1e-3, 0.7, 200.0], requires_grad=True)
    found = []
    for each in (tanh, torch.tanh):
        out = each(x)
        found.append((out.detach(), *torch.autograd.grad(out.sum(), x)))
    torch.testing.assert_close(*found, atol=2e-7, rtol=1e-6)


def test_a_flat_parameter_trains_the_module():
    torch.manual_seed(0)
    module, peer = (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)) for _ in range(2))
    peer.load_state_dict(module.state_dict())
    flat = flat_parameter(module)
    adams = torch.optim.Adam([flat], 0.1), torch.optim.Adam(peer.parameters(), 0.1)
    x = torch.randn(5, 3)
    for _ in range(3):
        for each, adam in zip((module, peer), adams, strict=True):
            adam.zero_grad(set_to_none=False)
            each(x).square().sum().backward()
            adam.step()
    for ours, theirs in zip(module.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("outputs", [1, 5])
def test_slopes_are_the_gradient_of_the_losses(outputs):
    logits = torch.randn(6, outputs, requires_grad=True)
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    labels = labels.float() if outputs == 1 else labels
    (expected,) = torch.autograd.grad(losses(logits, labels).sum(), logits)
    torch.testing.assert_close(loss_slopes(logits.detach(), labels), expected)


def test_raising_applies_the_maps_one_after_another():
    dims = (1, 2, 4)
    maps = nn.ModuleList([nn.Linear(1, 2), nn.Linear(2, 4)])
    sizes = torch.tensor([2, 0, 1, 0, 2])
    x = torch.randn(5, 4) * (torch.arange(4) < torch.tensor(dims)[sizes, None])
    x.requires_grad_()
    expected = [
        x[0], maps[1](maps[0](x[1, :1])), maps[1](x[2, :2]), maps[1](maps[0](x[3, :1])), x[4],
    ]  # fmt: skip
    out = raise_to_width(x, sizes, dims, maps)
    torch.testing.assert_close(out, torch.stack(expected))
    grad = torch.randn(5, 4)
    ours = torch.autograd.grad(out, [x, *maps.parameters()], grad)
    theirs = torch.autograd.grad(torch.stack(expected), [x, *maps.parameters()], grad)
    torch.testing.assert_close(ours, theirs)
    assert raise_to_width(x, torch.full((5,), 2), dims, maps) is x


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
