"""Forward of ``lookup_bag``, sum pooling: [L] indices in G bags to [G, D]."""

from __future__ import annotations

from functools import partial

from benchmarks import fbgemm, ours, peers, size_classes
from benchmarks.cases import Spec
from benchmarks.contenders import Block, Contender, Target, forward_of

OP = "lookup_bag"
TESTS = (OP,)
PADDED_TARGET = Target(1 / 1.2, "<= 1.2 x the time of padded nn.EmbeddingBag")
CLASSES_TARGET = Target(10.0, ">= 10 x size-class tables on FBGEMM")


def out_rows(spec: Spec) -> int:
    """Rows of the output: one per bag."""
    return spec.bags


def blocks() -> list[Block]:
    """VarEmbeddingBag against padded, masked and size-class tables."""
    padded_tbe = partial(fbgemm.padded_tbe, optimizer="sgd")
    class_tbe = partial(fbgemm.class_tbe, optimizer="sgd")
    class_tbe_sort = partial(class_tbe, by_sort=True)
    return [
        Block(
            Contender("VarEmbeddingBag", forward_of(ours.jagged_bag), "jagged"),
            (
                Contender(
                    "nn.EmbeddingBag padded",
                    forward_of(peers.padded_bag),
                    "padded",
                    target=PADDED_TARGET,
                ),
                Contender("FBGEMM TBE padded", forward_of(padded_tbe), "padded"),
                Contender(
                    "nn.Embedding padded, summed", forward_of(peers.summed_embedding), "padded"
                ),
                Contender("nn.Embedding x mask, summed", forward_of(peers.masked_bag), "masked"),
                Contender("six full nn.Embedding, summed", forward_of(peers.six_bags), "six"),
                Contender(
                    "size-class nn.EmbeddingBag (sort)",
                    forward_of(size_classes.class_bags),
                    "classes",
                ),
                Contender(
                    "size-class FBGEMM TBE (sort)",
                    forward_of(class_tbe_sort),
                    "classes",
                    target=CLASSES_TARGET,
                ),
                Contender(
                    "size-class FBGEMM TBE (bucketize)",
                    forward_of(class_tbe),
                    "classes",
                    target=CLASSES_TARGET,
                ),
            ),
        )
    ]
