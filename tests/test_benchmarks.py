"""The benchmarks measure what they say: cases, timing, peers that do the same job, the table."""

from __future__ import annotations

import dataclasses
import importlib
import time
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import bench_lookup_bag, fbgemm, ours, peers, size_classes, timing
from benchmarks.cases import (
    Batch,
    Case,
    Facts,
    Spec,
    bytes_per_distinct_row,
    bytes_per_lookup,
    of_one_index,
    ranked_dims,
    six_widths,
    standard_specs,
    state_bytes,
    table_bytes,
)
from benchmarks.contenders import Settings, measure_case, output_grad
from benchmarks.peers import Lookup, UnavailableError
from benchmarks.size_classes import SizeClasses
from benchmarks.table import format_case
from benchmarks.timing import Runner

TINY = Spec(dims="power", rows=200, width=64, bags=8, pooling=5)
HAS_FBGEMM = importlib.util.find_spec("fbgemm_gpu") is not None
needs_fbgemm = pytest.mark.skipif(not HAS_FBGEMM, reason="fbgemm-gpu-cpu is not installed")

FACTS = Facts(zipf=1.0, mean_dim=2.0, access_dim=3.0, distinct_rows=10, distinct_dim=2.5)
FACTS_SPEC = Spec(width=8, bags=4, pooling=5)


def masked_values(case: Case) -> Tensor:
    """values[r, k] = r + k / 100 for k < d[r], else 0. [N, D]"""
    columns = torch.arange(case.spec.width)
    values = torch.arange(case.spec.rows)[:, None] + columns / 100
    return values * (columns < case.dims[:, None])


def load_values(lookup: Lookup, case: Case, multiple: int | None) -> None:
    """Give a table the values of ``masked_values``; ``multiple`` is that of its size classes."""
    values = masked_values(case)
    tensors = lookup.tensors()
    with torch.no_grad():
        if multiple is None:
            tensors[0].copy_(values + 7.0 * (values == 0))  # the mask has to remove the sevens
            return
        classes = SizeClasses(case, multiple)
        pairs = zip(classes.rows, classes.sizes, strict=True)
        tables = [values[rows, :size] for rows, size in pairs]
        if len(tensors) == len(tables) + 1:
            for tensor, table in zip(tensors, tables, strict=False):
                tensor.copy_(table)
        else:
            tensors[0].copy_(torch.cat([table.flatten() for table in tables]))


@pytest.mark.parametrize(
    ("dims", "width", "mean"),
    [("mean22", 64, 22.08), ("power", 64, 11.2), ("mean12", 128, 12.0), ("equal", 64, 64)],
)
def test_ranked_dims_have_the_stated_mean(dims: str, width: int, mean: float) -> None:
    ranked = ranked_dims(dims, 10_000, width, torch.Generator())
    assert ranked.double().mean().item() == pytest.approx(mean, abs=0.01)
    assert (ranked.diff() <= 0).all() and ranked.min() >= 1 and ranked.max() == width


def test_ranked_dims_refuse_an_unknown_law() -> None:
    with pytest.raises(ValueError, match="must be one of power, mean22, mean12, uniform, equal"):
        ranked_dims("wide", 10, 64, torch.Generator())


def test_popular_rows_are_wide_only_when_asked() -> None:
    wide, unrelated = (
        Case(Spec(dims="power", rows=5000, bags=512, popular_wide=popular))
        for popular in (True, False)
    )
    assert wide.mean_dim == unrelated.mean_dim
    assert wide.facts(wide.batches(2)).access_dim > 3 * wide.mean_dim
    assert unrelated.facts(unrelated.batches(2)).access_dim < 3 * wide.mean_dim


def test_batches_are_fresh_in_range_and_as_skewed_as_asked() -> None:
    distinct = []
    for zipf in (0.0, 0.6, 1.2):
        case = Case(Spec(rows=100_000, zipf=zipf))
        first, second = case.batches(2)
        assert not torch.equal(first.indices, second.indices)
        assert first.indices.min() >= 0 and first.indices.max() < 100_000
        assert first.offsets.numel() == 4097 and first.offsets[-1] == first.indices.numel()
        distinct.append(case.facts([first]).distinct_rows)
    assert distinct == sorted(distinct, reverse=True) and distinct[0] > 2 * distinct[-1]


