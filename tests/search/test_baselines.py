"""What every learnt baseline promises: any model, one seed one result, bytes that are stored."""

import dataclasses
import math

import pytest
import torch

from varemb import SizePlan
from varemb.data import planted_clicks
from varemb.models import FM, IPNN, NFM, AutoInt, DeepFM, WideDeep
from varemb.search import (
    DARTS,
    DPQ,
    MGQE,
    NIS,
    PEP,
    AutoEmb,
    AutoEmbConfig,
    DARTSConfig,
    DPQConfig,
    MGQEConfig,
    NISConfig,
    OptEmbed,
    OptEmbedConfig,
    PEPConfig,
    StoredTable,
    TrainConfig,
    measure_trained,
    train_plan,
    train_table,
)

IDS, WIDTH = 20, 8
FAST = {"batch_size": 100, "lr": 5e-3}
METHODS = [
    PEP(PEPConfig(width=WIDTH, target=0.8, s_init=-5.0, s_lr=0.1, init_std=0.1, **FAST)),
    OptEmbed(OptEmbedConfig(width=WIDTH, epochs=1, population=4, parents=2, generations=2, **FAST)),
    DPQ(DPQConfig(width=WIDTH, groups=4, centroids=4)),
    MGQE(MGQEConfig(width=WIDTH, groups=2, centroids=8, tail_centroids=4)),
    AutoEmb(AutoEmbConfig(candidates=(2, WIDTH), max_epochs=2, hidden=8, **FAST)),
    DARTS(DARTSConfig(candidates=(2, WIDTH), max_epochs=2, **FAST)),
    NIS(NISConfig(width=WIDTH, search_epochs=1, **FAST)),
]
MODELS = [FM, WideDeep, DeepFM, NFM, IPNN, AutoInt]
TRAINING = TrainConfig(max_epochs=1, **FAST)


def make_parts(rows=1000, seed=0):
    clicks = planted_clicks(rows, dims={"user": 4, "city": 2}, ids_per_field=IDS, seed=seed)
    return clicks.split(seed)


def run(method, model, parts):
    """The result of a search, the measures of its training, and the trained table."""

    def make_model(embedding):
        return model(parts[0].cardinalities, WIDTH, embedding)

    found = method.fit(make_model, parts[0], parts[1], progress=False)
    if found.trained is not None:
        measures = measure_trained(found.trained, found.table, parts[2], WIDTH)
        return found, measures, found.table
    if found.make_table is not None:
        trained, measures = train_table(
            make_model, found.make_table, *parts, TRAINING, width=WIDTH, progress=False
        )
    else:
        trained, measures = train_plan(
            make_model, found.plan, *parts, TRAINING, unify=found.unify, progress=False
        )
    return found, measures, trained.model.embedding


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_every_method_runs_with_every_model(method, model):
    found, measures, table = run(method, model, make_parts())
    assert 0 <= measures["metrics"]["auc"] <= 1 and math.isfinite(measures["metrics"]["logloss"])
    assert measures["params_full"] == (2 * IDS + 16) * WIDTH
    ways = [found.trained is not None, found.make_table is not None, found.plan is not None]
    assert sum(ways) == 1
    if isinstance(table, StoredTable):
        stored = sum(tensor.nbytes for tensor in table.stored().values())
        assert stored == sum(measures["bytes"][part] for part in ("weights", "index", "unify"))
        assert measures["params"] == table.num_params
    else:
        assert isinstance(found.plan, SizePlan)
        assert measures["bytes"]["weights"] == 4 * measures["params"] == 4 * found.plan.num_params


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_one_seed_gives_one_result_and_leaves_torchs_randomness_alone(method):
    parts, before = make_parts(), torch.random.get_rng_state()
    first, second = (run(method, WideDeep, parts) for _ in range(2))
    assert first[0].history == second[0].history
    assert first[1]["metrics"] == second[1]["metrics"] and first[1]["bytes"] == second[1]["bytes"]
    assert torch.equal(before, torch.random.get_rng_state())
    if first[0].history:
        other = type(method)(dataclasses.replace(method.config, seed=1))
        assert run(other, WideDeep, parts)[0].history != first[0].history


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_loss_that_is_not_finite_is_refused(method):
    if not hasattr(method.config, "lr"):
        config = dataclasses.replace(method.config, init_std=1e30)
    else:
        config = dataclasses.replace(method.config, lr=1e30)
    with pytest.raises((FloatingPointError, ValueError), match=r"loss is|not finite"):
        run(type(method)(config), WideDeep, make_parts())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_field_with_one_value_is_no_problem(method):
    parts = [
        dataclasses.replace(
            part,
            ids=torch.cat([part.ids, torch.zeros_like(part.ids[:, :1])], 1),
            field_names=(*part.field_names, "same"),
            cardinalities=(*part.cardinalities, 1),
        )
        for part in make_parts()
    ]
    _, measures, _ = run(method, DeepFM, parts)
    assert math.isfinite(measures["metrics"]["logloss"])
