"""A training step of a pooled table: forward, backward from a given gradient, optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks import fbgemm, ours, peers, size_classes
from benchmarks.cases import Case, Spec
from benchmarks.contenders import Block, Contender, Target, output_grad
from benchmarks.peers import MakeOptimizer, step_runner
from benchmarks.timing import Runner

Step = Callable[[Case], Runner]

OP = "update"
TESTS = (OP,)
ADAM_TARGET = Target(10.0, ">= 10 x nn.EmbeddingBag(sparse=True) + SparseAdam")
TORCH_TARGET = Target(10.0, ">= 10 x nn.EmbeddingBag + torch optimizer")
TBE_TARGET = Target(1.5, ">= 1.5 x padded FBGEMM TBE")


def out_rows(spec: Spec) -> int:
    """Rows of the output: one per bag."""
    return spec.bags


def blocks() -> list[Block]:
    """VarEmbeddingBag with each fused optimizer, against what trains the same table otherwise."""
    return [
        _block("rowwise_adagrad", peers.torch_adagrad, "Adagrad", TORCH_TARGET, TBE_TARGET),
        _block("adam", peers.torch_sparse_adam, "SparseAdam", ADAM_TARGET),
        _block("adagrad", peers.torch_adagrad, "Adagrad"),
        _block("sgd", peers.torch_sgd, "SGD"),
    ]


def _block(
    optimizer: str,
    make: MakeOptimizer,
    torch_name: str,
    torch_target: Target | None = None,
    tbe_target: Target | None = None,
) -> Block:
    """Ours with one optimizer beside torch's nearest one and FBGEMM's of the same name."""
    # torch has no row-wise Adagrad; the one it is compared with keeps a number of state per number.
    torch_state = "adagrad" if optimizer == "rowwise_adagrad" else optimizer

    def with_torch(
        name: str, build: peers.Build, layout: str = "padded", target: Target | None = None
    ) -> Contender:
        words = f"{name} + {torch_name}"
        return Contender(words, torch_step(build, make), layout, torch_state, target)

    def with_tbe(
        name: str, build: peers.Build, layout: str, target: Target | None = None
    ) -> Contender:
        return Contender(f"{name} {optimizer}", tbe_step(build), layout, optimizer, target)

    padded_tbe = partial(fbgemm.padded_tbe, optimizer=optimizer)
    class_tbe = partial(fbgemm.class_tbe, optimizer=optimizer)
    others = [
        with_torch("nn.EmbeddingBag", peers.padded_bag, target=torch_target),
        with_torch("nn.Embedding, summed", peers.summed_embedding),
        with_tbe("FBGEMM TBE padded", padded_tbe, "padded", tbe_target),
        with_torch("nn.Embedding x mask", peers.masked_bag, "masked"),
        with_torch("six full nn.Embedding", peers.six_bags, "six"),
        with_torch("size-class nn.EmbeddingBag", size_classes.class_bags, "classes"),
        with_tbe("size-class FBGEMM TBE", class_tbe, "classes"),
    ]
    if optimizer == "adam":
        dense = torch_step(peers.dense_bag, peers.torch_adam)
        others.append(Contender("dense nn.EmbeddingBag + Adam", dense, "padded", optimizer))
    ours = Contender(f"VarEmbeddingBag fused {optimizer}", our_step(optimizer), "jagged", optimizer)
    return Block(ours, tuple(others))


def our_step(optimizer: str) -> Step:
    """Builds a step of our pooled table with a fused optimizer."""

    def build(case: Case) -> Runner:
        lookup = ours.jagged_bag(case)
        return step_runner(lookup, [ours.fused_optimizer(lookup, optimizer)], output_grad(case))

    return build


def torch_step(build: peers.Build, make: MakeOptimizer) -> Step:
    """Builds a step of a peer whose gradients an optimizer of torch applies."""

    def run(case: Case) -> Runner:
        lookup = build(case)
        return step_runner(lookup, [make(lookup.trained)], output_grad(case))

    return run


def tbe_step(build: peers.Build) -> Step:
    """FBGEMM's backward applies the optimizer, so nothing is left to do after it."""
    return lambda case: step_runner(build(case), [], output_grad(case))