def test_standard_cases_vary_one_thing_at_a_time() -> None:
    specs, target = standard_specs("update"), Spec()
    assert specs[0] == target and not any(spec.is_target for spec in specs[1:])
    assert len(set(specs)) == len(specs)
    axes = ("zipf", "width", "pooling")
    for dims in ("mean22", "equal"):
        found = {
            axis: {getattr(s, axis) for s in specs if s.dims == dims and s.rows == target.rows}
            for axis in axes
        }
        assert found["zipf"] == {0, 0.6, 1.05} and found["width"] == {16, 64, 128, 256}
        assert found["pooling"] == {1, 20, 100}
    for spec in specs[:-1]:
        assert sum(getattr(spec, axis) != getattr(target, axis) for axis in axes) <= 1
    assert all(81_800 < spec.lookups <= 81_920 for spec in specs)
    assert standard_specs("update", quick=True) == specs[:1]


def test_the_cold_case_is_as_large_as_a_padded_step_allows() -> None:
    large, step = (standard_specs(op)[-1] for op in ("lookup_bag", "update"))
    assert large == Spec(dims="mean12", zipf=0.0, rows=20_000_000, width=128)
    assert step == dataclasses.replace(large, rows=10_000_000)
    numbers = step.width * step.rows
    needed = 4 * numbers + state_bytes("adam", step.rows, numbers)
    assert needed < 16e9 < 2 * needed


def test_the_overhead_is_that_of_one_index() -> None:
    both = [Spec(bags=1, pooling=1), Spec(dims="equal", bags=1, pooling=1)]
    assert standard_specs("overhead") == both
    assert standard_specs("overhead", quick=True) == both[:1]
    assert of_one_index([Spec(), Spec(pooling=5), Spec(dims="equal")]) == both


def test_bytes_per_lookup() -> None:
    count = partial(bytes_per_lookup, FACTS_SPEC, FACTS, out_rows=4)
    assert count(layout="jagged", is_step=False) == (20 * 3 + 4 * 8) * 4
    assert count(layout="padded", is_step=False) == (20 * 8 + 4 * 8) * 4
    assert count(layout="padded", is_step=True) == 3 * (20 * 8 + 4 * 8) * 4
    assert six_widths(8) == [1, 1, 1, 1, 4, 8] and six_widths(128) == [2, 4, 8, 16, 64, 128]
    assert count(layout="six", is_step=False) == (20 * 16 + 4 * 8) * 4


def test_bytes_per_distinct_row() -> None:
    count = partial(bytes_per_distinct_row, FACTS_SPEC, FACTS, out_rows=4)
    indices, out = 20 * 8, 4 * 8 * 4
    jagged = count(layout="jagged", optimizer=None)
    assert jagged == 10 * 2.5 * 4 + 10 * 32 + indices + out
    assert count(layout="padded", optimizer=None) == 10 * 8 * 4 + indices + out
    assert count(layout="masked", optimizer=None) == 2 * 10 * 8 * 4 + indices + out
    assert count(layout="six", optimizer=None) == 10 * 16 * 4 + 10 * 8 + indices + out
    step = jagged + out + indices + 10 * 32
    assert count(layout="jagged", optimizer="sgd") == step + 2 * 100
    assert count(layout="jagged", optimizer="rowwise_adagrad") == step + 2 * (100 + 40)
    assert count(layout="jagged", optimizer="adam") == step + 2 * 300


@pytest.mark.parametrize("is_warm", [False, True])
def test_measure_interleaves_and_turns_the_order(is_warm: bool) -> None:
    calls: list[str] = []

    def runner(name: str) -> Runner:
        stages = (("one", lambda _: calls.append(name)), ("two", lambda _: None))
        return Runner(stages, lambda: [], lambda: calls.append("."))

    batches = [Batch(torch.zeros(1), torch.zeros(2))] * 3
    times = timing.measure([runner("a"), runner("b")], batches, warmup=1, is_warm=is_warm)
    one = "a.b.b.a.a.b."
    assert "".join(calls) == ("a.a.b.b.b.b.a.a.a.a.b.b." if is_warm else one)
    assert [t.shape for t in times] == [(2, 2), (2, 2)]
    assert all((t > 0).all() for t in times)


