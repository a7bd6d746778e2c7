"""from_pretrained: the numbers of a dense table, and the options of its module."""

import pytest
import torch
from torch import nn

from varemb import VarEmbedding, VarEmbeddingBag
from varemb.testing import assert_agree


def test_options_of_an_embedding_are_kept():
    table = VarEmbedding.from_pretrained(nn.Embedding(12, 6, padding_idx=2, sparse=True), False)
    assert table.padding_idx == 2 and table.sparse
    table(torch.tensor([1, 2])).sum().backward()
    assert table.weight.grad.is_sparse and table.weight.grad.to_dense().view(12, 6)[2].sum() == 0


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_options_of_an_embedding_bag_are_kept(mode):
    theirs = nn.EmbeddingBag(12, 6, mode=mode, padding_idx=2, include_last_offset=True)
    ours = VarEmbeddingBag.from_pretrained(theirs)
    call = (torch.tensor([0, 2, 5, 2, 7]), torch.tensor([0, 3, 5]))
    assert_agree(ours(*call), theirs(*call))
    assert VarEmbeddingBag.from_pretrained(nn.EmbeddingBag(3, 2, sparse=True)).sparse


def test_a_given_option_wins_and_a_weight_has_none():
    bag = nn.EmbeddingBag(12, 6, mode="sum", padding_idx=2, sparse=True, include_last_offset=True)
    ours = VarEmbeddingBag.from_pretrained(
        bag, mode="max", padding_idx=0, sparse=False, include_last_offset=False
    )
    assert (ours.mode, ours.padding_idx, ours.sparse) == ("max", 0, False)
    assert not ours.include_last_offset
    ours = VarEmbeddingBag.from_pretrained(bag.weight)
    assert (ours.mode, ours.padding_idx, ours.sparse) == ("mean", None, False)
    table = nn.Embedding(12, 6, padding_idx=2, sparse=True)
    assert VarEmbedding.from_pretrained(table, padding_idx=-1).padding_idx == 11
    assert VarEmbedding.from_pretrained(table.weight).padding_idx is None


@pytest.mark.parametrize(
    ("ours", "theirs"), [(VarEmbedding, nn.Embedding), (VarEmbeddingBag, nn.EmbeddingBag)]
)
def test_from_pretrained_refuses_what_it_cannot_keep(ours, theirs):
    name = f"{ours.__name__}.from_pretrained: embeddings must be"
    for module in (nn.ReLU(), nn.Linear(6, 12), ours(12, 6), [[1.0]]):
        found = type(module).__name__
        with pytest.raises(
            TypeError, match=rf"^{name} a tensor .* nn.{theirs.__name__}, got {found}"
        ):
            ours.from_pretrained(module)
    with pytest.raises(ValueError, match=rf"^{name} \[N, D\], got shape \[12\]"):
        ours.from_pretrained(torch.zeros(12))
    with pytest.raises(ValueError, match="max_norm and norm_type are not supported"):
        ours.from_pretrained(theirs(12, 6, max_norm=1.0))
    with pytest.raises(ValueError, match="scale_grad_by_freq is not supported"):
        ours.from_pretrained(theirs(12, 6, scale_grad_by_freq=True))
    own = type("Scaled", (theirs,), {"forward": lambda self, *args: 3})(12, 6)
    with pytest.raises(ValueError, match="got a Scaled with a forward of its own"):
        ours.from_pretrained(own)
    assert ours.from_pretrained(own.weight).num_embeddings == 12
    nn.utils.parametrizations.weight_norm(plain := theirs(12, 6))
    with pytest.raises(ValueError, match="got a parametrized one"):
        ours.from_pretrained(plain)


@pytest.mark.parametrize("hook", [
    lambda module: module.register_forward_hook(lambda *_: None),
    lambda module: module.register_forward_pre_hook(lambda *_: None),
    lambda module: module.register_full_backward_hook(lambda *_: None),
    lambda module: module.register_full_backward_pre_hook(lambda *_: None),
    lambda module: module.weight.register_hook(lambda grad: grad),
    nn.utils.spectral_norm,
])  # fmt: skip
def test_from_pretrained_refuses_hooks(hook):
    hook(module := nn.Embedding(12, 6))
    with pytest.raises(ValueError, match=r"must have no hooks, .* got [1-3]$"):
        VarEmbedding.from_pretrained(module)
