"""Stochastic rounding: the random words, the two rules, and the same bits in every backend."""

import pytest
import torch
from ops.cases import CASES

from varemb.ops import coalesce, reference, update_
from varemb.ops.backend import namespace
from varemb.ops.reference.rounding import random_words, round_stochastically
from varemb.ops.update import ALGORITHMS
from varemb.testing import assert_agree, make_table, runnable_backends

BACKENDS = runnable_backends()
HALVES = [torch.float16, torch.bfloat16]
ROUNDING = torch.tensor([(3 << 33) + 11, (5 << 34) + 2])
# Explicit bits of the significand, and the exponent of the smallest normal number.
FORMATS = {torch.float16: (10, -14), torch.bfloat16: (7, -126)}


def gap_at(numbers, dtype):  # [n] float64
    """How far apart the numbers of a format stand."""
    bits, smallest = FORMATS[dtype]
    exponent = numbers.double().abs().clamp(min=2.0**smallest).log2().floor()
    return 2.0 ** (exponent - bits)


def rounded(numbers, dtype, rounding=ROUNDING):
    return round_stochastically(numbers, torch.arange(numbers.numel()), rounding, dtype)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, words):
    """The test vectors of Random123 for philox4x32, 10 rounds."""
    numbers = [torch.tensor([int(word, 16) for word in t.split()]) for t in (counter, key, words)]
    assert torch.equal(reference.philox(numbers[0][None], numbers[1])[0], numbers[2])


def test_a_word_is_that_of_its_place_seed_and_offset():
    """Halves of 64-bit numbers go to words of their own: counter 2^33 + 1, seed -1, offset 2^32."""
    position = 4 * ((1 << 33) + 1) + 3
    word = random_words(torch.tensor([position]), torch.tensor([-1, 1 << 32]))
    ones = (1 << 32) - 1
    expected = reference.philox(torch.tensor([[1, 2, 0, 1]]), torch.tensor([ones, ones]))[0, 3]
    assert word.tolist() == [int(expected)]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("start", [1.0, -1.9, 3e-3, -7e-5, 5e-7, 2e-8, 2.0**-14 * (1 - 1e-6)])
@pytest.mark.parametrize("rounding", [ROUNDING, torch.tensor([0, 0]), torch.tensor([0, 1])])
def test_rounding_goes_to_a_neighbour_and_has_the_right_mean(dtype, start, rounding):
    count, sigmas = 1 << 16, 5
    number = torch.tensor(start)
    out = rounded(number.expand(count).clone(), dtype, rounding).double()
    gap = gap_at(number, dtype)
    below = (number.double().abs() / gap).floor() * gap
    chance = (number.double().abs() - below) / gap
    up = (out.abs() - below) / gap
    assert set(up.tolist()) <= {0.0, 1.0} and bool((out.sign() * start >= 0).all())
    sigma = (chance * (1 - chance) / count).sqrt()
    assert (up.mean() - chance).abs() <= sigmas * sigma


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rounding_never_changes_what_the_format_holds(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    for offset in range(20):
        out = rounded(every.float(), dtype, torch.tensor([1, offset]))
        assert torch.equal(out.isnan(), every.isnan())
        held = ~every.isnan()
        assert torch.equal(out[held].view(torch.int16), every[held].view(torch.int16))


def test_rounding_past_the_largest_float16():
    """Numbers past 65504 stand 32 apart too: 65520 goes to 65504 or to infinity, half and half."""
    out = rounded(torch.full((4096,), 65520.0), torch.float16)
    assert set(out.tolist()) == {65504.0, float("inf")}
    assert abs(out.isinf().double().mean() - 0.5) < 5 * 0.5 / 64
    assert rounded(torch.tensor([1e6, -1e6, -3e38]), torch.float16).tolist() == [
        float("inf"), float("-inf"), float("-inf"),
    ]  # fmt: skip


def tricky_numbers(dtype):
    """16-bit numbers of every kind: all exponents, subnormals, zeros, largest, inf and NaN."""
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**15), 2**15, (4096,), generator=generator, dtype=torch.int16)
    special = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 2.0**-14, -(2.0**-14)]
    largest = torch.finfo(dtype).max
    ends = torch.tensor([*special, largest, -largest, 1.0, -1.0]).to(dtype)
    return torch.cat([bits.view(dtype), ends])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("dim", [1, 3, 5, 64])
