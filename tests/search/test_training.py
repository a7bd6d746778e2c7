import dataclasses
import math

import pytest
import torch
from torch import nn

from varemb import SizePlan, VarEmbedding
from varemb.data import ClickData, planted_clicks
from varemb.models import WideDeep
from varemb.search import TrainConfig, evaluate, train_model, train_plan, training
from varemb.search.training import make_adam, shuffled_batches, split_tables, train_step

ROWS = {"user": 20, "city": 20, "hour": 16}
CONFIG = TrainConfig(batch_size=100, lr=5e-3, max_epochs=4, weight_decay=1e-5)


def make_parts(rows=3000):
    return planted_clicks(rows, dims={"user": 4, "city": 2}, ids_per_field=20, scale=3.0).split(0)


def make_model(embedding):
    return WideDeep(tuple(ROWS.values()), 4, embedding, hidden=(16,))


def make_plan(*dims):
    return SizePlan.for_fields(ROWS, 4, dict(zip(ROWS, dims, strict=True)))


def train(parts, config=CONFIG, **options):
    return train_plan(make_model, make_plan(4, 2, 4), *parts, config, progress=False, **options)


class Score(nn.Module):
    """The id is the row of the logit."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, ids):
        return self.logits[ids[:, 0].long()]


def make_rows(labels):
    ids = torch.arange(len(labels)).view(-1, 1)
    return ClickData(ids, torch.tensor(labels), ("row",), (len(labels),))


def test_evaluate_by_hand():
    # Pairs (1, 0): 3 > 1, 3 = 3 counts half, 2 > 1, 2 < 3: 2.5 of 4.
    model, data = Score([3.0, 2.0, 1.0, 3.0]), make_rows([1.0, 1.0, 0.0, 0.0])
    scores = evaluate(model, data)
    assert scores["auc"] == 2.5 / 4
    terms = [math.log1p(math.exp(-3)), math.log1p(math.exp(-2))]
    terms += [math.log1p(math.exp(1)), math.log1p(math.exp(3))]
    assert scores["logloss"] == pytest.approx(sum(terms) / 4, rel=1e-6)


def test_evaluate_cuts_probabilities_before_the_logloss():
    scores = evaluate(Score([100.0, -100.0]), make_rows([0.0, 1.0]))
    assert scores["auc"] == 0
    assert scores["logloss"] == pytest.approx(-math.log(1e-7), rel=1e-6)


def test_evaluate_leaves_the_mode_of_the_model():
    model, data = Score([1.0, 0.0]), make_rows([1.0, 0.0])
    for mode in (True, False):
        model.train(mode)
        evaluate(model, data)
        assert model.training is mode


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_evaluate_needs_both_labels(label):
    with pytest.raises(ValueError, match=r"AUC needs labels 0 and 1, got 2 rows"):
        evaluate(Score([1.0, 0.0]), make_rows([label, label]))


def test_evaluate_does_not_hide_nan():
    with pytest.raises(ValueError, match="numbers that are not finite"):
        evaluate(Score([1.0, float("nan")]), make_rows([1.0, 0.0]))


def test_a_loss_that_is_not_finite_leaves_the_weights():
    model, data = Score([float("inf"), 0.5]), make_rows([0.0, 1.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(FloatingPointError, match="the loss is inf"):
        train_step(model, optimizer, data, torch.tensor([0, 1]))
    assert model.logits.tolist() == [float("inf"), 0.5]


def test_batches_are_a_shuffle_without_the_rest():
    batches = shuffled_batches(10, 3, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in batches] == [3, 3, 3]
    assert len(set(torch.cat(batches).tolist())) == 9
    assert [len(batch) for batch in shuffled_batches(2, 3, torch.Generator())] == [2]


def test_weight_decay_acts_on_the_tables_only():
    model = make_model(VarEmbedding.for_fields(list(ROWS.values()), 4, [4, 2, 4], unify="linear"))
    tables, others = split_tables(model)
    assert {id(table) for table in tables} == {id(model.embedding.weight), id(model.wide.weight)}
    assert len(tables) + len(others) == len(list(model.parameters()))
    decays = [group["weight_decay"] for group in make_adam(model, 0.1, 0.5).param_groups]
    assert decays == [0.5, 0]


def test_the_learning_rate_falls_linearly_to_0(monkeypatch):
    seen, step = [], training.train_step

    def watched(model, optimizer, *rest):
        seen.append({group["lr"] for group in optimizer.param_groups})
        return step(model, optimizer, *rest)

    monkeypatch.setattr(training, "train_step", watched)
    train(make_parts(), dataclasses.replace(CONFIG, patience=9))
    steps = 4 * 24
    assert all(len(rates) == 1 for rates in seen)
    falling = [5e-3 * (1 - i / steps) for i in range(steps)]
    assert [rates.pop() for rates in seen] == pytest.approx(falling)


def test_the_result_is_the_best_epoch():
    parts = make_parts()
    result, measured = train(parts)
    best = max(record["valid"]["auc"] for record in result.history)
    assert result.valid["auc"] == best
    assert evaluate(result.model, parts[1]) == result.valid
    assert evaluate(result.model, parts[2]) == measured["metrics"]
    assert measured["metrics"]["auc"] > 0.6


def test_training_stops_when_the_validation_gets_no_better():
    train_rows, valid, _ = make_parts(500)
    flipped = dataclasses.replace(valid, labels=1 - valid.labels)  # the first epoch is the best
    config = dataclasses.replace(CONFIG, max_epochs=30, patience=2, lr=0.02)
    table = VarEmbedding.for_fields(list(ROWS.values()), 4)
    result = train_model(make_model(table), train_rows, flipped, config, progress=False)
    aucs = [record["valid"]["auc"] for record in result.history]
    assert len(aucs) < 30 and len(aucs) == aucs.index(max(aucs)) + 3
    assert evaluate(result.model, flipped) == result.valid


def test_what_a_plan_measures():
    measured = train(make_parts())[1]
    assert measured["params"] == 20 * 4 + 20 * 2 + 16 * 4
    assert measured["params_full"] == 56 * 4
    sizes = measured["bytes"]
    assert sizes["weights"] == 4 * measured["params"]
    assert sizes["optimizer"] >= 2 * sizes["weights"]  # Adam's two moments, as narrow as the rows
    assert sizes["optimizer"] < 2 * 4 * measured["params_full"]
    assert measured["rows_per_second"] > 0 and measured["epochs"] <= 4


def test_full_width_needs_no_matrices():
    plan = SizePlan.uniform(ROWS, 4, 4)
    measured = train_plan(make_model, plan, *make_parts(), CONFIG, unify="pad", progress=False)[1]
    assert measured["params"] == measured["params_full"] and measured["bytes"]["unify"] == 0


def test_the_same_seed_gives_the_same_training():
    parts = make_parts()
    first, second = train(parts), train(parts)
    assert first[0].history == second[0].history
    assert first[1]["metrics"] == second[1]["metrics"]
    other = train(parts, dataclasses.replace(CONFIG, seed=1))
    assert other[0].history != first[0].history


class KilledError(Exception):
    pass


@pytest.mark.parametrize("epochs_before", [1, 3])
def test_a_training_killed_between_epochs_resumes_bit_for_bit(tmp_path, monkeypatch, epochs_before):
    parts, path = make_parts(), tmp_path / "train.safetensors"
    whole, whole_measured = train(parts)
    made = []

    def killed(*arguments):
        made.append(1)
        if len(made) > epochs_before:
            raise KilledError
        return shuffled_batches(*arguments)

    monkeypatch.setattr(training, "shuffled_batches", killed)
    with pytest.raises(KilledError):
        train(parts, checkpoint=path)
    monkeypatch.setattr(training, "shuffled_batches", shuffled_batches)
    resumed, measured = train(parts, checkpoint=path, resume=True)
    assert resumed.history == whole.history
    assert measured["metrics"] == whole_measured["metrics"]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_patience_goes_on_where_a_training_was_killed(tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, max_epochs=9, patience=3)
    train_rows, valid, _ = make_parts(500)
    aucs = iter([0.7, 0.6])  # and the third epoch is killed
    monkeypatch.setattr(training, "evaluate", lambda *arguments: {"auc": next(aucs)})

    def run(resume):
        return train_model(
            make_model(VarEmbedding.for_fields(list(ROWS.values()), 4)), train_rows, valid, config,
            progress=False, checkpoint=tmp_path / "train.safetensors", resume=resume,
        )  # fmt: skip

    with pytest.raises(StopIteration):
        run(False)
    aucs = iter([0.6] * 7)
    assert [record["valid"]["auc"] for record in run(True).history] == [0.7, 0.6, 0.6, 0.6]


def test_a_finished_training_is_not_repeated(tmp_path, monkeypatch):
    parts, path = make_parts(), tmp_path / "train.safetensors"
    first = train(parts, checkpoint=path)
    monkeypatch.setattr(training, "train_step", None)
    again = train(parts, checkpoint=path, resume=True)
    assert again[1]["metrics"] == first[1]["metrics"]
    assert again[1]["bytes"] == first[1]["bytes"]


def test_resume_refuses_a_checkpoint_of_other_rows(tmp_path):
    parts, path = make_parts(), tmp_path / "train.safetensors"
    train(parts, checkpoint=path)
    for part in (0, 1):  # what is learnt from, what decides when to stop
        other = list(parts)
        other[part] = dataclasses.replace(parts[part], labels=parts[part].labels.flip(0))
        with pytest.raises(ValueError, match=r"train.safetensors was written with content = "):
            train(other, checkpoint=path, resume=True)


def test_resume_refuses_a_checkpoint_of_another_plan(tmp_path):
    parts, path = make_parts(), tmp_path / "train.safetensors"
    train(parts, checkpoint=path)
    with pytest.raises(ValueError, match=r"train.safetensors was written with parameters"):
        train_plan(
            make_model, make_plan(2, 2, 2), *parts, CONFIG,
            progress=False, checkpoint=path, resume=True,
        )  # fmt: skip


def test_a_plan_for_other_fields_is_refused():
    plan = SizePlan.uniform({"user": 20, "town": 20, "hour": 16}, 4, 2)
    with pytest.raises(ValueError, match=r"the plan must have the tables .*'city': 20"):
        train_plan(make_model, plan, *make_parts(), CONFIG, progress=False)


def test_the_bar_names_its_package_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"varemb\[data\]"):
        train_plan(make_model, make_plan(2, 2, 2), *make_parts(500), CONFIG, progress=True)


@pytest.mark.parametrize("name", ["batch_size", "max_epochs", "patience"])
def test_settings_that_do_not_fit_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        TrainConfig(**{name: 0})
