"""benchmarks.bench_floor: its kernels do what their lines say, on a case of a moment."""

import pytest
import torch

from benchmarks import bench_floor
from benchmarks.cases import Case, Spec
from varemb.ops.backend import why_not

pytestmark = pytest.mark.skipif(
    why_not("cpu", "cpu") is not None, reason=str(why_not("cpu", "cpu"))
)


def small_case(dtype=torch.float32):
    case = Case(Spec(rows=300, width=16, bags=10, pooling=5, dtype=dtype))
    batches = case.batches(2)
    return case, case.facts(batches), batches[0]


def by_name(kernels):
    return {kernel.name: kernel for kernel in kernels}


def test_forward_kernels_give_what_their_lines_say():
    case, facts, batch = small_case()
    kernels = by_name(bench_floor.forward_kernels(case, facts))
    looked_up = kernels["lookup"].call(batch)
    assert looked_up.shape == (50, 16)
    assert torch.equal((looked_up != 0).sum(1), case.dims[batch.indices])
    pooled, _ = kernels["lookup_bag"].call(batch)
    torch.testing.assert_close(pooled, looked_up.view(10, 5, 16).sum(1))
    assert torch.equal(kernels["lookup_bag, weighted"].call(batch)[0], pooled)
    dots = kernels["lookup_bag, weights' gradient"].call(batch)
    torch.testing.assert_close(dots, 1e-3 * looked_up.sum(1))
    assert kernels["lookup_linear"].call(batch).shape == (50, 16)
    rows_grad, *_ = kernels["lookup_linear, gradients"].call(batch)
    assert torch.equal((rows_grad != 0).sum(1), case.dims[batch.indices])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_backward_kernels_train_the_rows_of_the_batch(dtype):
    case, facts, batch = small_case(dtype)
    kernels = by_name(bench_floor.backward_kernels(case, facts))
    positions, sums = kernels["coalesce"].call(batch)
    distinct = batch.indices.unique()
    assert len(positions) == len(sums) == int(case.dims[distinct].sum())
    values = kernels["coalesce, sgd"].call.__kwdefaults__["state"][0]
    before = values.clone()
    kernels["sort, find rows"].call(batch)
    assert torch.equal(values, before)
    kernels["coalesce, sgd"].call(batch)
    changed = (values != before).nonzero().flatten()
    if dtype == torch.float32:
        assert torch.equal(changed, positions)


def test_measure_kernels_says_time_and_bytes_of_every_kernel():
    records = bench_floor.measure_kernels(small_case()[0], 2, 1e9)
    names = [record["kernel"] for record in records]
    assert len(names) == len(set(names)) == 12
    assert all(record["ms"] > 0 and record["must_mb"] > 0 for record in records)
    linear = next(record for record in records if record["kernel"] == "lookup_linear")
    assert linear["gflops"] > 0
    assert len(bench_floor.format_kernels(records).splitlines()) == 13
