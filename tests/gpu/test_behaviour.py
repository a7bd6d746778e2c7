"""What only a GPU can show: graphs, no hidden waiting, compilation, size, bad indices, training."""

import subprocess
import sys

import pytest
import torch
from gpu.where import BACKENDS, DEVICE, moved

import varemb
from varemb.ops import lookup, lookup_bag
from varemb.storage import PackedStorage
from varemb.testing import assert_agree, dims_of, make_table

pytestmark = pytest.mark.gpu
on_backends = pytest.mark.parametrize("backend", BACKENDS)
OPTIMIZERS = {
    "sgd": varemb.optim.SGD,
    "adagrad": varemb.optim.Adagrad,
    "row_wise_adagrad": varemb.optim.RowWiseAdagrad,
    "adam": varemb.optim.Adam,
}
ROWS, WIDTH = 500, 48


@pytest.fixture
def waiting_raises():
    """Any call of torch's that waits for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def make_bag(backend, device=DEVICE, seed=0, **options):
    torch.manual_seed(seed)
    dims = dims_of("uniform", ROWS, WIDTH)
    bag = varemb.VarEmbeddingBag(
        ROWS, WIDTH, mode="sum", include_last_offset=True, device=device, dims=dims,
        backend=backend, **options,
    )  # fmt: skip
    with torch.no_grad():
        numbers = torch.randn(bag.weight.numel(), generator=torch.Generator().manual_seed(seed))
        bag.weight.copy_(numbers)
    return bag


def batch(seed, device=DEVICE):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(0, ROWS, (320,), generator=generator)
    grad = torch.randn(32, WIDTH, generator=generator)
    return indices.to(device), torch.arange(0, 321, 10, device=device), grad.to(device)


@on_backends
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_on_the_gpu_is_training_on_the_cpu(backend, name):
    here, away = make_bag("reference", "cpu"), make_bag(backend)
    optimizers = [OPTIMIZERS[name](bag.parameters(), lr=0.1) for bag in (here, away)]
    for seed in range(5):
        for bag, optimizer, device in zip((here, away), optimizers, ("cpu", DEVICE), strict=True):
            indices, offsets, grad = batch(seed, device)
            bag(indices, offsets).backward(grad)
            optimizer.step()
    assert_agree(away.weight.detach().cpu(), here.weight.detach())


@on_backends
def test_a_captured_forward_sees_new_indices_and_numbers(backend):
    table = moved(make_table(dims_of("uniform", ROWS, WIDTH), WIDTH))
    static = torch.zeros(320, dtype=torch.int64, device=DEVICE)
    with torch.no_grad():
        lookup(table.values, table.rows, static, backend=backend)  # compiles, allocates
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = lookup(table.values, table.rows, static, backend=backend)
        for seed in (1, 2):
            static.copy_(batch(seed)[0])
            table.values.mul_(2)
            graph.replay()
            expected = lookup(table.values, table.rows, static, backend="reference")
            assert torch.equal(out, expected)


@on_backends
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_captured_step_trains_like_an_eager_one(backend, name):
    """The graph reads the learning rate and the step's number when it runs, not when captured."""
    bags = [make_bag(backend), make_bag(backend)]
    optimizers = [OPTIMIZERS[name](bag.parameters(), lr=0.1) for bag in bags]
    static = batch(0)

    def step(bag, optimizer, tensors):
        indices, offsets, grad = tensors
        bag(indices, offsets).backward(grad)
        optimizer.step()

    for bag, optimizer in zip(bags, optimizers, strict=True):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for seed in (1, 2):
                step(bag, optimizer, batch(seed))
        torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(bags[0], optimizers[0], static)
    for seed, rate in ((3, 0.1), (4, 0.01), (5, 0.5)):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate
        for target, source in zip(static, batch(seed), strict=True):
            target.copy_(source)
        graph.replay()
        step(bags[1], optimizers[1], batch(seed))
    assert torch.equal(bags[0].weight, bags[1].weight)
    before = make_bag(backend).weight
    assert not torch.equal(bags[0].weight, before)


