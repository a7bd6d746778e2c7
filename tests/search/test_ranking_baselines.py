"""ES, MR, frequency and PEP under a sparsity: what CIESS is compared with, by one contract."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from search.pairs import killed_after, planted_pairs, prepare

from varemb.search.base import StoredTable
from varemb.search.fixed_sizes import FixedSizes, FixedSizesConfig
from varemb.search.pairwise import PairwiseConfig, Trainer
from varemb.search.pep_ranking import RankingPEP, RankingPEPConfig, _Search
from varemb.search.retraining import dims_of

WIDTH = 16
TRAINING = PairwiseConfig(
    batch_size=100,
    lr=0.02,
    lr_steps=10,
    decay=0.05,
    epochs=1,
    round_epochs=2,
    patience=1,
    max_rounds=2,
)
CONFIGS = {
    "es": FixedSizesConfig(method="es", width=WIDTH, sparsities=(0.5, 0.8)),
    "mr": FixedSizesConfig(method="mr", width=WIDTH, sparsities=(0.5, 0.8)),
    "frequency": FixedSizesConfig(method="frequency", width=WIDTH, sparsities=(0.5, 0.8)),
    "pep": RankingPEPConfig(
        width=WIDTH,
        sparsities=(0.5, 0.8),
        s_init=-6.0,
        s_lr=0.2,
        lr=0.01,
        s_weight_decay=0.02,
        max_epochs=100,
    ),
}


@pytest.fixture(name="split", scope="module")
def make_split():
    return planted_pairs(users=20, items=16, bought=8)


def fit(split, config, model="mf", **options):
    method = RankingPEP if isinstance(config, RankingPEPConfig) else FixedSizes
    made = prepare(split, model, WIDTH) if isinstance(model, str) else model
    return method(config).fit(split, made, TRAINING, progress=False, **options)


def plain(result):
    return [
        (level.sparsity, level.metrics, level.valid, level.params, level.bytes)
        for level in result.levels
    ]


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("name", ["ncf", "lightgcn"])
def test_every_method_meets_its_sparsity_and_says_what_it_takes(split, method, name):
    result = fit(split, CONFIGS[method], name)
    rows, tables = split.num_users + split.num_items, 2 if name == "ncf" else 1
    assert [level.sparsity for level in result.levels] == [0.5, 0.8]
    for level in result.levels:
        assert level.params <= tables * int((1 - level.sparsity) * rows * WIDTH + 1e-6)
        assert level.params_full == tables * rows * WIDTH
        assert level.sparsity_reached >= level.sparsity
        assert level.bytes["weights"] == 4 * level.params
        assert level.bytes["optimizer"] == 8 * level.params and level.bytes["index"] > 0
        assert set(level.metrics) == {f"{m}@{k}" for m in ("recall", "ndcg") for k in (5, 10, 20)}
        assert all(0 <= value <= 1 for value in level.metrics.values())
        assert (level.plan is None) == (method == "pep")
    assert result.seconds["forward"] > 0


@pytest.mark.parametrize("method", CONFIGS)
def test_every_method_repeats_with_its_seed_and_resumes(split, method, tmp_path):
    whole = fit(split, CONFIGS[method], checkpoint_dir=tmp_path)
    assert plain(fit(split, CONFIGS[method])) == plain(whole)
    again = fit(split, CONFIGS[method], checkpoint_dir=tmp_path, resume=True)
    assert plain(again) == plain(whole)
    assert again.seconds == whole.seconds  # nothing was trained


def test_frequency_gives_much_bought_rows_more(split):
    dims = dims_of(fit(split, CONFIGS["frequency"]).levels[0])[split.num_users :]
    counts = np.bincount(split.train.items, minlength=split.num_items)
    assert dims[counts.argmax()] > dims[counts.argmin()]


def test_fixed_sizes_take_what_rounding_leaves_or_are_as_published(split):
    rows = split.num_users + split.num_items
    full = fit(split, CONFIGS["es"]).levels[1]
    floor = fit(split, replace(CONFIGS["es"], is_full=False)).levels[1]
    assert set(dims_of(full)) == {3, 4} and full.params == int(3.2 * rows)  # 0.2 of 16
    assert set(dims_of(floor)) == {3} and floor.params == 3 * rows
    assert fit(split, CONFIGS["mr"]).levels[1].params == full.params
    assert fit(split, replace(CONFIGS["mr"], is_full=False)).levels[1].params <= full.params


def test_a_checkpoint_of_another_split_is_refused(split, tmp_path):
    fit(split, CONFIGS["es"], checkpoint_dir=tmp_path)
    other = planted_pairs(users=20, items=16, bought=8, seed=1)  # as many pairs
    with pytest.raises(ValueError, match="was written with content = "):
        fit(other, CONFIGS["es"], checkpoint_dir=tmp_path, resume=True)


@pytest.mark.parametrize("method", ["es", "pep"])
def test_a_checkpoint_of_another_recommender_is_refused(split, method, tmp_path):
    fit(split, CONFIGS[method], "lightgcn", checkpoint_dir=tmp_path)
    for name, options in (("mf", {}), ("lightgcn", {"layers": 2})):
        other = partial(prepare(split, name, WIDTH), **options)
        with pytest.raises(ValueError, match="was written with recommender = "):
            fit(split, CONFIGS[method], other, checkpoint_dir=tmp_path, resume=True)


@pytest.mark.parametrize("method", ["es", "mr", "frequency"])
def test_bytes_count_the_index(split, method):
    rows = split.num_users + split.num_items
    level = fit(split, replace(CONFIGS[method], unit="bytes")).levels[0]
    assert level.bytes["weights"] + level.bytes["index"] <= 0.5 * rows * WIDTH * 4


def test_pep_learns_masks_that_no_plan_has(split):
    """Rows keep numbers in any columns, and the tables are those that were counted."""
    models = []

    def spy(users, items):
        make = prepare(split, "mf", WIDTH)(users, items)
        return lambda table: models.append(make(table)) or models[-1]

    level = RankingPEP(CONFIGS["pep"]).fit(split, spy, TRAINING, progress=False).levels[-1]
    (table,) = [module for module in models[-1].modules() if isinstance(module, StoredTable)]
    assert table.num_params == level.params
    assert table.num_bytes()["weights"] == level.bytes["weights"]
    ends = table.offsets.long()
    rows = [table.columns[ends[row] : ends[row + 1]].tolist() for row in range(len(ends) - 1)]
    assert sum(row != list(range(len(row))) for row in rows) > len(rows) / 2


def test_pep_trains_its_masks_from_the_first_numbers(split):
    search = _Search(CONFIGS["pep"], split, prepare(split, "ncf", WIDTH), TRAINING)
    now = [table.table.weight.view(36, WIDTH) for table in search.tables]
    first = [weight.detach().clone() for weight in now]
    search.advance()
    masks = [torch.rand(36, WIDTH) < 0.5 for _ in range(2)]
    search.masks = [masks]
    make_table = search.candidate(0.5).make_table
    for place in (0, 1, 0, 1):  # two recommenders
        values = make_table(0.1).table.values
        assert torch.equal(values, first[place][masks[place]])
        assert not torch.equal(values, now[place][masks[place]])


@pytest.mark.parametrize("saves", range(1, 9))  # three rounds, a record; as many of the test
def test_a_killed_training_goes_on_from_its_last_round(split, saves, tmp_path, monkeypatch):
    steps, step = [], Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda *args: steps.append(0) or step(*args))
    training = replace(
        TRAINING, lr_steps=1, lr_factor=0.95, decay=0.0, patience=3, max_rounds=3
    )  # the best round is the third
    config = replace(CONFIGS["es"], sparsities=(0.8,))

    def fit_ngcf(**options):  # its dropout draws from torch's own generator
        result = FixedSizes(config).fit(
            split, prepare(split, "ngcf", WIDTH), training, progress=False, **options
        )
        return plain(result), len(steps)

    whole, needed = fit_ngcf()
    steps.clear()
    with killed_after(saves):
        fit_ngcf(checkpoint_dir=tmp_path)
    again, made = fit_ngcf(checkpoint_dir=tmp_path, resume=True)
    assert again == whole and made == needed  # no step was made twice
    assert [path.name for path in tmp_path.iterdir()] == ["es.safetensors"]


@pytest.mark.parametrize("saves", [1, 22, 27])  # before and after the first mask; in the trainings
@pytest.mark.parametrize("name", ["ngcf", "ncf"])  # dropout; two tables
def test_a_killed_pep_goes_on_and_ends_as_uninterrupted(split, name, saves, tmp_path):
    whole = fit(split, CONFIGS["pep"], name)
    with killed_after(saves):
        fit(split, CONFIGS["pep"], name, checkpoint_dir=tmp_path)
    again = fit(split, CONFIGS["pep"], name, checkpoint_dir=tmp_path, resume=True)
    assert plain(again) == plain(whole)


@pytest.mark.parametrize(("config", "error", "message"), [
    (replace(CONFIGS["es"], method="best"), ValueError, "one of es, mr, frequency, got 'best'"),
    (replace(CONFIGS["mr"], sparsities=(2.0,)), ValueError, r"must be in \(0, 1\), got 2.0"),
    (replace(CONFIGS["mr"], sparsities=()), ValueError, r"must be distinct, got \(\)"),
    (replace(CONFIGS["pep"], sparsities=(0.5, 0.5)), ValueError, "sparsities must be distinct"),
    (replace(CONFIGS["pep"], granularity="number"), ValueError, "must be one of global"),
    (replace(CONFIGS["pep"], max_epochs=1), RuntimeError, "are left after 1 epochs"),
    (replace(CONFIGS["pep"], sparsities=(0.99,)), ValueError, "every row needs 1"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(split, config, error, message):
    with pytest.raises(error, match=message):
        fit(split, config)