def test_a_repeated_call_takes_its_share_of_the_time() -> None:
    def runner(calls: int) -> Runner:
        stages = (("wait", lambda _: time.sleep(0.02)),)
        return Runner(stages, lambda: [], lambda: None, calls)

    batches = [Batch(torch.zeros(1), torch.zeros(2))]
    once, share = timing.measure([runner(1), runner(1000)], batches, warmup=0)
    assert once[0, 0] >= 20_000_000 and 20_000 <= share[0, 0] < once[0, 0] / 10


def test_speedup_is_the_median_of_the_rounds_ratios() -> None:
    ours_ns = np.array([[1_000_000], [4_000_000], [2_000_000]])
    peer_ns = np.array([[2_000_000], [2_000_000], [6_000_000]])
    assert timing.speedup(ours_ns, peer_ns).median == 2.0
    assert timing.summarize(ours_ns).median == 2.0


def test_tensor_bytes_count_a_shared_storage_once() -> None:
    weight = torch.zeros(10, 4)
    assert timing.tensor_bytes([weight, weight[2:], torch.zeros(3)]) == 160 + 12


def test_touch_pages_leaves_values_alone() -> None:
    tensors = [torch.tensor([1.5, float("nan")]), torch.tensor([3], dtype=torch.uint8)]
    timing.touch_pages([*tensors, torch.tensor([True])])
    assert tensors[0][0] == 1.5 and tensors[0][1].isnan() and tensors[1] == 3


@pytest.mark.parametrize(
    ("build", "multiple"),
    [
        (peers.masked_bag, None),
        (size_classes.class_bags, 1),
        pytest.param(fbgemm.class_tbe, 4, marks=needs_fbgemm),
        pytest.param(partial(fbgemm.class_tbe, by_sort=True), 4, marks=needs_fbgemm),
    ],
)
def test_pooled_peers_give_the_same_sums(build: peers.Build, multiple: int | None) -> None:
    case = Case(TINY)
    lookup = build(case)
    load_values(lookup, case, multiple)
    (batch,) = case.batches(1)
    expected = masked_values(case)[batch.indices].view(8, 5, 64).sum(dim=1)
    torch.testing.assert_close(lookup.call(batch), expected)


@pytest.mark.parametrize(
    ("build", "multiple"), [(peers.masked_embedding, None), (size_classes.class_embeddings, 1)]
)
def test_sequence_peers_give_the_same_rows(build: peers.Build, multiple: int | None) -> None:
    case = Case(TINY)
    lookup = build(case)
    load_values(lookup, case, multiple)
    (batch,) = case.batches(1)
    torch.testing.assert_close(lookup.call(batch), masked_values(case)[batch.indices])


@pytest.mark.parametrize("width", [16, 64])
def test_six_full_tables_give_the_row_of_the_narrowest_that_holds_it(width: int) -> None:
    case = Case(dataclasses.replace(TINY, width=width))
    values, widths = masked_values(case), six_widths(width)
    lookup, pooled = peers.six_embeddings(case), peers.six_bags(case)
    for table in (lookup, pooled):
        *weights, sizes = table.tensors()
        assert [weight.shape for weight in weights] == [(200, w) for w in widths]
        with torch.no_grad():
            for k, weight in enumerate(weights):  # numbers of the five others have to vanish
                weight.copy_(torch.where((sizes == k)[:, None], values[:, : widths[k]], 7.0))
    (batch,) = case.batches(1)
    expected = values[batch.indices]
    torch.testing.assert_close(lookup.call(batch), expected)
    torch.testing.assert_close(pooled.call(batch), expected.view(8, 5, width).sum(dim=1))


@pytest.mark.parametrize("pooling", [1, 5])
def test_padded_tables_give_the_same_sums(pooling: int) -> None:
    case = Case(dataclasses.replace(TINY, pooling=pooling))
    (batch,) = case.batches(1)
    outs = []
    for build in (peers.padded_bag, peers.summed_embedding, peers.dense_bag):
        lookup = build(case)
        with torch.no_grad():
            lookup.trained[0].copy_(masked_values(case) + 1)
        outs.append(lookup.call(batch))
        outs[-1].sum().backward()
        assert lookup.trained[0].grad.is_sparse == (build is not peers.dense_bag)
    expected = (masked_values(case) + 1)[batch.indices].view(8, pooling, 64).sum(dim=1)
    torch.testing.assert_close(outs, 3 * [expected])


