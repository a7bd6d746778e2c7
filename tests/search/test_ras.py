import dataclasses

import pytest

from varemb.data import planted_clicks
from varemb.models import WideDeep
from varemb.search import RandomSearch, RasConfig, TrainConfig, train_plan
from varemb.search.ras import draw_plans

TRAIN, VALID, TEST = planted_clicks(
    2000, dims={"user": 4, "city": 2}, ids_per_field=20, scale=3.0
).split(0)
TRAINING = TrainConfig(batch_size=200, lr=5e-3, max_epochs=2)
CONFIG = RasConfig(candidates=(1, 2, 4), trials=3, training=TRAINING)


def make_model(table):
    return WideDeep(TRAIN.cardinalities, 4, table, hidden=(8,))


def fit(config=CONFIG, **options):
    return RandomSearch(config).fit(make_model, TRAIN, VALID, progress=False, **options)


def test_plans_are_distinct_field_wise_and_respect_the_candidates():
    plans = draw_plans(dataclasses.replace(CONFIG, trials=27), TRAIN)  # all there are
    dims = {tuple(int(plan[name][0]) for name in plan) for plan in plans}
    assert len(plans) == len(dims) == 27
    assert {dim for each in dims for dim in each} == {1, 2, 4}
    assert all((plan[name] == plan[name][0]).all() for plan in plans for name in plan)
    assert len(draw_plans(dataclasses.replace(CONFIG, trials=28), TRAIN)) == 27


def test_the_seed_decides_the_plans():
    again, other = draw_plans(CONFIG, TRAIN), draw_plans(dataclasses.replace(CONFIG, seed=1), TRAIN)
    assert again == draw_plans(CONFIG, TRAIN)
    assert again != other


def test_the_best_plan_on_validation_is_kept_and_trains_to_its_score():
    found = fit()
    best = [max(record["valid"]["auc"] for record in found.history if record["trial"] == trial)
            for trial in range(3)]  # fmt: skip
    assert found.score == max(best)
    assert found.plan == draw_plans(CONFIG, TRAIN)[best.index(max(best))]
    result, _ = train_plan(make_model, found.plan, TRAIN, VALID, TEST, TRAINING, progress=False)
    assert result.valid["auc"] == found.score


def test_a_finished_search_is_read_from_its_checkpoints(tmp_path):
    first = fit(checkpoint_dir=tmp_path)
    assert len(list(tmp_path.glob("ras-*.safetensors"))) == 3
    again = fit(checkpoint_dir=tmp_path, resume=True)
    assert (again.plan, again.score, again.history) == (first.plan, first.score, first.history)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": (4, 2)}, "increasing"),
        ({"candidates": (2, 2)}, "increasing"),
        ({"trials": 0}, "trials must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fit(dataclasses.replace(CONFIG, **change))