@on_backends
@pytest.mark.parametrize("form", ["dense", "fused"])
def test_nothing_waits_for_the_device(backend, form, request):
    bag = make_bag(backend)
    optimizer = varemb.optim.Adam(bag.parameters()) if form == "fused" else None
    indices, offsets, grad = batch(1)
    linear = varemb.VarEmbedding(
        ROWS, WIDTH, dims=dims_of("uniform", ROWS, WIDTH), unify="linear", device=DEVICE,
        backend=backend,
    )  # fmt: skip

    def step():
        bag(indices, offsets).backward(grad)
        linear(indices).sum().backward()
        lookup(bag.weight, bag.storage.rows, indices, limit=None, backend=backend)
        if optimizer is not None:
            optimizer.step()

    step()  # compiles
    request.getfixturevalue("waiting_raises")
    step()


@on_backends
@pytest.mark.parametrize("form", ["dense", "fused"])
def test_torch_compile_on_the_gpu(backend, form):
    eager, compiled = make_bag(backend), make_bag(backend)
    function = torch.compile(compiled, fullgraph=True)
    optimizers = []
    if form == "fused":
        optimizers = [varemb.optim.SGD(bag.parameters(), lr=0.1) for bag in (eager, compiled)]
    for seed in (1, 2):
        indices, offsets, grad = batch(seed)
        out, expected = function(indices, offsets), eager(indices, offsets)
        assert torch.equal(out, expected)
        out.backward(grad)
        expected.backward(grad)
        for optimizer in optimizers:
            optimizer.step()
    if form == "dense":
        assert torch.equal(compiled.weight.grad, eager.weight.grad)
    assert torch.equal(compiled.weight, eager.weight)


@on_backends
def test_a_table_past_2_to_31_numbers_on_the_gpu(backend):
    torch.utils.deterministic.fill_uninitialized_memory = False  # 4.3 GB, of which 3 rows are used
    rows = 2**31 // 2000 + 500
    dims = torch.full((rows,), 2000)
    storage = PackedStorage(dims, 2000, device=DEVICE, dtype=torch.bfloat16)
    assert storage.numbers > 2**31
    optimizer = varemb.optim.SGD([storage.weight], lr=1.0)
    asked = torch.tensor([rows - 1, 0, rows - 2], device=DEVICE)
    with torch.no_grad():
        for row, value in zip(asked.tolist(), (3.0, 1.0, 2.0), strict=True):
            storage.row(row).fill_(value)

    def means():
        options = {"fused": storage.fused, "backend": backend}
        return lookup(storage.weight, storage.rows, asked, **options)

    out = means()
    assert out.float().mean(1).tolist() == [3, 1, 2]
    out.backward(torch.ones_like(out))
    optimizer.step()
    assert means().float().mean(1).tolist() == [2, 0, 1]


BAD_INDEX = """
import sys, torch
from varemb.ops import lookup
from varemb.testing import dims_of, make_table
from varemb.storage import PackedStorage
storage = PackedStorage(dims_of("equal", 40, 8), 8, device="cuda")
with torch.no_grad():
    storage.weight.fill_(1.0)
indices = torch.tensor([1, int(sys.argv[2]), 2], device="cuda")
with torch.no_grad():
    out = lookup(storage.weight, storage.rows, indices, backend=sys.argv[1])
torch.cuda.synchronize()
print(out.sum(1).tolist())
"""


@on_backends
@pytest.mark.parametrize("bad", [-1, 40, 2**40])
def test_an_index_outside_the_table_stops_the_device(backend, bad):
    """In a process of its own, which can do nothing more on the GPU then."""
    run = subprocess.run(
        [sys.executable, "-c", BAD_INDEX, backend, str(bad)], capture_output=True, text=True
    )
    assert run.returncode != 0 and "device-side assert" in run.stderr, run.stdout


@on_backends
def test_operations_run_on_the_current_stream(backend):
    """A lookup queued behind slow work on a side stream sees what that work wrote."""
    table = moved(make_table(dims_of("equal", 2000, 64), 64))
    indices = torch.arange(2000, device=DEVICE)
    offsets = torch.arange(0, 2001, 10, device=DEVICE)
    rows, values = table.rows, table.values.detach()

    def pooled():
        return lookup_bag(values, rows, indices, offsets, mode="sum", include_last_offset=True,
                          backend=backend)  # fmt: skip

    pooled()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        values.fill_(1.0)
        out = pooled()
    side.synchronize()
    assert bool((out == 10).all())
