"""DPQ and MGQE: the table of both is tested in test_quantized.py."""

import dataclasses
import math

import pytest
import torch

from varemb.data import planted_clicks
from varemb.models import AutoInt, WideDeep
from varemb.search import TrainConfig, train_table
from varemb.search.dpq import DPQ, DPQConfig
from varemb.search.mgqe import MGQE, MGQEConfig, find_head

IDS, WIDTH = 30, 8
METHODS = [
    DPQ(DPQConfig(width=WIDTH, groups=4, centroids=8)),
    MGQE(MGQEConfig(width=WIDTH, groups=4, centroids=16, tail_centroids=4, head=0.5)),
]
TRAINING = TrainConfig(batch_size=200, lr=1e-2, weight_decay=1e-5, max_epochs=8)


def make_parts(rows=4000):
    return planted_clicks(rows, dims={"user": 4, "city": 2}, ids_per_field=IDS, scale=3.0).split(0)


def make_model(embedding):
    return WideDeep((IDS, IDS, 16), WIDTH, embedding, hidden=(16,))


def train(method, parts, config=TRAINING, make=make_model, **options):
    found = method.fit(make, parts[0], parts[1], progress=False)
    assert found.plan is None and math.isnan(found.score)
    return train_table(
        make, found.make_table, *parts, config, width=WIDTH, progress=False, **options
    )


@pytest.mark.parametrize("method", METHODS, ids=["dpq", "mgqe"])
def test_codes_learn_and_their_bytes_are_reported(method):
    parts = make_parts()
    result, measures = train(method, parts)
    assert result.valid["auc"] > 0.65
    table = result.model.embedding
    assert measures["params"] == table.num_params < measures["params_full"]
    sizes = measures["bytes"]
    assert sizes["weights"] + sizes["index"] == sum(t.nbytes for t in table.stored().values())
    # Training is not smaller than the full table: two Adam moments per query and centroid.
    assert sizes["optimizer"] == 2 * 4 * table.num_params_training
    again, _ = train(method, parts)
    assert again.history == result.history


@pytest.mark.parametrize("method", METHODS, ids=["dpq", "mgqe"])
def test_a_training_resumes_bit_for_bit(method, tmp_path):
    parts, path = make_parts(1000), tmp_path / "state.safetensors"
    config = dataclasses.replace(TRAINING, max_epochs=3, patience=3)
    make = lambda embedding: AutoInt((IDS, IDS, 16), WIDTH, embedding)  # noqa: E731
    whole, _ = train(method, parts, config, make, checkpoint=path)
    again, _ = train(method, parts, config, make, checkpoint=path, resume=True)
    assert again.history == whole.history
    ids = parts[2].ids
    assert torch.equal(whole.model.eval()(ids), again.model.eval()(ids))


def test_the_head_is_the_most_frequent_share_of_each_field():
    counts = [torch.tensor([4, 0, 9, 4, 1]), torch.tensor([1, 1])]
    assert find_head(counts, 0.3).tolist() == [True, False, True, False, False, True, False]
    assert find_head(counts, 1.0).all()


@pytest.mark.parametrize(
    "method, message",
    [
        (DPQ(DPQConfig(width=6, groups=4)), "DPQ: groups must divide the width 6, got 4"),
        (DPQ(DPQConfig(width=514, groups=2)), "a width of 514 must be a multiple of 4"),
        (DPQ(DPQConfig(centroids=1)), r"DPQ: centroids must be in 2..65536, got 1"),
        (MGQE(MGQEConfig(tail_centroids=300)), r"tail_centroids must be in 2..256, got 300"),
        (MGQE(MGQEConfig(head=0.0)), r"head must be in \(0, 1\], got 0.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(method, message):
    parts = make_parts(1000)
    with pytest.raises(ValueError, match=message):
        method.fit(make_model, parts[0], parts[1])


@pytest.mark.parametrize("config", [DPQConfig, MGQEConfig])
def test_every_setting_explains_itself(config):
    assert all(field.metadata["help"] for field in dataclasses.fields(config))
