import math

import pytest
import torch

from varemb.search.base import StoredTable
from varemb.search.quantized import Marks, QuantizedTable, bits_for, pack_bits, read_bits
from varemb.search.training import split_tables


@pytest.mark.parametrize("bits", [1, 3, 5, 6, 8, 11, 16])
@pytest.mark.parametrize("count", [1, 7, 8, 100])
def test_packed_codes_read_back_and_have_no_gaps(bits, count):
    codes = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(0))
    codes[-1] = 2**bits - 1
    packed = pack_bits(codes, bits)
    assert packed.nbytes == math.ceil(count * bits / 8) + 2
    assert torch.equal(read_bits(packed, torch.arange(count), bits), codes)


@pytest.mark.parametrize("rows", [1, 64, 65, 300])
def test_marks_count_the_rows_before(rows):
    marked = torch.rand(rows, generator=torch.Generator().manual_seed(0)) < 0.3
    found, before = Marks(marked).find(torch.arange(rows))
    assert torch.equal(found, marked)
    assert torch.equal(before, marked.cumsum(0) - marked.long())


def make_table(head=None, centroids=6, tail=2):
    torch.manual_seed(0)
    return QuantizedTable([70, 8], 4, 2, centroids, 0.25, 1.0, head, tail)


def all_ids():
    return torch.stack([torch.arange(70), torch.arange(70) % 8], 1)


def distances_to(table, q, f, g):
    """Squared distances, one row at a time. [n, 2] -> [n, K]"""
    return torch.stack([(row - table.codebooks[f][g]).square().sum(1) for row in q])


def naive(table, ids):
    """Distance, normalisation by the running statistics, nearest: one group at a time."""
    dense, sizes = table.queries.to_dense(), [codebook.shape[1] for codebook in table.codebooks]
    out, place = torch.empty(*ids.shape, 4), 0
    for f, size in enumerate(sizes):
        rows = ids[:, f] + (0, 70)[f]
        for g in range(2):
            columns, part = slice(g * 2, g * 2 + 2), slice(place, place + size)
            place += size
            distances = distances_to(table, dense[rows, columns], f, g)
            scores = (distances - table.mean[part]) / table.var[part].sqrt()
            for b, row in enumerate(rows):
                code = int(scores[b, : table.limits[row]].argmin())
                out[b, f, columns] = table.codebooks[f][g, code].detach()
    return out


@pytest.mark.parametrize("is_tiered", [False, True])
def test_serving_reads_the_nearest_centroids_from_packed_codes(is_tiered):
    head = torch.rand(78, generator=torch.Generator().manual_seed(1)) < 0.4
    table, ids = make_table(head if is_tiered else None), all_ids()
    for _ in range(5):
        table(ids)  # moves the running statistics
    table.eval()
    torch.testing.assert_close(table(ids), naive(table, ids))
    if is_tiered:
        codes = table.codes()
        assert codes[~head].max() < 2 <= codes[head].max()


def test_serving_follows_the_weights():
    table, ids = make_table().eval(), all_ids()
    before = table(ids)
    with torch.no_grad():
        table.queries.weight.neg_()
    assert not torch.equal(table(ids), before)
    torch.testing.assert_close(table(ids), naive(table, ids))
    table.load_state_dict(make_table().state_dict())
    assert torch.equal(table(ids), before)


def test_training_gives_centroids_and_the_queries_their_gradient():
    table, ids = make_table(), all_ids()
    out = table(ids)
    dense, place = table.queries.to_dense(), 0
    for f in range(2):
        for g in range(2):
            q = dense[ids[:, f] + (0, 70)[f], g * 2 : g * 2 + 2]
            distances = distances_to(table, q, f, g)
            mean, part = distances.mean(0), slice(place, place + 6)
            place += 6
            codes = ((distances - mean) / distances.std(0)).argmin(1)
            torch.testing.assert_close(out[:, f, g * 2 : g * 2 + 2], table.codebooks[f][g][codes])
            # The first batch is all that the running statistics know.
            torch.testing.assert_close(table.mean[part], mean.detach())
            torch.testing.assert_close(table.var[part], distances.var(0).detach())
    out.sum().backward()
    assert torch.equal(table.queries.weight.grad.view(78, 4)[:70], torch.ones(70, 4))
    assert table.codebooks[0].grad is None


def test_small_numbers_are_served_with_the_codes_they_trained_with_from_the_first_batch():
    """Distances vary by 1e-9; running variances that start at 1 would forget that for long."""
    table, ids = make_table(), all_ids()
    with torch.no_grad():
        for parameter in table.parameters():
            parameter.mul_(1e-2)
    trained = table(ids)
    table.eval()
    torch.testing.assert_close(table(ids), trained)
    table.train()
    for _ in range(30):
        table(ids)
    assert table.batches == 31
    table.eval()
    torch.testing.assert_close(table(ids), trained)


def test_normalisation_does_not_depend_on_the_numbers_size():
    small, large = make_table(), make_table()
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(2.0**-8)
    assert torch.equal(small(all_ids()) * 2.0**8, large(all_ids()))


def test_the_penalty_by_its_formula():
    table, ids = make_table(), all_ids()
    out = table(ids).detach().view(70, 2, 2, 2)
    queries = table.queries(ids).detach().view(70, 2, 2, 2)
    squared = (out - queries).square().sum(3).mean()
    torch.testing.assert_close(table.penalty().detach(), 1.25 * squared)
    table.penalty().backward()
    pull = 0.25 * 2 * (queries - out)[:, 0].flatten(1) / (70 * 2 * 2)
    torch.testing.assert_close(table.queries.weight.grad.view(78, 4)[:70], pull)
    total = (2 * (out - queries) / (70 * 2 * 2)).sum((0, 3))
    found = torch.stack([codebook.grad.sum((1, 2)) for codebook in table.codebooks])
    torch.testing.assert_close(found, total)
    table.eval()(ids)
    assert float(table.penalty()) == 0


def test_bytes_are_those_of_codes_and_centroids():
    table = make_table(centroids=32)
    assert isinstance(table, StoredTable) and bits_for(32) == 5
    # The field of 8 rows has 8 centroids.
    bits, numbers = 78 * 2 * 5, 2 * (32 + 8) * 2
    assert table.num_params == math.ceil(bits / 32) + numbers
    assert table.num_params_training == 78 * 4 + numbers
    weights = math.ceil(bits / 8) + 2 + 4 * numbers
    assert table.num_bytes() == {"weights": weights, "index": 8 * 3, "unify": 0}
    # Without codebooks: the 5 bits of 2 groups against 4 numbers of 32 bits.
    assert weights - 4 * numbers == 98 + 2 and 4 * 78 * 4 == 1248


def test_bytes_of_two_tiers():
    head = torch.arange(78) < 10
    table = make_table(head, centroids=256, tail=64)
    numbers = 2 * (70 + 8) * 2
    assert table.num_params == math.ceil((10 * 2 * 8 + 68 * 2 * 6) / 32) + numbers
    weights = (20 + 2) + (math.ceil(68 * 2 * 6 / 8) + 2) + 4 * numbers
    marks = 128 // 8 + 2 + 2 * 4
    assert table.num_bytes() == {"weights": weights, "index": marks + 8 * 3, "unify": 0}
    assert sum(t.nbytes for t in table.stored().values()) == weights + marks + 24


def test_centroids_do_not_decay():
    """They would be drawn away from their queries, as the loss moves them but gently."""
    table = make_table()
    tables, others = split_tables(table)
    assert tables == [table.queries.weight]
    assert {id(p) for p in others} == {id(codebook) for codebook in table.codebooks}
