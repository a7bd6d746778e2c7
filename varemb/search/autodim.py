"""AutoDim: one dim per field, found with a weight-sharing supernet and Gumbel-softmax.

X. Zhao et al., *AutoDim: Field-aware Embedding Dimension Search in Recommender Systems*, WWW 2021
(arXiv 2006.14827). This is the paper's AD-2: shared table, linear unification. For a batch, field m
and candidate n with d_n numbers:

    z_mn = X'_m[:, :d_n] W_mn                                   Eq. 1
    zhat_mn = (z_mn - mean(z_mn)) / sqrt(var(z_mn) + eps)       Eq. 2, over the batch, per channel
    p_m = softmax((log alpha_m + g_m) / tau),  alpha_m = softmax(theta_m),  g ~ Gumbel    Eq. 5, 6
    x_m = sum_n p_mn zhat_mn                                    Eq. 7

Warm-up with p = 1/N; then one step on theta with a validation batch, f steps on everything else
with training batches (Section 3.4, first order); then d_m = the candidate with the largest theta_m.
The retraining from new weights is `train_plan`.

DIFFERS: no bias b_mn during the search: Eq. 2 subtracts it again.
DIFFERS: tau falls linearly to `tau_floor` over the planned steps, not by 0.00005 a step: with fewer
    than 19,800 steps it would stay high and theta would not commit.
DIFFERS: Adam for both sets of parameters, theta's 30 times faster: at the paper's one learning rate
    of 0.001, alpha stays within 0.02 of equal on a million rows.
DIFFERS: `lambda_` adds a price of width, lambda_ / (F D) sum_m sum_n p_mn d_n, to the validation
    loss; 0 is the paper. Without one, a field whose candidates do equally well (gender has two
    values) takes a random width. The price is the same for every field, large or small.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varemb.nn import VarEmbedding
from varemb.plan import SizePlan
from varemb.search.base import Checkpoint, FieldData, MakeModel, SearchResult
from varemb.search.training import (
    evaluate,
    make_adam,
    seeded_from,
    show_progress,
    shuffled_batches,
    train_step,
)

_EPS, _MOMENTUM = 1e-5, 0.1  # of the batch normalisation


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class AutoDimConfig:
    """Settings of the search; the symbols are the paper's."""

    candidates: tuple[int, ...] = _option((2, 8, 16, 24, 32), "D: the dims to choose from")
    f: int = _option(10, "f: training batches per validation batch")
    warmup_epochs: int = _option(1, "epochs with equal alpha before the search")
    search_epochs: int = _option(3, "epochs of the search")
    batch_size: int = _option(2000, "rows of a batch")
    lr: float = _option(0.001, "learning rate of W")
    theta_lr: float = _option(0.03, "learning rate of alpha's logits theta")
    weight_decay: float = _option(1e-3, "L2 of the tables")
    tau_floor: float = _option(0.05, "tau at the end; it starts at 1")
    lambda_: float = _option(0.01, "price of the full width, in logloss; 0 in the paper")
    init_std: float = _option(0.01, "of the table's first numbers")
    seed: int = _option(0, "of all randomness")


def temperature(step: int, slope: float = 0.00005, floor: float = 0.01) -> float:
    """tau after some search steps; the defaults are the paper's.

    Example:
        >>> temperature(0), temperature(10_000), temperature(19_800)
        (1.0, 0.5, 0.01)
    """
    return max(floor, 1 - slope * step)


def gumbel_softmax(theta: Tensor, tau: float, generator: torch.Generator) -> Tensor:
    """Eq. 5 and 6: p [F, N] from logits theta [F, N], one draw per field and call."""
    uniform = torch.rand(theta.shape, generator=generator).clamp_min(torch.finfo().tiny)
    noise = -torch.log(-torch.log(uniform))
    return torch.softmax((torch.log_softmax(theta, 1) + noise) / tau, 1)


