"""What a call costs before any row is read: lookups and steps of one index in one bag."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks import fbgemm, ours, peers
from benchmarks.bench_update import Step, our_step, tbe_step, torch_step
from benchmarks.cases import Batch, Case, Spec
from benchmarks.contenders import Block, Contender
from benchmarks.peers import Build, MakeOptimizer
from benchmarks.timing import Runner, run_once

OP = "overhead"
TESTS = ("lookup", "lookup_bag", "update")
CALLS = 100  # in a row: a single call takes a few microseconds, and the first of them more


def out_rows(spec: Spec) -> int:
    """Rows of the output: one per bag."""
    return spec.bags


def blocks() -> list[Block]:
    """Our modules beside those of torch and FBGEMM that have least to do."""
    sequence_tbe = partial(fbgemm.padded_tbe, optimizer="sgd", is_pooled=False)
    bag_tbe = partial(fbgemm.padded_tbe, optimizer="sgd")
    return [
        *(
            Block(
                Contender(f"{name}, 1 index, {words}", _forward(build, has_grad), "jagged"),
                (
                    Contender(torch_name, _forward(torch_build, has_grad), "padded"),
                    Contender("FBGEMM TBE", _forward(tbe, has_grad), "padded"),
                ),
            )
            for name, build, torch_name, torch_build, tbe in (
                (
                    "VarEmbedding", ours.jagged_embedding,
                    "nn.Embedding", peers.padded_embedding, sequence_tbe,
                ),
                (
                    "VarEmbeddingBag", ours.jagged_bag,
                    "nn.EmbeddingBag", peers.padded_bag, bag_tbe,
                ),
            )
            for has_grad, words in ((False, "no_grad"), (True, "with grad"))
        ),
        _step_block("sgd", peers.torch_sgd, "SGD"),
        _step_block("rowwise_adagrad", peers.torch_adagrad, "Adagrad"),
        _step_block("adam", peers.torch_sparse_adam, "SparseAdam"),
    ]  # fmt: skip


def _step_block(optimizer: str, make: MakeOptimizer, torch_name: str) -> Block:
    torch_state = "adagrad" if optimizer == "rowwise_adagrad" else optimizer
    tbe = tbe_step(partial(fbgemm.padded_tbe, optimizer=optimizer))
    name = f"VarEmbeddingBag, 1 index, fused {optimizer}"
    return Block(
        Contender(name, _repeated(our_step(optimizer)), "jagged", optimizer),
        (
            Contender(
                f"nn.EmbeddingBag + {torch_name}",
                _repeated(torch_step(peers.padded_bag, make)),
                "padded",
                torch_state,
            ),
            Contender(f"FBGEMM TBE {optimizer}", _repeated(tbe), "padded", optimizer),
        ),
    )


def _forward(build: Build, has_grad: bool) -> Callable[[Case], Runner]:
    """Builds a runner of many forwards; no_grad is entered once for all of them."""

    def run(case: Case) -> Runner:
        lookup = build(case)

        def forward(batch: Batch) -> None:
            with torch.set_grad_enabled(has_grad):
                for _ in range(CALLS):
                    lookup.call(batch)

        return Runner((("forward", forward),), lookup.tensors, lambda: None, CALLS)

    return run


def _repeated(build: Step) -> Step:
    """Builds a runner of many steps, whose parts are too short to be timed apart."""

    def run(case: Case) -> Runner:
        once = build(case)

        def step(batch: Batch) -> None:
            for _ in range(CALLS):
                run_once(once, batch)

        return Runner((("step", step),), once.tensors, once.cleanup, CALLS)

    return run
