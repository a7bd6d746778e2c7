"""The recommender of ESAPN (Section 2.2) behind its tables, and the networks that choose sizes.

    x'' = tanh(BN(x')),   h = tanh(BN(W1 BN([u''; i'']))),   logits = W2 h + b2

Both sides go through every layer at once, stacked: users first, items behind.

Batch normalisation takes its statistics from the batch, also for predictions. Where there are fewer
than SMALLEST rows to take them from (in a group of rows, or in a batch of a live stream) it uses
the running ones, so that a batch of one event is predicted and learnt like any other.

DIFFERS: batch normalisation of the pair and of the hidden layer is the published code's; the paper
    has it on the unified rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST = 8  # rows that statistics are taken from
_MOMENTUM, _EPS = 0.1, 1e-5


# On a CPU that is not Intel's a product of float32 matrices takes half as long through oneDNN as
# through MKL, which torch's matmul uses (AMD Zen with AVX-512); this is torch's door to oneDNN.
_ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def _product(x: Tensor, weight: Tensor) -> Tensor:  # [B, I], [O, I] -> [B, O]
    if _ONEDNN is None or x.device.type != "cpu" or x.dtype != torch.float32:
        return x @ weight.t()
    out: Tensor = _ONEDNN(x, weight, None, "none", [], "")
    return out


def _tanh(x: Tensor) -> Tensor:
    """tanh x = 2 sigmoid(2 x) - 1, in place: torch's tanh takes 5 to 15 times as long on a CPU."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1)


class _HiddenLayer(torch.autograd.Function):
    """tanh(BN(x W^T)) as one step of autograd."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor,
        mean: Tensor | None, var: Tensor | None, is_large: bool,
    ) -> Tensor:  # fmt: skip
        z = _product(x, weight)
        y, used_mean, used_scale = torch.native_batch_norm(
            z, scale, shift, mean, var, is_large, _MOMENTUM, _EPS
        )
        out = _tanh(y)
        ctx.save_for_backward(x, weight, scale, mean, var, z, used_mean, used_scale, out)
        ctx.is_large = is_large
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, mean, var, z, used_mean, used_scale, out = ctx.saved_tensors
        grad = torch.ops.aten.tanh_backward(grad, out)
        z_grad, scale_grad, shift_grad = torch.ops.aten.native_batch_norm_backward(
            grad, z, scale, mean, var, used_mean, used_scale, ctx.is_large, _EPS, [True] * 3
        )
        weight_grad = _product(z_grad.t(), x.t())
        return _product(z_grad, weight.t()), weight_grad, scale_grad, shift_grad, None, None, None


class HiddenLayer(nn.Module):
    """tanh(BN(W x)); W has no bias, which BN would take away again.

    Args:
        inputs, outputs: of W.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor, *, track: bool) -> Tensor:  # [B, I] -> [B, O]
        norm = self.norm
        is_large = len(x) >= SMALLEST
        kept = (norm.running_mean, norm.running_var) if track or not is_large else (None, None)
        out: Tensor = _HiddenLayer.apply(
            x, self.linear.weight, norm.weight, norm.bias, *kept, is_large
        )
        return out


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = _tanh(x.clone())
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(grad, out)


def tanh(x: Tensor) -> Tensor:
    """tanh, to an error of 1e-7."""
    out: Tensor = _Tanh.apply(x)
    return out


class _Normalise(torch.autograd.Function):
    """(x - mean) * scale of each row's group, where mean and scale are functions of x.

    member [R, G] is 1 where a row belongs to a group; share [G, 1] is 1 / rows of the group, 0
    where mean and scale are the running ones, which x does not move.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, member: Tensor, mean: Tensor, scale: Tensor, share: Tensor
    ) -> Tensor:
        scales = member @ scale
        out = (x - member @ mean).mul_(scales)
        ctx.save_for_backward(out, member, scales, share)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, member, scales, share = ctx.saved_tensors
        through_mean = (member.T @ grad).mul_(share)
        through_scale = (member.T @ (grad * out)).mul_(share)
        inner = torch.addcmul(grad - member @ through_mean, out, member @ through_scale, value=-1)
        return inner.mul_(scales), None, None, None, None


def raise_to_width(
    x: Tensor,  # [B, D], zero-padded
    sizes: Tensor,  # [B]
    dims: Sequence[int],  # d_1 < ... < d_n = D
    maps: nn.ModuleList,  # of nn.Linear, d_k -> d_(k+1)
) -> Tensor:  # [B, D]
    """Rows of all sizes as vectors of one width: e_(k+1) = W_k e_k + b_k (Eq. 1).

    Rows of the smallest size go through the first map, then they and the rows of the second size
    through the second one, and so on; rows of the largest size are left as they are.

    Args:
        sizes: place of each row's dim in `dims`.
    """
    narrow = (sizes < len(maps)).nonzero()[:, 0]
    if not len(narrow):
        return x
    own = sizes[narrow]
    narrow = narrow[torch.argsort(own)]
    parts = x[narrow].split(torch.bincount(own, minlength=len(maps)).tolist())
    raised = parts[0][:, : dims[0]]
    for k, part in enumerate(parts):
        if k:
            raised = torch.cat([raised, part[:, : dims[k]]])
        raised = maps[k](raised)
    return x.index_copy(0, narrow, raised)


class GroupedBatchNorm(nn.Module):
    """Batch normalisation by the statistics of each row's group, without an affine part.

    Args:
        groups: G.
        width: D.

    Example:
        >>> norm = GroupedBatchNorm(2, 1)
        >>> x = torch.tensor([[0.0], [2.0]]).repeat(8, 1)
        >>> norm(torch.cat([x, 5 + 3 * x]), torch.arange(32) // 16, track=False)[[0, 1, 16, 17], 0]
        tensor([-1.0000,  1.0000, -1.0000,  1.0000])
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, groups: int, width: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(groups, width))
        self.register_buffer("running_var", torch.ones(groups, width))
        self.register_buffer("numbers", torch.arange(groups), persistent=False)

    numbers: Tensor

    def forward(self, x: Tensor, group: Tensor, *, track: bool) -> Tensor:  # [R, D] -> [R, D]
        """Normalised rows.

        Args:
            x: [R, D]
            group: of each row. [R]
            track: let the running statistics follow.
        """
        member = (group[:, None] == self.numbers).to(x.dtype)  # [R, G]
        with torch.no_grad():
            count = member.sum(0)[:, None]  # [G, 1]
            is_large = (count >= SMALLEST).to(x.dtype)
            share = is_large / count.clamp(min=1)  # [G, 1]
            mean = (member.T @ x).mul_(share)
            var = (member.T @ (x - member @ mean).square_()).mul_(share)  # [G, D]
            if track:
                rate = is_large * _MOMENTUM
                self.running_mean += rate * (mean - self.running_mean)
                unbiased = var * (count / (count - 1).clamp(min=1))
                self.running_var += rate * (unbiased - self.running_var)
            mean = torch.where(is_large > 0, mean, self.running_mean)
            var = torch.where(is_large > 0, var, self.running_var)
            scale = (var + _EPS).rsqrt_()
        out: Tensor = _Normalise.apply(x, member, mean, scale, share)
        return out


