"""What every recommender promises, whatever the plan of its table."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from varemb import SizePlan, VarEmbedding
from varemb.cli import main
from varemb.data import planted_clicks
from varemb.experiment import MODELS
from varemb.search import AutoDim, AutoDimConfig, TrainConfig, train_plan

CARDINALITIES = (5, 3, 2)
WIDTH = 4
IDS = torch.tensor([[4, 2, 1], [0, 0, 0], [1, 2, 0], [4, 1, 1], [3, 0, 1]])
DIMS = {
    "full": (4, 4, 4),
    "per field": (4, 2, 1),
    "a field of dim 0": (2, 0, 3),
    "nothing stored": (0, 0, 0),
    "per row": (4, 0, 1, 2, 4, 3, 0, 1, 2, 4),
}


def make_table(dims=DIMS["per field"], unify="pad", cardinalities=CARDINALITIES):
    return VarEmbedding.for_fields(cardinalities, WIDTH, list(dims), unify=unify)


class MaskedTable(nn.Module):
    """What a jagged table stands for: all rows in full, with zeros in place of what is cut."""

    def __init__(self, table):
        super().__init__()
        self.mask = torch.arange(WIDTH) < table.dims[:, None]  # [N, D]
        self.starts = table.field_starts[:-1]  # [F]
        self.weight = nn.Parameter(torch.randn(self.mask.shape))
        with torch.no_grad():
            self.weight[self.mask] = table.weight

    def forward(self, ids):
        return F.embedding(ids + self.starts, self.weight.where(self.mask, 0))


def move_parameters(model):
    """A model in which no weight is 0 and no norm the identity, so that no term of it hides."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.rand_like(tensor)
    return model


@pytest.fixture(params=MODELS)
def make_model(request):
    def make(table, cardinalities=CARDINALITIES):
        return MODELS[request.param](cardinalities, WIDTH, table)

    return make


class TestModel:
    @pytest.mark.parametrize("is_training", [True, False])
    @pytest.mark.parametrize("unify", ["pad", "linear"])
    @pytest.mark.parametrize("dims", DIMS.values(), ids=DIMS)
    def test_one_finite_logit_per_row(self, make_model, dims, unify, is_training):
        logits = make_model(make_table(dims, unify)).train(is_training)(IDS)
        assert logits.shape == (5,)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()

    def test_no_rows_give_no_logits(self, make_model):
        assert make_model(make_table()).eval()(IDS[:0]).shape == (0,)

    def test_a_row_does_not_see_the_others(self, make_model):
        model = move_parameters(make_model(make_table())).eval()
        logits = torch.cat([model(row[None]) for row in IDS])
        torch.testing.assert_close(model(IDS), logits)
        assert logits.unique().numel() == 5

    def test_ids_of_both_kinds(self, make_model):
        model = make_model(make_table()).eval()
        assert torch.equal(model(IDS), model(IDS.int()))

    def test_ids_of_other_fields_are_refused(self, make_model):
        model = make_model(make_table())
        with pytest.raises(IndexError):
            model(torch.tensor([[0, 3, 0], [0, 0, 0]]))
        with pytest.raises(ValueError, match="must have 3 fields"):
            model(IDS[:, :2])

    @pytest.mark.parametrize("cardinalities", [(5,), (5, 3)])
    def test_one_field_and_two(self, make_model, cardinalities):
        table = make_table([3] * len(cardinalities), cardinalities=cardinalities)
        model = make_model(table, cardinalities)
        logits = model(IDS[:, : len(cardinalities)])
        logits.square().sum().backward()
        assert logits.shape == (5,)
        assert logits.isfinite().all()
        for name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all(), name

    def test_gradients_reach_every_parameter(self, make_model):
        # in evaluation: in training, batch norm takes out the bias of the layer before it
        model = move_parameters(make_model(make_table(unify="linear"))).eval()
        model(IDS).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name

    @pytest.mark.parametrize("dims", DIMS.values(), ids=DIMS)
    def test_a_jagged_table_is_a_dense_one_with_a_mask(self, make_model, dims):
        table = make_table(dims)
        masked, logits = MaskedTable(table), []
        model = move_parameters(make_model(nn.Identity()))
        for embedding in (table, masked):
            model.embedding = embedding
            torch.manual_seed(0)  # of dropout
            logits.append(model(IDS))
            logits[-1].square().sum().backward()
        assert torch.equal(*logits)
        torch.testing.assert_close(table.weight.grad, masked.weight.grad[masked.mask])
        assert not masked.weight.grad[~masked.mask].any()

    def test_one_seed_gives_one_model(self, make_model):
        logits = []
        for _ in range(2):
            torch.manual_seed(3)
            logits.append(make_model(make_table())(IDS))
        assert torch.equal(*logits)


CLICKS = planted_clicks(8000, dims={"user": 4, "city": 2}, ids_per_field=20, scale=3.0).split(0)
ROWS = dict(zip(CLICKS[0].field_names, CLICKS[0].cardinalities, strict=True))


def measure_auc(name, dims):
    config = TrainConfig(batch_size=100, lr=1.5e-2, weight_decay=1e-5, init_std=0.3, max_epochs=2)
    plan = SizePlan.for_fields(ROWS, 8, dict(zip(ROWS, dims, strict=True)))

    def make(table):
        return MODELS[name](tuple(ROWS.values()), 8, table)

    return train_plan(make, plan, *CLICKS, config, progress=False)[1]["metrics"]["auc"]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_the_planted_clicks(name):
    assert measure_auc(name, (4, 2, 8)) > 0.65


def test_weights_per_id_alone_do_not_learn_the_planted_clicks():
    # unify is a bias per field then: what is left of FM sees no pair of ids
    assert measure_auc("fm", (0, 0, 0)) < 0.65


@pytest.mark.parametrize("name", MODELS)
def test_every_model_can_be_searched_with(name):
    config = AutoDimConfig(
        candidates=(2, 4), f=1, warmup_epochs=1, search_epochs=1, batch_size=3200
    )

    def make(table):
        return MODELS[name](tuple(ROWS.values()), 4, table)

    train, valid, _ = CLICKS
    found = AutoDim(config).fit(make, train, valid, progress=False)
    assert list(found.plan) == list(ROWS)


def test_the_command_line_offers_every_model(capsys):
    assert set(MODELS) == {"fm", "wide-deep", "deepfm", "nfm", "ipnn", "autoint"}
    for command in (["train"], ["search", "autodim"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        shown = capsys.readouterr().out
        assert all(name in shown for name in MODELS)
