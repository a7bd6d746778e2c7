import pytest
import torch

from varemb.data import ClickData


def make_data(rows=10):
    ids = torch.stack([torch.arange(rows), torch.arange(rows) % 2], 1)
    return ClickData(ids, (torch.arange(rows) % 3 == 0).float(), ("user", "sex"), (rows, 2))


def test_split_gives_disjoint_parts_of_the_right_size():
    parts = make_data(1005).split(3)
    assert [len(part) for part in parts] == [804, 100, 101]
    users = torch.cat([part.ids[:, 0] for part in parts])
    assert torch.equal(users.sort().values, torch.arange(1005))
    whole = make_data(1005)
    for part in parts:
        assert torch.equal(part.labels, whole.labels[part.ids[:, 0]])
        assert part.cardinalities == (1005, 2)


def test_split_depends_on_the_seed_only():
    data = make_data(100)
    assert torch.equal(data.split(1)[0].ids, data.split(1)[0].ids)
    assert not torch.equal(data.split(1)[0].ids, data.split(2)[0].ids)


def test_split_refuses_an_empty_part():
    with pytest.raises(ValueError, match=r"every part needs a row; 4 rows .* give \[3, 1, 0\]"):
        make_data(4).split(0)


@pytest.mark.parametrize("fractions", [(0.5, 0.4), (1.2, -0.2), ()])
def test_split_refuses_fractions_that_are_no_shares(fractions):
    with pytest.raises(ValueError, match="fractions must be positive and add up to 1"):
        make_data().split(0, fractions)


@pytest.mark.parametrize("label", [2.0, -1.0, 0.5, float("nan")])
def test_labels_must_be_0_or_1(label):
    labels = torch.tensor([0.0, label])
    with pytest.raises(ValueError, match=f"labels must be 0 or 1, got {label} in row 1"):
        ClickData(torch.zeros(2, 1, dtype=torch.int32), labels, ("a",), (1,))


@pytest.mark.parametrize("bad", [-1, 2])
def test_ids_must_be_in_their_field(bad):
    ids = torch.tensor([[0, 0], [0, bad]])
    with pytest.raises(ValueError, match=rf"ids of b must be in \[0, 2\), got {bad} in row 1"):
        ClickData(ids, torch.zeros(2), ("a", "b"), (5, 2))


def test_shapes_and_types_must_fit():
    ids = torch.zeros(2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"a column per field name, .*got ids \[2, 2\]"):
        ClickData(ids, torch.zeros(2), ("a",), (1,))
    with pytest.raises(ValueError, match=r"labels must be \[2\], one per row of ids, got \[3\]"):
        ClickData(ids, torch.zeros(3), ("a", "b"), (1, 1))
    with pytest.raises(ValueError, match=r"ids must be int32 or int64, got torch.float32"):
        ClickData(ids.float(), torch.zeros(2), ("a", "b"), (1, 1))