class Supernet(nn.Module):
    """Every field as the weighted sum of its candidates: Eq. 1, 2 and 7. [B, F] -> [B, F, D]

    Candidate n is the first d_n columns of one shared table. Eq. 2 and 7 are linear in z once mean
    and variance are known, and those follow from the D x D covariance C of the field's vectors
    e: mean(z) = mean(e) W and var(z) = diag(W^T C W). So the candidates are summed as matrices, and
    the batch is looked up once and multiplied once:

        x_m = (e - mean(e)) sum_n p_mn W_mn diag(1 / sqrt(var(z_mn) + eps))

    Args:
        cardinalities: rows of each field. [F]
        candidates: increasing dims d_n; the last is D. [N]

    Attributes:
        weight: W_mn in its first d_n rows; the rows below are never used. [F, D, N, D]
        p: weights of the candidates, set by the search. [F, N]
    """

    used: Tensor
    mean: Tensor
    var: Tensor

    def __init__(
        self, cardinalities: Sequence[int], candidates: Sequence[int], init_std: float
    ) -> None:
        super().__init__()
        fields, num, width = len(cardinalities), len(candidates), candidates[-1]
        self.table = VarEmbedding.for_fields(cardinalities, width)
        nn.init.normal_(self.table.weight, std=init_std)
        dims = torch.tensor(candidates)
        bounds = dims.rsqrt()[:, None]  # as nn.Linear(d_n, D)
        self.weight = nn.Parameter((torch.rand(fields, width, num, width) * 2 - 1) * bounds)
        inside = torch.arange(width)[:, None, None] < dims[:, None]  # [D, N, 1]
        self.register_buffer("used", inside.float(), persistent=False)
        self.register_buffer("mean", torch.zeros(fields, num * width))
        self.register_buffer("var", torch.ones(fields, num * width))
        self.p = torch.full((fields, num), 1 / num)

    def forward(self, ids: Tensor) -> Tensor:  # [B, F] -> [B, F, D]
        fields, width = self.weight.shape[:2]
        e = self.table(ids).transpose(0, 1)  # [F, B, D]
        w = (self.weight * self.used).flatten(2)  # [F, D, N * D]
        if self.training:
            center = e.mean(1, keepdim=True)  # [F, 1, D]
            e = e - center
            covariance = e.transpose(1, 2) @ e / e.shape[1]  # [F, D, D]
            mean, var = (center @ w).squeeze(1), (w * (covariance @ w)).sum(1)  # [F, N * D]
            with torch.no_grad():
                self.mean.lerp_(mean, _MOMENTUM)
                self.var.lerp_(var * (e.shape[1] / max(e.shape[1] - 1, 1)), _MOMENTUM)
            shift = torch.zeros(())
        else:
            mean, var = self.mean, self.var
            shift = self._weighted(-mean, var).view(fields, -1, width).sum(1, keepdim=True)
        mixed = self._weighted(w, var[:, None]).view(fields, width, -1, width).sum(2)  # [F, D, D]
        return (e @ mixed + shift).transpose(0, 1)

    def _weighted(self, z: Tensor, var: Tensor) -> Tensor:  # [F, ..., N * D], both
        p = self.p.repeat_interleave(self.weight.shape[1], 1)  # [F, N * D]
        return z * (p if z.dim() == 2 else p[:, None]) * torch.rsqrt(var + _EPS)


class AutoDim:
    """The search.

    Args:
        config: its settings.

    Example:
        >>> AutoDim(AutoDimConfig(candidates=(2, 4))).config.f
        10
    """

    def __init__(self, config: AutoDimConfig) -> None:
        self.config = config

    def fit(
        self,
        make_model: MakeModel,
        train: FieldData,
        valid: FieldData,
        *,
        progress: bool = True,
        checkpoint_dir: Path | None = None,
        resume: bool = False,
    ) -> SearchResult:
        """One dim per field.

        Args:
            make_model: builds a model around an embedding [B, F] -> [B, F, D].
            train: rows for everything but theta.
            valid: rows for theta; they also score the supernet.
            progress: show a bar per epoch.
            checkpoint_dir: folder of autodim.safetensors, written after every epoch.
            resume: continue from it; the result is the one of an uninterrupted run.

        Returns:
            The plan, a table per field, and the supernet's validation AUC.

        Raises:
            ValueError: settings that do not fit, or a damaged or foreign checkpoint.
            FloatingPointError: the loss is not finite.

        Deterministic: yes, from config.seed.
        """
        _check(self.config)
        run = _Run(self.config, make_model, train, valid)
        path = None if checkpoint_dir is None else Path(checkpoint_dir) / "autodim.safetensors"
        identity = {**asdict(self.config), "rows": [len(train.labels), len(valid.labels)]}
        file = Checkpoint(path, identity)
        state = file.load(resume=resume)
        if state is not None:
            run.load(state)
        for epoch in range(len(run.history) + 1, run.epochs + 1):
            run.run_epoch(epoch, progress=progress)
            file.save(run.state())
        dims = dict(zip(train.field_names, run.dims(), strict=True))
        rows = dict(zip(train.field_names, train.cardinalities, strict=True))
        plan = SizePlan.for_fields(rows, self.config.candidates[-1], dims)
        return SearchResult(plan, run.history[-1]["valid"]["auc"], run.history, run.seconds)