def test_rounding_in_update_agrees_bit_for_bit(dtype, dim):
    """p - 2^-9 g is exact but for one rounding, so every backend has the same number to round."""
    numbers = tricky_numbers(dtype)
    rows = numbers.numel() // dim
    numbers = numbers[-rows * dim :]
    grads = torch.cat([numbers[1:], numbers[:1]])
    near = -(numbers.float() * 2).to(dtype)  # subtracted, it reaches a little past p
    results = []
    for backend in BACKENDS:
        for grad in (grads, near):
            table = make_table(torch.full((rows,), dim), dim, dtype)
            hyper = torch.tensor([2.0**-9, 0, 0, 0, 0, 1], dtype=torch.float64)
            jagged = torch.sparse_coo_tensor(torch.arange(rows * dim)[None], grad, (rows * dim,))
            with torch.no_grad():
                table.values.copy_(numbers)
                update_(
                    table.values, None, None, hyper, ROUNDING, table.rows, jagged, algorithm=0,
                    backend=backend,
                )  # fmt: skip
            results.append(table.values.detach())
    for case in (0, 1):
        expected = results[len(results) - 2 + case]
        held = ~expected.isnan()
        for got in results[case::2]:
            assert torch.equal(got.isnan(), expected.isnan())
            assert torch.equal(got[held].view(torch.int16), expected[held].view(torch.int16))
        assert not torch.equal(expected[held], numbers[held])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("offset", "place", "is_up"), [(953603, 2, True), (215293, 1, False)])
def test_rounding_with_the_smallest_and_the_largest_word(backend, offset, place, is_up):
    """With seed 0, these places have words whose low 24 bits are all zeros and all ones."""
    rounding = torch.tensor([0, offset])
    word = random_words(torch.tensor([place]), rounding).item() & 0xFFFFFF
    assert word == (0 if is_up else 0xFFFFFF)
    hyper = torch.tensor([2.0**-9, 0, 0, 0, 0, 1], dtype=torch.float64)
    for gradient in (0.0, -(2.0**-24)):  # 3 steps of 2^-24, then 2^-9 of a step more
        table = make_table(torch.tensor([4]), 4, torch.float16)
        grad = torch.full((4,), gradient, dtype=torch.float16)
        jagged = torch.sparse_coo_tensor(torch.arange(4)[None], grad, (4,))
        with torch.no_grad():
            table.values.fill_(3 * 2.0**-24)
            update_(
                table.values, None, None, hyper, rounding, table.rows, jagged, algorithm=0,
                backend=backend,
            )  # fmt: skip
        steps = table.values[place].item() * 2.0**24
        assert steps == (4 if gradient and is_up else 3)