def batch_norm(x: Tensor, norm: nn.BatchNorm1d, *, track: bool) -> Tensor:
    """`norm` with the statistics of x where x has rows enough, else with the running ones.

    Args:
        x: [B, C]
        track: let the running statistics follow.
    """
    is_large = len(x) >= SMALLEST
    mean, var = norm.running_mean, norm.running_var
    if is_large and not track:
        mean = var = None
    return F.batch_norm(x, mean, var, norm.weight, norm.bias, is_large, _MOMENTUM, _EPS)


class SideNorm(nn.Module):
    """tanh(BN(x)) of unified rows; each side has its own affine part.

    Args:
        groups: of rows on each side whose statistics are apart.
        width: D.
    """

    def __init__(self, groups: int, width: int) -> None:
        super().__init__()
        self.norm = GroupedBatchNorm(2 * groups, width)
        self.weight = nn.Parameter(torch.ones(2, 1, width))
        self.bias = nn.Parameter(torch.zeros(2, 1, width))

    def forward(self, x: Tensor, group: Tensor, *, track: bool) -> Tensor:  # [2B, D] -> [2B, D]
        out = self.norm(x, group, track=track).view(2, -1, x.shape[1])
        return tanh(torch.addcmul(self.bias, out, self.weight)).view_as(x)


class Inference(nn.Module):
    """Logits of pairs from the vectors of both sides (Section 2.2).

    Args:
        width: of the vectors.
        hidden: outputs of the hidden layer.
        outputs: logits of a pair.
    """

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.pair_norm = nn.BatchNorm1d(2 * width)
        self.hidden = HiddenLayer(2 * width, hidden)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor, *, track: bool) -> Tensor:  # [2B, D] -> [B, O]
        users, items = x.chunk(2)
        pair = batch_norm(torch.cat([users, items], 1), self.pair_norm, track=track)
        logits: Tensor = self.out(self.hidden(pair, track=track))
        return logits


class Policy(nn.Module):
    """Logits of a row from how often it occurred and from its state (Section 2.3.3).

    q = BN(E[frequency]), logits = W2 tanh(BN(W1 [q; state])) + b2.

    DIFFERS: the embedding of frequencies ends at `most`, which stands for everything above; the
        published code sizes it by the largest frequency of the whole stream, which lies ahead.

    Args:
        states: numbers of a state, S.
        outputs: logits of a row.
        hidden: outputs of the hidden layer.
        most: largest frequency with an embedding of its own.
        width: numbers of an embedded frequency.
    """

    def __init__(self, states: int, outputs: int, hidden: int, most: int, width: int = 32) -> None:
        super().__init__()
        self.most = most
        self.frequency = nn.Embedding(most + 1, width)
        self.frequency_norm = nn.BatchNorm1d(width)
        self.hidden = HiddenLayer(width + states, hidden)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, frequency: Tensor, state: Tensor) -> Tensor:  # -> [B, outputs]
        """Logits.

        Args:
            frequency: occurrences so far. [B], int64
            state: [B, S]
        """
        embedded = self.frequency(frequency.clamp(max=self.most))
        q = batch_norm(embedded, self.frequency_norm, track=True)
        logits: Tensor = self.out(self.hidden(torch.cat([q, state], 1), track=True))
        return logits


def flat_parameter(module: nn.Module) -> nn.Parameter:
    """All parameters of a module as one, for an optimizer whose step costs per parameter.

    The parameters and their gradients become views of it and of its gradient, which must stay: zero
    it in place.
    """
    parameters = list(module.parameters())
    flat = nn.Parameter(torch.cat([each.detach().flatten() for each in parameters]))
    flat.grad = torch.zeros_like(flat)
    sizes = [each.numel() for each in parameters]
    both = zip(parameters, flat.data.split(sizes), flat.grad.split(sizes), strict=True)
    for parameter, numbers, gradient in both:
        parameter.data, parameter.grad = numbers.view_as(parameter), gradient.view_as(parameter)
    return flat
