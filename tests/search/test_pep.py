import dataclasses

import pytest
import torch

from varemb.data import planted_clicks
from varemb.models import FM, WideDeep
from varemb.search import PEP, PEPConfig, TrainConfig, train_model
from varemb.search.base import StoredTable
from varemb.search.csr import CsrTable
from varemb.search.epochs import Epochs, gradient_step
from varemb.search.pep import GRANULARITIES, ThresholdTable, soft_threshold
from varemb.search.training import seeded_from

IDS, WIDTH = 30, 8
CONFIG = PEPConfig(
    width=WIDTH, target=0.4, s_init=-6.0, s_lr=0.05, max_epochs=8, batch_size=200, lr=5e-3
)


def make_parts(rows=4000):
    return planted_clicks(rows, dims={"user": 4, "city": 2}, ids_per_field=IDS, scale=3.0).split(0)


def make_model(embedding):
    return WideDeep((IDS, IDS, 16), WIDTH, embedding, hidden=(16,))


def prune(config=CONFIG, parts=None, make=make_model, **options):
    parts = make_parts() if parts is None else parts
    return PEP(config).fit(make, parts[0], parts[1], progress=False, **options)


def make_csr(width=5):
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(9, width, generator=generator)
    mask = torch.rand(9, width, generator=generator) < 0.4
    mask[3] = False
    mask[8] = True
    return CsrTable([4, 5], dense, mask), dense, mask


def test_soft_threshold_by_hand():
    e = torch.tensor([-0.5, -0.2, 0.0, 0.1, 0.9], requires_grad=True)
    threshold = torch.full((5,), 0.2, requires_grad=True)
    out = soft_threshold(e, threshold)
    torch.testing.assert_close(out, torch.tensor([-0.3, 0.0, 0.0, 0.0, 0.7]))
    out.sum().backward()
    assert e.grad.tolist() == [1, 0, 0, 0, 1]
    assert threshold.grad.tolist() == [1, 0, 0, 0, -1]


@pytest.mark.parametrize(("clip", "after"), [(1.0, [2.4, 3.2]), (6.0, [0.0, 0.0])])
def test_a_gradient_is_at_most_as_long_as_clip(clip, after):
    weight = torch.tensor([3.0, 4.0], requires_grad=True)  # as is the gradient, 5 long
    gradient_step(weight.square().sum() / 2, [torch.optim.SGD([weight], 1.0)], clip)
    torch.testing.assert_close(weight.detach(), torch.tensor(after))


@pytest.mark.parametrize("width", [1, 5, 256, 257])
def test_csr_looks_up_what_the_masked_table_would(width):
    table, dense, mask = make_csr(width)
    ids = torch.tensor([[0, 4], [3, 0], [3, 4], [0, 4]])
    expected = (dense * mask)[ids + torch.tensor([0, 4])]
    assert torch.equal(table(ids), expected)
    assert table.columns.dtype == (torch.uint8 if width <= 256 else torch.int16)


def test_csr_gradient_is_that_of_the_masked_table():
    table, dense, mask = make_csr()
    ids = torch.tensor([[0, 4], [3, 0], [0, 4]])
    factor = torch.arange(30.0).view(3, 2, 5)
    (table(ids) * factor).sum().backward()
    dense.requires_grad_()
    ((dense * mask)[ids + torch.tensor([0, 4])] * factor).sum().backward()
    assert torch.equal(table.values.grad, dense.grad[mask])


def test_csr_counts_the_bytes_it_stores():
    table, _, mask = make_csr()
    numbers = int(mask.sum())
    assert isinstance(table, StoredTable)
    assert table.num_params == numbers
    index = numbers + 4 * 10 + 8 * 3  # a byte a column, int32 offsets, the fields' first rows
    assert table.num_bytes() == {"weights": 4 * numbers, "index": index, "unify": 0}
    assert sum(t.nbytes for t in table.stored().values()) == sum(table.num_bytes().values())


def test_csr_refuses_other_shapes_and_ids():
    with pytest.raises(ValueError, match=r"must be \[9, D\], got \[8, 2\]"):
        CsrTable([4, 5], torch.zeros(8, 2), torch.zeros(8, 2, dtype=torch.bool))
    with pytest.raises(IndexError):
        make_csr()[0](torch.tensor([[4, 0]]))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_thresholds_belong_to_what_the_granularity_says(granularity):
    table = ThresholdTable([2, 3], 4, granularity, -1.0, 0.01)
    shapes = {
        "global": (1, 1), "dimension": (1, 4), "row": (5, 1), "row-dimension": (5, 4),
        "field": (2, 1), "field-dimension": (2, 4),
    }  # fmt: skip
    assert table.s.shape == shapes[granularity]
    with torch.no_grad():
        table.s.copy_(torch.arange(table.s.numel()).view_as(table.s))
    lines = {"row": torch.arange(5), "field": torch.tensor([0, 0, 1, 1, 1])}
    line = lines.get(granularity.split("-")[0], torch.zeros(5, dtype=torch.int64))
    expected = table.s.sigmoid()[line].expand(5, 4)
    ids = torch.tensor([[0, 2], [1, 0]])
    rows = torch.tensor([[0, 4], [1, 2]])
    assert torch.equal(table.thresholds(torch.arange(5)).expand(5, 4), expected)
    dense = table.table.to_dense()
    assert torch.equal(table(ids), soft_threshold(dense, expected)[rows])
    assert torch.equal(table.mask(), soft_threshold(dense, expected) != 0)


