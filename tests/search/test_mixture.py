"""DARTS and AutoEmb: their table, their training, and what makes their weights."""

import dataclasses

import pytest
import torch

from varemb.data import planted_clicks
from varemb.models import FM, WideDeep
from varemb.search import TrainConfig, mixture
from varemb.search.autoemb import AutoEmb, AutoEmbConfig, Controller
from varemb.search.base import StoredTable
from varemb.search.darts import DARTS, DARTSConfig, LogitSelector
from varemb.search.epochs import count_rows
from varemb.search.mixture import MixtureTable
from varemb.search.training import evaluate, measure_trained

IDS, CANDIDATES = 30, (2, 8)
SETTINGS = {"candidates": CANDIDATES, "f": 2, "max_epochs": 5, "batch_size": 200}
SETTINGS |= {"lr": 5e-3, "weight_decay": 1e-4}
METHODS = {
    "darts": DARTS(DARTSConfig(**SETTINGS)),
    "autoemb": AutoEmb(AutoEmbConfig(**SETTINGS, hidden=16, frequency_width=4)),
}


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def make_parts(rows=4000):
    return planted_clicks(rows, dims={"user": 4, "city": 2}, ids_per_field=IDS, scale=3.0).split(0)


def make_model(embedding):
    return WideDeep((IDS, IDS, 16), CANDIDATES[-1], embedding, hidden=(16,))


def fit(method, parts, make=make_model, **options):
    return method.fit(make, parts[0], parts[1], progress=False, **options)


def changed(method, **settings):
    return type(method)(dataclasses.replace(method.config, **settings))


def make_table():
    torch.manual_seed(0)
    selector = LogitSelector(7, 2)
    with torch.no_grad():
        selector.theta.copy_(torch.randn(7, 2))
    return MixtureTable([4, 3], (2, 3), 1.0, selector)


def naive(table, ids, mean_var):
    """Field by field, candidate by candidate."""
    rows = ids + torch.tensor([0, 4])
    dense, p = table.table.to_dense(), table.selector.theta.softmax(1)
    out = torch.zeros(*ids.shape, 3)
    for f in range(2):
        for n, columns in enumerate((slice(0, 2), slice(2, 5))):
            z = dense[rows[:, f], columns] @ table.matrices[n][f]
            mean, var = mean_var(z, n, f)
            out[:, f] += p[rows[:, f], n, None] * torch.tanh((z - mean) / (var + 1e-5).sqrt())
    return out


def test_a_row_is_the_weighted_sum_of_its_candidates():
    table, ids = make_table(), torch.tensor([[0, 0], [1, 2], [3, 2], [2, 1]])
    expected = naive(table, ids, lambda z, n, f: (z.mean(0), z.var(0, unbiased=False)))
    torch.testing.assert_close(table(ids), expected)
    table.eval()

    def running(z, n, f):
        norm = table.norms[n]
        return norm.running_mean.view(2, 3)[f], norm.running_var.view(2, 3)[f]

    torch.testing.assert_close(table(ids), naive(table, ids, running))


def test_the_first_batches_leave_nothing_of_the_statistics_before_them():
    """The epoch is chosen by them, also where epochs are short."""
    table, ids = make_table(), torch.tensor([[0, 0], [1, 2], [3, 2], [2, 1]])
    trained = table(ids).detach()
    for _ in range(3):
        table(ids)
    table.eval()
    # Running variances are unbiased: n / (n - 1) of the batch's.
    torch.testing.assert_close(table(ids).detach(), trained, rtol=0.2, atol=0.05)


def test_a_row_takes_the_sum_of_all_candidates():
    table = make_table()
    assert isinstance(table, StoredTable)
    assert table.num_params == 7 * (2 + 3)
    matrices, statistics = 2 * (2 + 3) * 3, 2 * 2 * 2 * 3
    sizes = {
        "weights": 4 * (7 * 5 + 7 * 2),
        "index": 32 + 8 * 3,  # one block of the packed index, the fields' first rows
        "unify": 4 * (matrices + statistics),
    }
    assert table.num_bytes() == sizes
    assert sum(t.nbytes for t in table.stored().values()) == sum(sizes.values())


def test_the_controller_knows_field_and_frequency():
    torch.manual_seed(0)
    counts = [torch.tensor([0, 1, 2, 3, 6, 7]), torch.tensor([0, 0, 14])]
    controller = Controller(counts, 3, 4, 2)
    assert controller.line.tolist() == [0, 1, 1, 2, 2, 3, 4, 4, 7]
    assert controller.line.dtype == torch.uint8
    p = controller(torch.tensor([[0, 6], [1, 8]]))
    torch.testing.assert_close(p, torch.full((2, 2, 3), 1 / 3))  # equal at the start
    with torch.no_grad():
        controller.out.weight.normal_()
    p = controller(torch.arange(9))
    assert torch.equal(p[1], p[2]) and not torch.allclose(p[0], p[6])
    stored = controller.weights()["p"]
    assert torch.equal(stored[controller.line.long()], p) and stored.shape == (8, 3)