def one_step(backend, dtype, name, algorithm, rounding, lr=2.0**-12, decay=0.0):
    """Values and state after coalesce, update_ and after coalesce_update_."""
    dims, width, indices = CASES[name]
    table = make_table(dims, width, dtype)
    rows, ops = table.rows, namespace(backend)
    hyper = torch.tensor([lr, decay, 1e-8, 0.9, 0.999, 3.0], dtype=torch.float64)
    size = rows.num_rows if algorithm == "row_wise_adagrad" else rows.numbers
    torch.manual_seed(2)
    first = None if algorithm == "sgd" else torch.rand(size)
    second = torch.rand(rows.numbers) if algorithm == "adam" else None
    block = torch.randint(-1, 2, (indices.numel(), width)).to(dtype)
    results = []
    for is_fused in (False, True):
        values = table.values.detach().clone()
        state = [None if t is None else t.clone() for t in (first, second)]
        if is_fused:
            looked_up = (block, rows.index, indices, *[None] * 4, rows.num_rows, rows.granule)
            options = (0, -1, False, ALGORITHMS[algorithm])
            ops.coalesce_update_(values, *state, hyper, rounding, *looked_up, *options)
        else:
            positions, numbers = coalesce(block, rows, indices, backend="reference")
            grad = torch.sparse_coo_tensor(positions[None], numbers, (rows.numbers,))
            update_(
                values, *state, hyper, rounding, rows, grad, algorithm=ALGORITHMS[algorithm],
                backend=backend,
            )  # fmt: skip
        results.append([values, *(t for t in state if t is not None)])
    return results


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ["odd_width", "skewed_dims", "wide", "dim_one", "no_indices"])
def test_rounding_of_whole_steps_agrees_bit_for_bit(dtype, name):
    """Gradients are small whole numbers, whose sums all backends and both forms have exactly."""
    results = [one_step(b, dtype, name, "sgd", ROUNDING) for b in BACKENDS]
    for separate, fused in results:
        assert torch.equal(separate[0], results[-1][0][0])
        assert torch.equal(fused[0], results[-1][0][0])
    if CASES[name].indices.numel():
        other = one_step("reference", dtype, name, "sgd", ROUNDING + torch.tensor([0, 1]))
        assert not torch.equal(other[0][0], results[-1][0][0])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rounding_of_every_rule_agrees(dtype, algorithm):
    results = [
        one_step(b, dtype, "odd_width", algorithm, ROUNDING, lr=0.1, decay=0.01) for b in BACKENDS
    ]
    nearest = one_step("reference", dtype, "odd_width", algorithm, None, lr=0.1, decay=0.01)
    assert not torch.equal(nearest[0][0], results[-1][0][0])
    for result in results:
        for form, expected in zip(result, results[-1], strict=True):
            for got, wanted in zip(form, expected, strict=True):
                assert_agree(got, wanted, dtype=dtype)
    for state, expected in zip(results[-1][0][1:], nearest[0][1:], strict=True):
        assert torch.equal(state, expected)  # rounding is for the values alone


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rounding_does_not_depend_on_the_number_of_threads(dtype):
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(one_step(BACKENDS[0], dtype, "skewed_dims", "adam", ROUNDING))
    torch.set_num_threads(before)
    for result in results[1:]:
        for form, expected in zip(result, results[0], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(form, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rounding_refuses_rows_of_more_than_16_bits(backend, dtype):
    table = make_table(torch.tensor([2, 3]), 3, dtype)
    values, rows = table.values.detach(), table.rows
    before = values.clone()
    hyper = torch.ones(6, dtype=torch.float64)
    name = str(dtype).removeprefix("torch.")
    message = f"rounding needs values of float16 or bfloat16, got {name}"
    grad = torch.sparse_coo_tensor([[0, 1]], torch.ones(2, dtype=dtype), (5,))
    with pytest.raises(ValueError, match=message):
        update_(values, None, None, hyper, ROUNDING, rows, grad, algorithm=0, backend=backend)
    looked_up = (torch.ones(1, 3, dtype=dtype), rows.index, torch.tensor([1]), *[None] * 4)
    with pytest.raises(ValueError, match=message):
        namespace(backend).coalesce_update_(
            values, None, None, hyper, ROUNDING, *looked_up, 2, 1, 0, -1, False, 0
        )
    assert torch.equal(values, before)


def test_rounding_must_be_a_seed_and_an_offset():
    table = make_table(torch.tensor([2, 3]), 3, torch.float16)
    grad = torch.sparse_coo_tensor([[0, 1]], torch.ones(2, dtype=torch.float16), (5,))
    hyper = torch.ones(6, dtype=torch.float64)
    for wrong in (torch.zeros(2), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"rounding must be int64 \[2\]"):
            update_(table.values.detach(), None, None, hyper, wrong, table.rows, grad, algorithm=0)