@pytest.mark.parametrize("granularity, target", [("row-dimension", 0.4), ("row", 0.7)])
def test_pep_reaches_its_sparsity_and_keeps_the_first_numbers(granularity, target):
    config = dataclasses.replace(CONFIG, granularity=granularity, target=target)
    found = prune(config)
    table = found.make_table()
    assert found.plan is None
    full = (2 * IDS + 16) * WIDTH
    # Adam moves all thresholds together at first: the last step may cut more than it must.
    assert 0.2 * target * full < table.num_params <= target * full
    assert found.history[-1]["params"] == table.num_params
    with seeded_from(torch.Generator().manual_seed(0)):
        first = ThresholdTable((IDS, IDS, 16), WIDTH, granularity, 0.0, 0.01).table.weight
    rows = torch.repeat_interleave(table.offsets.diff().long())
    assert torch.equal(table.values, first.view(-1, WIDTH)[rows, table.columns.long()])
    again = found.make_table()
    assert again is not table and torch.equal(again.values, table.values)


def test_other_first_numbers_on_request():
    found = prune(dataclasses.replace(CONFIG, is_reset=True))
    assert not torch.equal(found.make_table().values, found.make_table().values)


def test_the_masked_table_trains():
    parts, found = make_parts(), prune()
    table = found.make_table()
    before = table.values.detach().clone()
    config = TrainConfig(batch_size=200, lr=5e-3, weight_decay=1e-5, max_epochs=6)
    trained = train_model(make_model(table), parts[0], parts[1], config, progress=False)
    assert trained.valid["auc"] > 0.65
    assert not torch.equal(table.values, before)


@pytest.mark.parametrize("rows", [500, 4000])
def test_thresholds_rise_within_the_planned_steps_of_any_data(rows):
    config = dataclasses.replace(CONFIG, target=0.7, s_init=-15.0, s_lr=0.0, max_epochs=12)
    found = prune(config, make_parts(rows))
    assert 3 <= len(found.history) < 12


def test_the_target_must_be_reached():
    config = dataclasses.replace(CONFIG, s_init=-15.0, s_lr=1e-3, max_epochs=1)
    with pytest.raises(RuntimeError, match=r"are left after 1 epochs, target 0.4"):
        prune(config)


def test_pep_runs_with_a_model_without_layers():
    config = dataclasses.replace(CONFIG, target=0.7, init_std=0.1, s_lr=0.1)
    found = prune(config, make=lambda embedding: FM((IDS, IDS, 16), WIDTH, embedding))
    assert found.score > 0.5


class KilledError(Exception):
    pass


def test_a_pruning_killed_between_epochs_resumes_bit_for_bit(tmp_path, monkeypatch):
    config, parts = dataclasses.replace(CONFIG, max_epochs=16), make_parts(2000)
    whole = prune(config, parts)
    assert len(whole.history) > 3
    batches = Epochs.batches

    def killed(run, *arguments, **options):
        if len(run.history) == 2:
            raise KilledError
        return batches(run, *arguments, **options)

    monkeypatch.setattr(Epochs, "batches", killed)
    with pytest.raises(KilledError):
        prune(config, parts, checkpoint_dir=tmp_path)
    monkeypatch.setattr(Epochs, "batches", batches)
    for _ in range(2):  # the second time nothing is left to do
        resumed = prune(config, parts, checkpoint_dir=tmp_path, resume=True)
        assert resumed.history == whole.history
        first, second = resumed.make_table(), whole.make_table()
        assert torch.equal(first.values, second.values)
        assert torch.equal(first.columns, second.columns)
    other = dataclasses.replace(config, target=0.3)
    with pytest.raises(ValueError, match=r"written with target = 0\.4, got 0\.3"):
        prune(other, parts, checkpoint_dir=tmp_path, resume=True)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"target": 0.0}, r"target must be in \(0, 1\], got 0.0"),
        ({"target": 1.5}, "target must be in"),
        ({"width": 0}, "width must be at least 1"),
        ({"width": 257}, "a width of 257 must be a multiple of 2"),
        ({"granularity": "rows"}, "granularity must be global, .* got 'rows'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        prune(dataclasses.replace(CONFIG, **changed), make_parts(1000))


def test_every_setting_explains_itself():
    assert all(field.metadata["help"] for field in dataclasses.fields(PEPConfig))