class _Run:
    """One search: the parameters, both optimizers, and an epoch in the paper's order."""

    def __init__(
        self, config: AutoDimConfig, make_model: MakeModel, train: FieldData, valid: FieldData
    ) -> None:
        self.config, self.train, self.valid = config, train, valid
        self.epochs = config.warmup_epochs + config.search_epochs
        self.generator = torch.Generator().manual_seed(config.seed)
        with seeded_from(self.generator):
            self.supernet = Supernet(train.cardinalities, config.candidates, config.init_std)
            self.model = make_model(self.supernet)
        self.theta = torch.zeros_like(self.supernet.p, requires_grad=True)  # alpha = 1/N
        self.weight_optimizer = make_adam(self.model, config.lr, config.weight_decay)
        self.theta_optimizer = torch.optim.Adam([self.theta], config.theta_lr)
        rows = len(train.labels)
        batches = rows // min(config.batch_size, rows)
        self.slope = (1 - config.tau_floor) / max(config.search_epochs * batches, 1)
        # Share of the numbers at full width that one column of a field costs.
        self.price = config.lambda_ / (len(train.cardinalities) * config.candidates[-1])
        self.candidates = torch.tensor(config.candidates, dtype=torch.float32)
        self.valid_batches: list[Tensor] = []
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, Any]] = []

    def run_epoch(self, epoch: int, *, progress: bool) -> None:
        """One pass over the training rows; theta moves once per f batches after the warm-up."""
        config, losses, start = self.config, [], time.perf_counter()
        is_search = epoch > config.warmup_epochs
        batches = shuffled_batches(len(self.train.labels), config.batch_size, self.generator)
        text = f"{'search' if is_search else 'warm-up'}, epoch {epoch} of {self.epochs}"
        self.model.train()
        with seeded_from(self.generator):
            for rows in show_progress(batches, text, progress=progress):
                if is_search:
                    tau = temperature(self.step, self.slope, config.tau_floor)
                    if self.step % config.f == 0:
                        self.update_theta(tau)
                    p = gumbel_softmax(self.theta.detach(), tau, self.generator)
                    self.supernet.p = p
                    self.step += 1
                losses.append(train_step(self.model, self.weight_optimizer, self.train, rows))
        alpha = torch.softmax(self.theta.detach(), 1)
        self.supernet.p = alpha
        self.seconds += time.perf_counter() - start
        self.history.append({
            "phase": "search" if is_search else "warmup",
            "epoch": epoch,
            "train_loss": sum(losses) / len(losses),
            "valid": evaluate(self.model, self.valid),
            "tau": temperature(self.step, self.slope, config.tau_floor),
            "dims": dict(zip(self.train.field_names, self.dims(), strict=True)),
            "alpha": dict(zip(self.train.field_names, alpha.tolist(), strict=True)),
        })  # fmt: skip

    def update_theta(self, tau: float) -> None:
        """One step on theta with the next validation batch; no other parameter sees a gradient."""
        if not self.valid_batches:
            self.valid_batches = shuffled_batches(
                len(self.valid.labels), self.config.batch_size, self.generator
            )
        rows = self.valid_batches.pop()
        p = gumbel_softmax(self.theta, tau, self.generator)
        self.supernet.p = p
        logits = self.model(self.valid.ids[rows])
        loss = F.binary_cross_entropy_with_logits(logits, self.valid.labels[rows])
        loss = loss + self.price * (p @ self.candidates).sum()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"search: the validation loss is {loss.item()}")
        (self.theta.grad,) = torch.autograd.grad(loss, self.theta)
        self.theta_optimizer.step()

    def dims(self) -> list[int]:
        """d_m = D[argmax_n theta_m]. [F]"""
        return [self.config.candidates[n] for n in self.theta.argmax(1).tolist()]

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "theta": self.theta.detach(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "theta_optimizer": self.theta_optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "valid_batches": self.valid_batches,
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.theta.data.copy_(state["theta"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.theta_optimizer.load_state_dict(state["theta_optimizer"])
        self.generator.set_state(state["generator"])
        self.valid_batches = state["valid_batches"]
        self.step, self.seconds = state["step"], state["seconds"]
        self.history = state["history"]


def _check(config: AutoDimConfig) -> None:
    candidates = config.candidates
    if not candidates or candidates[0] < 1 or sorted(set(candidates)) != list(candidates):
        raise ValueError(f"AutoDim: candidates must be positive and increasing, got {candidates}")
    for name in ("f", "batch_size", "search_epochs"):
        if getattr(config, name) < 1:
            raise ValueError(f"AutoDim: {name} must be at least 1, got {getattr(config, name)}")
    if not 0 < config.tau_floor <= 1:
        raise ValueError(f"AutoDim: tau_floor must be in (0, 1], got {config.tau_floor}")
