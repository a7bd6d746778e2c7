"""Direct calls of the native operations that do not keep the contract are refused, never read from.

On the emulated kernels (tests/test_emulator.py) they are those of the CUDA library: both check by
the same functions.
"""

import pytest
import torch

from varemb.ops.backend import why_not
from varemb.testing import dims_of, make_table

pytestmark = pytest.mark.skipif(
    why_not("cpu", "cpu") is not None, reason=str(why_not("cpu", "cpu"))
)
OPS = torch.ops.varemb
HYPER = torch.tensor([0.1, 0, 1e-8, 0.9, 0.999, 1], dtype=torch.float64)
LOOKUPS, BAGS, WIDTH = 6, 2, 8
SUM, MEAN, MAX = 0, 1, 2


def table():
    return make_table(dims_of("uniform", 40, WIDTH), WIDTH)


def gradient(**changed):
    """Arguments of the gradient operations: two bags of three lookups, some of them changed."""
    call = {
        "grad": torch.ones(BAGS, WIDTH), "index": table().rows.index,
        "indices": torch.arange(LOOKUPS), "offsets": torch.tensor([0, 3]),
        "per_sample_weights": None, "limit": None, "winners": None, "num_rows": 40, "granule": 1,
        "mode": SUM, "padding_idx": -1, "include_last_offset": False,
    }  # fmt: skip
    assert call.keys() >= changed.keys()
    return list((call | changed).values())


