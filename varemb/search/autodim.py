"""AutoDim: one dim per field, found with a weight-sharing supernet and Gumbel-softmax.

X. Zhao et al., *AutoDim: Field-aware Embedding Dimension Search in Recommender Systems*, WWW 2021
(arXiv 2006.14827). Field m is the weighted sum x_m = sum_n p_mn zhat_mn of its candidates (Eq. 1-4
and 7: `search/supernet.py`), with

    p_m = softmax((log alpha_m + g_m) / tau),  alpha_m = softmax(theta_m),  g ~ Gumbel    Eq. 5, 6

Warm-up with p = 1/N; then one step on theta with a validation batch, f steps on everything else
with training batches (Section 3.4, first order); then d_m = the candidate with the largest theta_m.
The retraining from new weights is `train_plan`. AutoDim-s (`joint`) has no validation batches:
theta moves with everything else, on training batches.

DIFFERS: no bias b_mn during the search: Eq. 2 subtracts it again.
DIFFERS: tau falls linearly to `tau_floor` over the planned steps, not by 0.00005 a step: with fewer
    than 19,800 steps it would stay high and theta would not commit.
DIFFERS: Adam for both sets of parameters, theta's 30 times faster: at the paper's one learning rate
    of 0.001, alpha stays within 0.02 of equal on a million rows.
DIFFERS: all epochs that were asked for are run; one may stop once no argmax changes.
DIFFERS: L2 of the tables, which the paper does not have and MovieLens 1M needs.
DIFFERS: `lambda_` adds a price of width, lambda_ / (F D) sum_m sum_n p_mn d_n, to theta's loss; 0
    is the paper. Without one, a field whose candidates do equally well (gender has two values)
    takes a random width. The price is the same for every field, large or small; `lambda_numbers`
    prices the table's numbers instead, lambda_numbers / (D sum_m V_m) sum_m V_m sum_n p_mn d_n.

The running mean and variance of Eq. 2 (and of a model's own batch normalisation) have seen the
inputs of theta's validation batches too; they decide no dim, only the supernet's reported score.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from varemb.plan import SizePlan
from varemb.search.base import FieldData, MakeModel, SearchResult
from varemb.search.epochs import open_checkpoint
from varemb.search.settings import (
    check_candidates,
    check_not_negative,
    check_positive,
    check_rates,
    check_share,
    option,
)
from varemb.search.supernet import VARIANTS, Supernet
from varemb.search.training import (
    evaluate,
    make_adam,
    seeded_from,
    show_progress,
    shuffled_batches,
    train_step,
)


@dataclass(frozen=True)
class AutoDimConfig:
    """Settings of the search; the symbols are the paper's."""

    candidates: tuple[int, ...] = option((2, 8, 16, 24, 32), "D: the dims to choose from")
    f: int = option(10, "f: training batches per validation batch")
    warmup_epochs: int = option(1, "epochs with equal alpha before the search")
    search_epochs: int = option(3, "epochs of the search")
    batch_size: int = option(2000, "rows of a batch")
    lr: float = option(0.001, "learning rate of W")
    theta_lr: float = option(0.03, "learning rate of alpha's logits theta")
    weight_decay: float = option(1e-3, "L2 of the tables")
    tau_floor: float = option(0.05, "tau at the end; it starts at 1")
    lambda_: float = option(0.01, "price of the full width, in logloss; 0 in the paper")
    lambda_numbers: float = option(0.0, "price of all the table's numbers, in logloss")
    variant: str = option(
        "ad-2", "ad-1, ad-2 shared table, ad-3, ad-4 separate; odd pad, even linear"
    )
    joint: bool = option(False, "AutoDim-s: theta moves with the weights, on training batches")
    init_std: float = option(0.01, "of the table's first numbers")
    seed: int = option(0, "of all randomness")


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


