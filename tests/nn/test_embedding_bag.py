"""VarEmbeddingBag: torch's module when dims are equal."""

import pytest
import torch
from torch import nn

from varemb import VarEmbeddingBag
from varemb.testing import assert_agree, dims_of, runnable_backends

DIMS = dims_of("uniform", 50, 8)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("two_dimensional", [False, True])
def test_equal_dims_are_nn_embedding_bag(mode, two_dimensional):
    theirs = nn.EmbeddingBag(50, 8, mode=mode, padding_idx=3)
    ours = VarEmbeddingBag.from_pretrained(theirs, freeze=False, mode=mode, padding_idx=3)
    if two_dimensional:
        call = (torch.randint(0, 50, (6, 7)),)
    else:
        call = (torch.randint(0, 50, (42,)), torch.tensor([0, 5, 5, 20]))
    assert_agree(ours(*call), theirs(*call))
    grad = torch.randn(ours(*call).shape)
    ours(*call).backward(grad)
    theirs(*call).backward(grad)
    assert_agree(ours.weight.grad.view(50, 8), theirs.weight.grad)


def test_per_sample_weights_of_two_dimensional_input():
    bag = VarEmbeddingBag(50, 8, mode="sum", dims=DIMS)
    input, weights = torch.randint(0, 50, (6, 7)), torch.rand(6, 7)
    expected = (bag.to_dense()[input] * weights[..., None]).sum(1)
    assert_agree(bag(input, per_sample_weights=weights), expected)


def test_what_goes_with_each_index_must_have_the_shape_of_the_indices():
    bag = VarEmbeddingBag(50, 8, mode="sum", dims=DIMS)
    input, flat = torch.randint(0, 50, (4, 5)), torch.randint(0, 50, (4,))
    message = (
        r"^lookup_bag: per_sample_weights must have the shape of indices \[4, 5\], got \[5, 4\]"
    )
    with pytest.raises(ValueError, match=message):
        bag(input, per_sample_weights=torch.rand(5, 4))
    with pytest.raises(ValueError, match=r"of indices \[4\], got \[2, 2\]"):
        bag(flat, torch.tensor([0, 2]), torch.rand(2, 2))
    with pytest.raises(ValueError, match=r"^lookup_bag: limit must have the shape .* got \[20\]"):
        bag(input, limit=torch.ones(20, dtype=torch.int32))
    limit = torch.randint(0, 9, (4, 5))
    assert torch.equal(bag(input, limit=limit)[1], bag(input[1:2], limit=limit[1:2])[0])


@pytest.mark.parametrize("backend", runnable_backends())
@pytest.mark.parametrize("include_last_offset", [False, True])
def test_offsets_may_be_of_another_int_than_the_indices(backend, include_last_offset):
    bag = VarEmbeddingBag(
        50, 8, dims=DIMS, include_last_offset=include_last_offset, backend=backend
    )
    input, offsets = torch.randint(0, 50, (42,)), torch.tensor([0, 5, 5, 20, 42])
    offsets = offsets if include_last_offset else offsets[:-1]
    expected = bag(input, offsets)
    assert torch.equal(bag(input, offsets.int()), expected)
    assert torch.equal(bag(input.int(), offsets), expected)
    # 2^32 + 5 would be 5 in 32 bits.
    with pytest.raises(ValueError, match="offsets"):
        bag(input.int(), offsets + torch.tensor(2**32) * (offsets == 5))
    with pytest.raises(ValueError, match=r"offsets must have the dtype of indices torch\.int64"):
        bag(input, offsets.float())


def test_refuses_calls_and_options_by_name():
    bag = VarEmbeddingBag(50, 8)
    with pytest.raises(ValueError, match=r"offsets must be None for input \[G, P\]"):
        bag(torch.zeros(2, 2, dtype=torch.int64), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"or \[L\] with offsets"):
        bag(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="mode must be sum, mean or max, got 'min'"):
        VarEmbeddingBag(50, 8, mode="min")
    with pytest.raises(ValueError, match="_weight is not supported"):
        VarEmbeddingBag(50, 8, _weight=torch.zeros(50, 8))
    with pytest.raises(ValueError, match="unify must be 'pad'"):
        VarEmbeddingBag(50, 8, unify="linear")


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_compile_fullgraph(mode):
    torch._dynamo.reset()
    bag = VarEmbeddingBag(50, 8, mode=mode, dims=DIMS)
    input, offsets = torch.randint(0, 50, (42,)), torch.tensor([0, 5, 5, 20])
    expected = bag(input, offsets)
    expected.square().sum().backward()
    grad = bag.weight.grad.clone()
    bag.zero_grad()
    out = torch.compile(bag, fullgraph=True, backend="aot_eager")(input, offsets)
    out.square().sum().backward()
    assert_agree(out, expected)
    assert_agree(bag.weight.grad, grad)
