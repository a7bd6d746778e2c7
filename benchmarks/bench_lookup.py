"""Forward of ``lookup``, sequence mode: [L] indices to [L, D]."""

from __future__ import annotations

from functools import partial

from benchmarks import fbgemm, ours, peers, size_classes
from benchmarks.cases import Spec
from benchmarks.contenders import Block, Contender, Target, forward_of

OP = "lookup"
TESTS = (OP,)
TARGET = Target(1.3, ">= 1.3 x padded nn.Embedding")


def out_rows(spec: Spec) -> int:
    """Rows of the output: one per lookup."""
    return spec.lookups


def blocks() -> list[Block]:
    """VarEmbedding against padded, masked and size-class tables."""
    padded_tbe = partial(fbgemm.padded_tbe, optimizer="sgd", is_pooled=False)
    class_tbe = partial(fbgemm.class_tbe, optimizer="sgd", is_pooled=False)
    return [
        Block(
            Contender("VarEmbedding", forward_of(ours.jagged_embedding), "jagged"),
            (
                Contender(
                    "nn.Embedding padded",
                    forward_of(peers.padded_embedding),
                    "padded",
                    target=TARGET,
                ),
                Contender("FBGEMM TBE padded", forward_of(padded_tbe), "padded"),
                Contender("nn.Embedding x mask", forward_of(peers.masked_embedding), "masked"),
                Contender("six full nn.Embedding", forward_of(peers.six_embeddings), "six"),
                Contender(
                    "size-class nn.Embedding", forward_of(size_classes.class_embeddings), "classes"
                ),
                Contender("size-class FBGEMM TBE", forward_of(class_tbe), "classes"),
            ),
        )
    ]