class AutoDim:
    """AutoDim (X. Zhao et al., WWW 2021): one dim per field, by weight sharing and Gumbel-softmax.

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
        check_autodim(self.config)
        run = _Run(self.config, make_model, train, valid)
        file = open_checkpoint(checkpoint_dir, "autodim", self.config, train, valid)
        state = file.load(resume=resume)
        if state is not None:
            run.load(state)
            del state  # and with it a second copy of the weights
        for epoch in range(len(run.history) + 1, run.epochs + 1):
            run.run_epoch(epoch, progress=progress)
            file.save(run.state())
        dims = dict(zip(train.field_names, run.dims(), strict=True))
        rows = dict(zip(train.field_names, train.cardinalities, strict=True))
        plan = SizePlan.for_fields(rows, self.config.candidates[-1], dims)
        score, unify = run.history[-1]["valid"]["auc"], VARIANTS[self.config.variant][1]
        return SearchResult(plan, score, run.history, run.seconds, unify=unify)


class _Run:
    """One search: the parameters, both optimizers, and an epoch in the paper's order."""

    def __init__(
        self, config: AutoDimConfig, make_model: MakeModel, train: FieldData, valid: FieldData
    ) -> None:
        self.config, self.train, self.valid = config, train, valid
        self.epochs = config.warmup_epochs + config.search_epochs
        self.generator = torch.Generator().manual_seed(config.seed)
        with seeded_from(self.generator):
            self.supernet = Supernet(
                train.cardinalities, config.candidates, config.init_std, config.variant
            )
            self.model = make_model(self.supernet)
        self.theta = torch.zeros_like(self.supernet.p, requires_grad=True)  # alpha = 1/N
        self.weight_optimizer = make_adam(self.model, config.lr, config.weight_decay)
        self.theta_optimizer = torch.optim.Adam([self.theta], config.theta_lr)
        rows = len(train.labels)
        batches = rows // min(config.batch_size, rows)
        self.slope = (1 - config.tau_floor) / max(config.search_epochs * batches, 1)
        # What one column of each field costs. [F]
        rows_of, width = (
            torch.tensor(train.cardinalities, dtype=torch.float32),
            config.candidates[-1],
        )
        self.prices = config.lambda_numbers * rows_of / (rows_of.sum() * width)
        self.prices += config.lambda_ / (len(rows_of) * width)
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
                    if config.joint:
                        self.set_p(self.theta, tau)
                        self.theta.grad = torch.autograd.grad(
                            self.cost(), self.theta, retain_graph=True
                        )[0]
                    else:
                        if self.step % config.f == 0:
                            self.update_theta(tau)
                        self.set_p(self.theta.detach(), tau)
                    self.step += 1
                losses.append(train_step(self.model, self.weight_optimizer, self.train, rows))
                if is_search and config.joint:
                    self.theta_optimizer.step()  # with the gradient of that step's loss too
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

    def set_p(self, theta: Tensor, tau: float) -> None:
        """Draws the weights of the candidates for the next forward."""
        self.supernet.p = gumbel_softmax(theta, tau, self.generator)

    def cost(self) -> Tensor:
        """The price of the expected widths."""
        return self.prices @ (self.supernet.p @ self.candidates)

    def update_theta(self, tau: float) -> None:
        """One step on theta with the next validation batch; no other parameter sees a gradient."""
        if not self.valid_batches:
            self.valid_batches = shuffled_batches(
                len(self.valid.labels), self.config.batch_size, self.generator
            )
        rows = self.valid_batches.pop()
        self.set_p(self.theta, tau)
        logits = self.model(self.valid.ids[rows])
        loss = F.binary_cross_entropy_with_logits(logits, self.valid.labels[rows]) + self.cost()
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


def check_autodim(config: AutoDimConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_candidates("AutoDim", config.candidates)
    check_positive("AutoDim", config, "f", "batch_size", "search_epochs")
    check_not_negative("AutoDim", config, "warmup_epochs")
    if config.variant not in VARIANTS:
        raise ValueError(f"AutoDim: variant must be {', '.join(VARIANTS)}, got {config.variant!r}")
    check_share("AutoDim", config, "tau_floor")
    check_rates("AutoDim", config)