def test_a_dense_gradient_is_for_small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MOST_DENSE", 200 * 64 - 1)
    with pytest.raises(UnavailableError, match="every step passes over all 0 million numbers"):
        peers.dense_bag(Case(TINY))


@pytest.mark.parametrize(
    ("build", "layout"),
    [
        (peers.padded_bag, "padded"),
        (peers.masked_bag, "masked"),
        (peers.six_bags, "six"),
        (size_classes.class_bags, "classes"),
    ],
)
def test_table_bytes_are_those_of_the_tensors(build: peers.Build, layout: str) -> None:
    case = Case(TINY)
    assert table_bytes(case, layout, None) == timing.tensor_bytes(build(case).tensors())


def test_a_mask_is_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = peers.masked_bag(Case(TINY)).tensors()[1]
    monkeypatch.setattr(peers, "_ROWS_AT_A_TIME", 7)
    assert torch.equal(peers.masked_bag(Case(TINY)).tensors()[1], whole)
    assert torch.equal(whole.sum(1), Case(TINY).dims)


def trained_output(lookup: Lookup, optimizers: list[torch.optim.Optimizer], case: Case) -> Tensor:
    """The lookups of one batch after two SGD steps on others."""
    first, second, third = Case(case.spec).batches(3)
    runner = peers.step_runner(lookup, optimizers, 100 * output_grad(case))
    for batch in (first, second):
        timing.run_once(runner, batch)
    return lookup.call(third).detach()


@pytest.mark.parametrize("name", ["ours", "class_bags", pytest.param("tbe", marks=needs_fbgemm)])
def test_a_step_trains_every_contender_alike(name: str) -> None:
    case = Case(TINY)
    masked = peers.masked_bag(case)
    expected = trained_output(masked, [peers.torch_sgd(masked.trained)], case)
    optimizers: list[torch.optim.Optimizer] = []
    if name == "tbe":
        lookup = fbgemm.class_tbe(case, "sgd")
    elif name == "ours":
        lookup = ours.jagged_bag(case)
        with torch.no_grad():
            lookup.trained[0].fill_(peers.INITIAL_VALUE)
        optimizers = [ours.fused_optimizer(lookup, "sgd")]
    else:
        lookup = size_classes.class_bags(case)
        optimizers = [peers.torch_sgd(lookup.trained)]
    torch.testing.assert_close(trained_output(lookup, optimizers, case), expected)


@pytest.mark.parametrize("build", [peers.six_bags, size_classes.class_bags])
def test_a_step_trains_equal_dims_as_a_padded_table(build: peers.Build) -> None:
    case = Case(dataclasses.replace(TINY, dims="equal"))
    lookups = [peers.padded_bag(case), build(case)]
    outs = [trained_output(own, [peers.torch_sgd(own.trained)], case) for own in lookups]
    torch.testing.assert_close(outs[1], outs[0])
    assert (outs[0] - outs[0].mean()).abs().max() > 1e-3  # it was trained at all


def test_missing_fbgemm_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(fbgemm.importlib, "import_module", refuse)
    with pytest.raises(UnavailableError, match=r"not installed \(pip install --no-deps fbgemm"):
        fbgemm.padded_tbe(Case(TINY))


@needs_fbgemm
def test_what_fbgemm_cannot_do_is_said() -> None:
    with pytest.raises(UnavailableError, match="adam is not supported in CPU mode"):
        fbgemm.padded_tbe(Case(TINY), "adam")
    with pytest.raises(UnavailableError, match="Mixed dimension tables"):
        fbgemm.class_tbe(Case(TINY), is_pooled=False)


def test_a_peer_that_does_not_fit_is_said() -> None:
    settings = Settings(rounds=1, warmup=1, is_warm=False, memory_limit=30_000, copy_bandwidth=1e10)
    result = measure_case(bench_lookup_bag, TINY, settings)
    reasons = {line.name: line.reason for line in result.blocks[0]}
    assert reasons["nn.EmbeddingBag padded"].startswith("not run: takes 0.0 GB")
    assert reasons["size-class nn.EmbeddingBag (sort)"] == ""
    assert "not run" in format_case(result)