WINNERS = torch.zeros(BAGS, WIDTH, dtype=torch.int32)
GRADIENTS = {
    "short weights": ({"per_sample_weights": torch.ones(5)}, "one number per index"),
    "double weights": ({"per_sample_weights": torch.ones(6).double()}, "of the dtype of the rows"),
    "strided weights": ({"per_sample_weights": torch.ones(12)[::2]}, "one-dimensional and contig"),
    "weights of a mean": ({"per_sample_weights": torch.ones(6), "mode": MEAN}, "belong to sum"),
    "weights without bags": (
        {"per_sample_weights": torch.ones(6), "offsets": None, "grad": torch.ones(6, WIDTH)},
        "belong to bags",
    ),
    "winners without bags": (
        {"winners": torch.zeros(6, WIDTH).int(), "offsets": None, "grad": torch.ones(6, WIDTH)},
        "belong to bags",
    ),
    "winners of a sum": ({"winners": WINNERS}, "winners belong to max"),
    "max without winners": ({"mode": MAX}, "winners belong to max"),
    "narrow winners": ({"winners": WINNERS[:, :7].contiguous(), "mode": MAX}, "the shape of grad"),
    "few winners": ({"winners": WINNERS[:1], "mode": MAX}, "winners must be int32 of the shape"),
    "strided winners": ({"winners": WINNERS.T.contiguous().T, "mode": MAX}, "winners must be cont"),
    "long winners": ({"winners": WINNERS.long(), "mode": MAX}, "winners must be int32"),
    "flat grad": ({"grad": torch.ones(BAGS * WIDTH)}, "grad must be contiguous, two-dim"),
    "strided grad": ({"grad": torch.ones(WIDTH, BAGS).T}, "grad must be contiguous, two-dim"),
    "few bags of grad": ({"grad": torch.ones(1, WIDTH)}, "grad has 1 bags, offsets describe 2"),
    "few rows of grad": ({"offsets": None}, "grad has 2 rows for 6 indices"),
    "other offsets": ({"offsets": torch.tensor([0, 3]).int()}, "must have the same dtype"),
    "no bags": ({"offsets": torch.zeros(0).long(), "grad": torch.ones(0, WIDTH)}, "at least one b"),
    "strided indices": ({"indices": torch.arange(12)[::2]}, "indices must be one-dimensional"),
    "float indices": ({"indices": torch.ones(6)}, "indices must be int32 or int64, got Float"),
    "an unknown mode": ({"mode": 3}, "mode must be 0"),
    "many rows": ({"num_rows": 49}, "too few for 49 rows"),
    "long limit": ({"limit": torch.ones(6).long()}, "limit must be int32"),
    "few limits": ({"limit": torch.ones(5).int()}, "one element or one per index"),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_call_that_does_not_fit(name):
    changed, message = GRADIENTS[name]
    values, call = table().values.detach(), gradient(**changed)
    with pytest.raises(ValueError, match=message):
        OPS.coalesce_dense(*call, values.numel())
    with pytest.raises(ValueError, match=message):
        OPS.coalesce(*call, values.numel())
    with pytest.raises(ValueError, match=message):
        OPS.coalesce_update_(values, None, None, HYPER, None, *call, 0)


def step(**changed):
    values = table().values.detach()
    state = {"state1": torch.zeros_like(values), "state2": torch.zeros_like(values),
             "hyper": HYPER, "rounding": None, "algorithm": 3}  # fmt: skip
    assert state.keys() >= changed.keys()
    state |= changed
    algorithm = state.pop("algorithm")
    return [values, *state.values()], algorithm


SMALL = torch.zeros(3)
STEPS = {
    "no state": ({"state1": None}, "state1 is missing"),
    "a state too many": ({"algorithm": 1}, "state2 does not belong to this optimizer"),
    "a short state": ({"state2": SMALL}, "state2 must have .* numbers of .*, got 3"),
    "state of rows": ({"algorithm": 2, "state1": SMALL, "state2": None}, "state1 must have 40 "),
    "short hyper": ({"hyper": HYPER[:5]}, r"hyper must be float64 \[6\]"),
    "float hyper": ({"hyper": HYPER.float()}, r"hyper must be float64 \[6\]"),
    "an unknown algorithm": ({"algorithm": 4}, "unknown algorithm 4"),
    "a negative algorithm": ({"algorithm": -1}, "unknown algorithm -1"),
    "rounding of floats": ({"rounding": torch.zeros(2).long()}, "needs values of float16 or bfl"),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_does_not_fit(name):
    changed, message = STEPS[name]
    state, algorithm = step(**changed)
    jagged = (table().rows.index, torch.arange(1), torch.ones(1))
    with pytest.raises(ValueError, match=message):
        OPS.update_(*state, *jagged, 40, WIDTH, 1, algorithm)
    with pytest.raises(ValueError, match=message):
        OPS.coalesce_update_(*state, *gradient(), algorithm)


@pytest.mark.parametrize(
    ("positions", "grad", "message"),
    [
        (torch.arange(1).int(), torch.ones(1), "positions must be int64"),
        (torch.arange(2), torch.ones(1), "must have the same length"),
        (torch.arange(1), torch.ones(1).double(), "grad must have the dtype of values"),
        (torch.arange(4)[::2], torch.ones(2), "positions must be one-dimensional and contiguous"),
    ],
)
def test_an_update_that_does_not_fit(positions, grad, message):
    state, algorithm = step()
    with pytest.raises(ValueError, match=message):
        OPS.update_(*state, table().rows.index, positions, grad, 40, WIDTH, 1, algorithm)


def test_rounding_that_does_not_fit():
    half = make_table(dims_of("uniform", 40, WIDTH), WIDTH, torch.bfloat16)
    call = gradient(grad=torch.ones(BAGS, WIDTH).bfloat16())
    for rounding in (torch.zeros(3).long(), torch.zeros(2).int(), torch.zeros(2, 1).long()):
        with pytest.raises(ValueError, match="rounding must be"):
            OPS.coalesce_update_(half.values.detach(), None, None, HYPER, rounding, *call, 0)
    with pytest.raises(ValueError, match="grad must have the dtype of values"):
        OPS.coalesce_update_(half.values.detach(), None, None, HYPER, None, *gradient(), 0)


def test_bags_that_do_not_fit():
    one = table()
    where, offsets = (40, WIDTH, 1), torch.tensor([0, 3])
    call = (one.values.detach(), one.rows.index, torch.arange(LOOKUPS), offsets)
    short, weights = torch.ones(5), torch.ones(LOOKUPS)
    with pytest.raises(ValueError, match="one number per index"):
        OPS.lookup_bag(*call, short, None, *where, SUM, -1, False)
    with pytest.raises(ValueError, match="per_sample_weights belong to sum"):
        OPS.lookup_bag(*call, weights, None, *where, MEAN, -1, False)
    with pytest.raises(ValueError, match="include_last_offset needs at least one offset"):
        OPS.lookup_bag(*call[:3], offsets[:0], None, None, *where, SUM, -1, True)
    for grad, message in (
        (torch.ones(3, WIDTH), "grad has 3 bags, offsets describe 2"),
        (torch.ones(2, WIDTH).double(), "grad must have the dtype of values"),
        (torch.ones(WIDTH), "grad must be contiguous, two-dimensional"),
    ):
        with pytest.raises(ValueError, match=message):
            OPS.lookup_bag_weights_backward(grad, *call, None, 40, 1, -1, False)


def test_matrices_that_do_not_fit():
    one = table()
    groups = torch.zeros(1, WIDTH + 1, 2, dtype=torch.int64)
    weight, bias, grad = torch.zeros(8, 3), torch.zeros(1, 3), torch.zeros(LOOKUPS, 3)
    head = (one.values.detach(), one.rows.index, torch.arange(LOOKUPS))
    for linear, message in (
        ((groups[:, 1:], weight, bias), "groups must be a contiguous int64 tensor"),
        ((groups[:0], weight, bias), "groups must be a contiguous int64 tensor"),
        ((groups, weight[0], bias), "weight must be contiguous, two-dimensional"),
        ((groups, weight, bias.expand(4, 3)), "bias must be contiguous, two-dimensional"),
        ((groups, weight, torch.zeros(1, 4)), "must have the same O"),
        ((groups, weight.double(), bias), "weight and bias must have the dtype of values"),
    ):
        with pytest.raises(ValueError, match=message):
            OPS.lookup_linear(*head, *linear, 40, WIDTH, 1)
        with pytest.raises(ValueError, match=message):
            OPS.lookup_linear_backward(grad, *head, *linear, 40, WIDTH, 1)
    for wrong in (grad[:5], grad.double(), torch.zeros(LOOKUPS, 4)):
        with pytest.raises(ValueError, match=r"grad must be \[6, 3\], of the dtype of values"):
            OPS.lookup_linear_backward(wrong, *head, groups, weight, bias, 40, WIDTH, 1)
