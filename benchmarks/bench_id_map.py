"""`python -m benchmarks.bench_id_map`: lookups of raw ids a second, beside dict, numpy and pandas.

All contenders hold the same distinct ids and get the same fresh batch in every round, in turns, and
must agree before anything is timed. On a machine that others use too, the ids per second of the
processor tell more than those of the clock.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from varemb.id_map import IdMap

Ints = npt.NDArray[np.int64]
Lookup = Callable[[Ints], Ints]


def make_ids(count: int) -> Ints:
    """Distinct ids as data sets have them: hashes of 63 bits. [count]"""
    generator = np.random.default_rng(0)
    ids = np.unique(generator.integers(0, 2**63 - 1, count + count // 1000 + 10))
    return generator.permutation(ids)[:count]


def make_batches(
    ids: Ints, size: int, rounds: int, exponent: float | None
) -> list[Ints]:  # [rounds][size]
    """Ids drawn uniformly, or by Zipf's law with the popular ids anywhere in the map."""
    generator = np.random.default_rng(1)
    if exponent is None:
        return [ids[generator.integers(0, len(ids), size)] for _ in range(rounds)]
    shares = np.cumsum(np.arange(1, len(ids) + 1) ** -exponent)
    ranks = [np.searchsorted(shares, generator.random(size) * shares[-1]) for _ in range(rounds)]
    places = generator.permutation(len(ids))
    return [ids[places[rank]] for rank in ranks]


def make_contenders(ids: Ints, threads: list[int]) -> dict[str, tuple[Lookup, float]]:
    """Name -> what looks a batch up, and the bytes that it takes for an id."""
    mapped = IdMap.from_ids(ids)
    contenders: dict[str, tuple[Lookup, float]] = {}
    for count in threads:
        contenders[f"IdMap, {count} thread{'s' * (count > 1)}"] = (
            lambda batch, count=count: mapped.rows(batch, grow=False, threads=count),
            mapped.nbytes / len(ids),
        )
    order = np.argsort(ids)
    ordered = ids[order]
    contenders["numpy searchsorted"] = (
        lambda batch: order[np.searchsorted(ordered, batch)],
        (order.nbytes + ordered.nbytes) / len(ids),
    )
    before = resident()
    known = {id_: row for row, id_ in enumerate(ids.tolist())}
    contenders["dict"] = (
        lambda batch: np.array([known.get(id_, -1) for id_ in batch.tolist()]),
        (resident() - before) / len(ids),
    )
    try:
        import pandas
    except ImportError:
        print("pandas is not installed: not measured")
        return contenders
    before = resident()
    index = pandas.Index(ids)
    index.get_indexer(ids[:1])  # builds its table
    contenders["pandas Index"] = (index.get_indexer, (resident() - before) / len(ids) + 8)
    return contenders


def resident() -> int:
    """Bytes of this process in memory; where the system does not tell, the most there ever were."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def measure(contenders: dict[str, tuple[Lookup, float]], batches: list[Ints]) -> None:
    """Prints million ids a second: median, 20 and 80 percentiles, and by processor time."""
    expected = next(iter(contenders.values()))[0](batches[0])
    names = list(contenders)
    for name in names:
        if not (contenders[name][0](batches[0]) == expected).all():
            raise RuntimeError(f"bench_id_map: {name} finds other rows")
    clock: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    for number, batch in enumerate(batches):
        for turn in range(len(names)):
            name = names[(turn + number) % len(names)]
            start, busy = time.perf_counter(), time.process_time()
            contenders[name][0](batch)
            processor[name].append(time.process_time() - busy)
            clock[name].append(time.perf_counter() - start)
    for name in names:
        rates = len(batches[0]) / np.array(clock[name]) / 1e6
        low, median, high = np.percentile(rates, [20, 50, 80])
        busy = len(batches[0]) / float(np.median(processor[name])) / 1e6
        size = contenders[name][1]
        print(f"{name:22}{median:8.1f}{low:8.1f}{high:8.1f}{busy:12.1f}{size:12.1f}")


def measure_growth(ids: Ints, batch: int) -> None:
    """Prints how long it takes to fill a map from nothing, and its slowest call."""
    mapped = IdMap()
    seconds, most = [], 0.0
    for start in range(0, len(ids), batch):
        before = time.thread_time()
        mapped.rows(ids[start : start + batch], grow=True, threads=1)
        seconds.append(time.thread_time() - before)
        if start > 200_000:  # before that the 256 shards are a good part of it
            most = max(most, mapped.nbytes / len(mapped))
    longest, middle = 1e3 * max(seconds), 1e3 * float(np.median(seconds))
    print(
        f"growing by {batch} new ids a call, in processor time: {sum(seconds):.2f} s in all, "
        f"median {middle:.3f} ms, longest {longest:.2f} ms; at most {most:.2f} bytes an id"
    )
    before = time.thread_time()
    IdMap.from_ids(ids)
    print(f"IdMap.from_ids (loading a saved map): {time.thread_time() - before:.2f} s")


def main() -> None:
    """Measures growth, then lookups of uniform and of popular ids."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", type=int, default=10_000_000, help="ids in the map")
    parser.add_argument("--batch", type=int, default=1_000_000, help="ids looked up in a call")
    parser.add_argument("--rounds", type=int, default=11, help="measured batches")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of IdMap")
    parser.add_argument("--zipf", type=float, default=1.05, help="exponent of the popular ids")
    options = parser.parse_args()
    print(f"{options.ids} ids, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    ids = make_ids(options.ids)
    measure_growth(ids, 500)
    contenders = make_contenders(ids, options.threads)
    for name, exponent in (("uniform", None), (f"Zipf {options.zipf}", options.zipf)):
        print(f"\n{name}, {options.batch} ids a call; million ids per second, bytes an id")
        print(f"{'':22}{'median':>8}{'20 %':>8}{'80 %':>8}{'of a CPU':>12}{'bytes':>12}")
        measure(contenders, make_batches(ids, options.batch, options.rounds, exponent))


if __name__ == "__main__":
    main()