def test_logits_are_each_rows_own():
    selector = LogitSelector(3, 2)
    with torch.no_grad():
        selector.theta[1] = torch.tensor([0.0, 1.0])
    p = selector(torch.tensor([[0, 1]]))
    expected = torch.stack([torch.full((2,), 0.5), torch.tensor([0.0, 1.0]).softmax(0)])
    torch.testing.assert_close(p[0], expected)


def test_what_is_trained_is_measured(method):
    parts = make_parts()
    found = fit(method, parts)
    assert found.plan is None and found.make_table is None
    assert found.score == max(record["valid"]["auc"] for record in found.history) > 0.7
    measures = measure_trained(found.trained, found.table, parts[2], CANDIDATES[-1])
    rows = 2 * IDS + 16
    assert measures["params"] == rows * sum(CANDIDATES) > measures["params_full"]
    assert measures["bytes"]["weights"] > 4 * measures["params"]
    # Two moments of all that the table trains, what makes p included.
    trained = sum(parameter.numel() for parameter in found.table.parameters())
    assert measures["bytes"]["optimizer"] == 2 * 4 * trained
    again = fit(method, parts)
    assert again.history == found.history
    assert fit(changed(method, seed=1), parts).history != found.history


def test_weights_learn_from_training_rows_and_p_from_validation_rows(method, monkeypatch):
    seen = []
    step = mixture.gradient_step

    def watched(loss, optimizers, *, only):
        (adam,) = optimizers
        groups = [p for group in adam.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in groups]
        value = step(loss, optimizers, only=only)
        moved = {id(p) for p, old in zip(groups, before, strict=True) if not torch.equal(p, old)}
        selected = {id(p) for p in adam.param_groups[2]["params"]}
        assert moved <= selected or not moved & selected
        assert moved <= {id(p) for p in only}
        seen.append("p" if moved & selected else "w")
        return value

    monkeypatch.setattr(mixture, "gradient_step", watched)
    fit(changed(method, max_epochs=1, f=3), make_parts(2000))
    assert "".join(seen) == "pwwwpwwwpww"


def test_the_mixture_trains_inside_a_model_without_layers(method):
    make = lambda embedding: FM((IDS, IDS, 16), CANDIDATES[-1], embedding)  # noqa: E731
    assert fit(changed(method, max_epochs=2), make_parts(1000), make).score > 0.4


def test_logits_of_rows_without_validation_examples_stay_equal():
    parts = make_parts(500)
    seen = torch.cat([part > 0 for part in count_rows(parts[1])])
    found = fit(METHODS["darts"], parts)
    theta = found.table.selector.theta.detach()
    is_moved = (theta != 0.5).any(1)
    assert not seen.all() and torch.equal(is_moved, seen)


class KilledError(Exception):
    pass


def test_a_training_killed_between_epochs_resumes_bit_for_bit(method, tmp_path, monkeypatch):
    parts = make_parts(2000)
    whole = fit(method, parts)
    train = mixture._train

    def killed(run, *arguments, **options):
        if len(run.history) == 2:
            raise KilledError
        return train(run, *arguments, **options)

    monkeypatch.setattr(mixture, "_train", killed)
    with pytest.raises(KilledError):
        fit(method, parts, checkpoint_dir=tmp_path)
    monkeypatch.setattr(mixture, "_train", train)
    for _ in range(2):
        resumed = fit(method, parts, checkpoint_dir=tmp_path, resume=True)
        assert resumed.history == whole.history
        first, second = (found.trained.model.state_dict() for found in (resumed, whole))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_stops_without_a_better_epoch_and_returns_the_best(method):
    parts = make_parts(1000)
    found = fit(changed(method, lr=0.05, patience=2, max_epochs=30), parts)
    scores = [record["valid"]["auc"] for record in found.history]
    best = scores.index(max(scores))
    assert len(scores) == best + 1 + 2 < 30
    assert evaluate(found.trained.model, parts[1]) == found.trained.valid


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"candidates": (8, 2)}, r"candidates must be positive and increasing, got \(8, 2\)"),
        ({"candidates": (2, 2)}, "candidates must be positive and increasing"),
        ({"f": 0}, "f must be at least 1, got 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(method, settings, message):
    with pytest.raises(ValueError, match=message):
        fit(changed(method, **settings), make_parts(500))


def test_training_settings_are_those_of_every_method():
    names = ("max_epochs", "patience", "batch_size", "lr", "weight_decay", "init_std")
    for name in names:
        assert getattr(DARTSConfig(), name) == getattr(TrainConfig(), name), name


@pytest.mark.parametrize("config", [DARTSConfig, AutoEmbConfig])
def test_every_setting_explains_itself(config):
    assert all(field.metadata["help"] for field in dataclasses.fields(config))
