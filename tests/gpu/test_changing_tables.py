"""Tables that change on the GPU: as on the CPU, and under graphs that were captured before."""

import pytest
import torch
from gpu.where import BACKENDS, DEVICE

import varemb
from varemb.ops import lookup

pytestmark = pytest.mark.gpu
on_backends = pytest.mark.parametrize("backend", BACKENDS)
WIDTH = 21


def make(device, backend, **options):
    dims = torch.arange(60) % (WIDTH + 1)
    table = varemb.VarEmbedding(
        60, WIDTH, dims=dims, resizable=True, device=device, backend=backend, **options
    )
    table.storage.copy_dense_(torch.arange(60.0 * WIDTH).view(60, WIDTH) / 100)
    return table


def state_of(table, optimizer):
    """Values and state of the rows that are there, on the CPU."""
    rows = table.storage.present().nonzero()[:, 0].to(table.weight.device)
    tensors = [table.weight.detach()]
    for name, value in optimizer.state[table.weight].items():
        if name in optimizer.state_names and not optimizer.is_row_wise:
            tensors.append(value)
    return [
        lookup(tensor, table.storage.rows, rows, backend="reference").cpu() for tensor in tensors
    ]


@on_backends
@pytest.mark.parametrize("cls", [varemb.optim.Adam, varemb.optim.RowWiseAdagrad])
def test_random_changes_are_those_on_the_cpu(backend, cls):
    generator = torch.Generator().manual_seed(0)
    tables = [make("cpu", "cpu"), make(DEVICE, backend)]
    optimizers = [cls([table.weight], lr=0.1) for table in tables]
    for turn in range(60):
        present = tables[0].storage.present().nonzero()[:, 0]
        rows = present[torch.randperm(len(present), generator=generator)[:12]]
        dims = torch.randint(0, WIDTH + 1, (12,), generator=generator)
        grad = torch.randn(12, WIDTH, generator=generator)
        for table, optimizer in zip(tables, optimizers, strict=True):
            table.resize(rows, dims)
            if turn % 3 == 0:
                table.remove(rows[:5])
                table.extend(6, dims[:6], init="zeros")
            if turn % 10 == 9:
                table.compact()
            there = rows[5:].to(table.weight.device)
            table(there).backward(grad[5:].to(table.weight.device))
            optimizer.step()
        assert torch.equal(tables[0].dims, tables[1].dims.cpu())
        states = (state_of(*pair) for pair in zip(tables, optimizers, strict=True))
        for here, got in zip(*states, strict=True):
            torch.testing.assert_close(got, here, rtol=1e-4, atol=1e-5)
    assert tables[0].fragmentation == tables[1].fragmentation
    tables[1].remove([int(present[0])])
    with pytest.raises(IndexError, match="which is absent"):
        tables[1].resize([int(present[0])], 2)


@on_backends
def test_a_captured_lookup_stays_valid_inside_the_reservation(backend):
    table = make(DEVICE, backend, reserve_rows=80, reserve_numbers=2000)
    static = torch.arange(60, device=DEVICE)
    with torch.no_grad():
        table(static)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = table(static)
        for dims in (3, WIDTH, 9):
            table.resize(torch.arange(0, 60, 2), dims, init="normal", std=1.0)
            new = table.extend(4, dims)
            table.compact()
            static[:4] = new.to(DEVICE)
            graph.replay()
            expected = lookup(table.weight, table.storage.rows, static, backend="reference")
            assert torch.equal(out, expected)
