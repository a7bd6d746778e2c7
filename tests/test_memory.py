"""memory_report: bytes of the buffers, against one width."""

import torch
from torch import nn

import varemb
from varemb import VarEmbedding, VarEmbeddingBag, memory_report


def test_report_counts_every_part_of_every_table():
    model = nn.ModuleDict(
        {
            "user": VarEmbedding(240, 16, dims=4, unify="linear"),
            "tower": nn.Sequential(VarEmbeddingBag(48, 8, dims=2, mode="sum")),
            "head": nn.Linear(16, 1),
        }
    )
    adam = varemb.optim.Adam([model["user"].weight])
    plain = torch.optim.Adagrad(model["tower"].parameters())
    model["tower"](torch.zeros(2, 2, dtype=torch.int64)).sum().backward()
    report = memory_report(model, [adam, plain])
    user, bag = report.tables
    assert (user.name, bag.name) == ("user", "tower.0")
    assert user.bytes["weights"] == 240 * 4 * 4 and user.bytes["index"] == 10 * 32
    assert user.bytes["optimizer"] == 2 * 240 * 4 * 4
    assert user.bytes["unify"] == (4 * 16 + 16) * 4 + model["user"].unify.groups.nbytes
    assert user.bytes_full == 3 * 240 * 16 * 4
    assert bag.bytes["gradient"] == bag.bytes["optimizer"] == bag.bytes["weights"] == 48 * 2 * 4
    assert bag.bytes_full == 3 * 48 * 8 * 4
    assert report.params == 240 * 4 + 48 * 2 and report.params_full == 240 * 16 + 48 * 8
    assert report.ratio == report.total / report.bytes_full
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines] == ["table", "user", "tower.0", "all"]


def test_row_wise_state_is_counted_once_per_row():
    table = VarEmbedding(240, 16, dims=4)
    report = memory_report(table, varemb.optim.RowWiseAdagrad(table.parameters()))
    assert report.bytes["optimizer"] == 240 * 4
    assert report.bytes_full == 240 * 16 * 4 + 240 * 4
    narrow = VarEmbedding(240, 16, dims=1)  # as many numbers as rows
    report = memory_report(narrow, varemb.optim.RowWiseAdagrad(narrow.parameters()))
    assert report.bytes_full == 240 * 16 * 4 + 240 * 4


def test_memory_is_within_3_percent_of_the_numbers_at_mean_dim_12():
    dims = torch.randint(4, 21, (50_000,))
    table = VarEmbedding(50_000, 32, dims=dims)
    report = memory_report(table, varemb.optim.Adam(table.parameters()))
    numbers = 3 * 4 * int(dims.sum())
    assert report.total <= 1.03 * numbers


def test_a_resizable_table_counts_what_it_has_allocated():
    table = VarEmbedding(1000, 32, dims=8, resizable=True, sizes=(8, 32))
    optimizer = varemb.optim.Adam([table.weight])
    table.remove(torch.arange(100))
    table.resize(torch.arange(100, 110), 32)
    (report,) = memory_report(table, optimizer).tables
    assert (report.num_rows, report.params) == (900, 890 * 8 + 10 * 32)
    assert report.allocated == table.weight.numel() >= report.params
    assert report.bytes["weights"] == 4 * report.allocated
    assert report.bytes["optimizer"] == 2 * 4 * report.allocated
    assert report.bytes_full == 3 * 900 * 32 * 4
    index = table.storage.index
    assert report.bytes["index"] >= index.nbytes + 4 * 110 + 4 * 100  # free slots, removed rows
    table.compact()
    (report,) = memory_report(table, optimizer).tables
    assert report.allocated == report.params
