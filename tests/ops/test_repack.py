"""repack: every backend against rows moved one by one, bit for bit."""

import importlib

import pytest
import torch

from varemb.ops import repack
from varemb.ops.backend import namespace
from varemb.storage import PackedStorage
from varemb.testing import dims_of, runnable_backends

BACKENDS = runnable_backends()
DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8,
    torch.bool, torch.int16, torch.int32, torch.int64, torch.float8_e4m3fn, torch.complex64,
]  # fmt: skip
# Old dims, new dims, width.
MOVES = {
    "growth": (torch.tensor([1, 0, 3, 2, 5]), torch.tensor([4, 2, 3, 5, 5]), 5),
    "shrink": (torch.tensor([4, 2, 3, 5, 5]), torch.tensor([1, 0, 3, 2, 5]), 5),
    "random": (dims_of("uniform", 500, 37), dims_of("uniform", 500, 37, seed=1), 37),
    "same": (dims_of("uniform", 49, 8), dims_of("uniform", 49, 8), 8),
    "to_zeros": (dims_of("uniform", 50, 8), dims_of("zeros", 50, 8), 8),
    "from_zeros": (dims_of("zeros", 50, 8), dims_of("uniform", 50, 8), 8),
    "no_rows": (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 8),
    "one_row": (torch.tensor([3]), torch.tensor([7]), 8),
    # 301 numbers take 302: what the granule leaves unused is zeros, whatever it was
    "granules": (dims_of("skewed", 90, 301), dims_of("equal", 90, 301), 301),
    "widest": (dims_of("odd", 30, 2048), dims_of("odd", 30, 2048, seed=1), 2048),
    "many": (dims_of("skewed", 5000, 64), dims_of("uniform", 5000, 64), 64),
}


def bits_of(tensor):
    return tensor.contiguous().view(torch.uint8)


def random_numbers(count, dtype):
    """Any bits that the dtype can hold, NaNs among them. [count]"""
    size = torch.empty(0, dtype=dtype).element_size()
    top = 2 if dtype == torch.bool else 256
    return torch.randint(0, top, (count * size,), dtype=torch.uint8).view(dtype)


def starts_of(storage):
    """Offset of every row, and where the last one ends. [N + 1]"""
    dims, granule = storage.dims, storage.granule
    stored = (dims + granule - 1) // granule * granule
    return torch.cat([torch.zeros(1, dtype=torch.int64), stored.cumsum(0)])


def moved_row_by_row(numbers, old, new):
    out = torch.zeros(new.numbers, dtype=numbers.dtype)
    sources, targets = starts_of(old), starts_of(new)
    kept = torch.minimum(old.dims, new.dims)
    for row in range(old.num_rows):
        source, target, count = int(sources[row]), int(targets[row]), int(kept[row])
        out[target : target + count] = numbers[source : source + count]
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MOVES)
def test_repack_moves_every_row(backend, name):
    old_dims, new_dims, width = MOVES[name]
    old, new = (PackedStorage(dims, width) for dims in (old_dims, new_dims))
    numbers = random_numbers(old.numbers, torch.float32)
    (out,) = repack([numbers], old.rows, new.rows, backend=backend)
    assert out.dtype == numbers.dtype
    assert torch.equal(bits_of(out), bits_of(moved_row_by_row(numbers, old, new)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["random", "granules"])
def test_repack_moves_every_dtype_bit_for_bit(backend, dtype, name):
    old_dims, new_dims, width = MOVES[name]
    old, new = (PackedStorage(dims, width) for dims in (old_dims, new_dims))
    numbers = random_numbers(old.numbers, dtype)
    (out,) = repack([numbers], old.rows, new.rows, backend=backend)
    assert out.dtype == dtype
    assert torch.equal(bits_of(out), bits_of(moved_row_by_row(numbers, old, new)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_repack_moves_values_and_state_together(backend):
    old, new = (PackedStorage(torch.tensor(dims), 4) for dims in ([1, 3], [2, 1]))
    values, state = torch.tensor([10.0, 20, 21, 22]), torch.tensor([1, 2, 3, 4]).double()
    out = repack([values.bfloat16(), state], old.rows, new.rows, backend=backend)
    assert [t.tolist() for t in out] == [[10, 0, 20], [1, 0, 2]]
    assert [t.dtype for t in out] == [torch.bfloat16, torch.float64]
    assert repack([], old.rows, new.rows, backend=backend) == []
    back = repack(out, new.rows, old.rows, backend=backend)
    assert [t.tolist() for t in back] == [[10, 20, 0, 0], [1, 2, 0, 0]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("blocks", [1, 3, 20])
def test_repack_in_chunks_is_the_same(backend, blocks, monkeypatch):
    old_dims, new_dims, width = MOVES["random"]
    old, new = (PackedStorage(dims, width) for dims in (old_dims, new_dims))
    numbers = random_numbers(old.numbers, torch.int32)
    expected = repack([numbers], old.rows, new.rows, backend=backend)[0]
    module = importlib.import_module("varemb.ops.repack")
    monkeypatch.setattr(module, "_BLOCKS_AT_A_TIME", blocks)
    assert torch.equal(repack([numbers], old.rows, new.rows, backend=backend)[0], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_repack_takes_strided_and_trained_tensors(backend):
    old, new = (PackedStorage(torch.tensor(dims), 4) for dims in ([1, 3], [2, 1]))
    strided = torch.arange(8.0)[::2]
    assert repack([strided], old.rows, new.rows, backend=backend)[0].tolist() == [0, 0, 2]
    with torch.no_grad():
        old.weight.copy_(strided)
    (out,) = repack([old.weight], old.rows, new.rows, backend=backend)
    assert out.tolist() == [0, 0, 2] and not out.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kept", "dim", "shift"), [(300, 300, 1), (150, 300, 70), (300, 300, -1)])
def test_a_row_may_move_onto_itself(backend, kept, dim, shift):
    buffer = torch.arange(1000.0)
    namespace(backend).repack_(buffer, buffer, torch.tensor([[200, 200 + shift, kept, dim]]))
    expected = torch.arange(1000.0)
    expected[200 + shift :][:dim] = torch.cat(
        [torch.arange(200.0, 200 + kept), torch.zeros(dim - kept)]
    )
    assert torch.equal(buffer, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_repack_by_hand_and_within_one_buffer(backend):
    ops = namespace(backend)
    buffer = torch.arange(10.0)
    moves = torch.tensor([[0, 6, 2, 3], [2, 9, 1, 1], [10, 10, 0, 0]])
    ops.repack_(buffer, buffer, moves)
    assert buffer.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 0, 2]
    ops.repack_(buffer, buffer, moves[:0])
    assert buffer.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 0, 2]


@pytest.mark.parametrize(
    "move",
    [
        (-1, 0, 1, 1),
        (4, 0, 2, 2),
        (6, 0, 0, 1),
        (0, -1, 1, 1),
        (0, 2, 1, 2),
        (0, 4, 0, 0),
        (0, 0, -1, 0),
        (0, 0, 2, 1),
        (2**62, 0, 2**62, 2**62),
        (0, 2**63 - 1, 1, 2),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_repack_refuses_moves_out_of_range_before_it_writes(backend, move):
    values, out = torch.arange(5.0), torch.full((3,), 9.0)
    moves = torch.tensor([[0, 0, 1, 1]] * 3000 + [move])
    with pytest.raises(IndexError, match=r"repack: move 3000 leaves the tensors of 5 and 3 numb"):
        namespace(backend).repack_(out, values, moves)
    assert out.tolist() == [9, 9, 9]


def test_repack_refuses_what_does_not_fit():
    old, new = (PackedStorage(torch.tensor(dims), 4) for dims in ([1, 3], [2, 1, 1]))
    with pytest.raises(ValueError, match="both layouts must have the same rows, got 2 and 3"):
        repack([torch.zeros(4)], old.rows, new.rows)
    for wrong in (torch.zeros(5), torch.zeros(2, 2)):
        with pytest.raises(ValueError, match="tensors must be flat with 4 numbers, got shape"):
            repack([torch.zeros(4), wrong], old.rows, old.rows)
    with pytest.raises(ValueError, match=r"1, 2, 4 or 8 bytes, got torch\.complex128"):
        repack([torch.zeros(4, dtype=torch.complex128)], old.rows, old.rows)
    with pytest.raises(ValueError, match="must be on one device, got meta, cpu, cpu"):
        repack([torch.zeros(4, device="meta")], old.rows, old.rows)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the C++ kernels for CPU were not built")
def test_repack_cpu_refuses_what_does_not_fit():
    ops, moves = torch.ops.varemb, torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="out must have the dtype of values"):
        ops.repack_(torch.zeros(2), torch.zeros(2).double(), moves)
    for wrong in (moves.int(), moves[0], torch.zeros(1, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"moves must be a contiguous int64 tensor \[M, 4\]"):
            ops.repack_(torch.zeros(2), torch.zeros(2), wrong)


@pytest.mark.parametrize("backend", BACKENDS)
def test_repack_opcheck(backend):
    moves = torch.tensor([[0, 1, 2, 4], [3, 5, 0, 1]])
    operation = namespace(backend).repack_.default
    torch.library.opcheck(operation, (torch.zeros(6), torch.arange(5.0), moves))
