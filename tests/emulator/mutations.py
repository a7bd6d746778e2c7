"""Breaks the kernels one line at a time; the operations' tests must fail each time.

The suite tries the few of QUICK. All of them, in about five minutes on two cores:

    PYTHONPATH=tests python -m emulator.mutations

Names as arguments try only these. Nothing in the checkout is changed: a copy of csrc is.
"""

import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from emulator.build import CSRC, build, rebuild
from emulator.run import start_tests

# What pytest returns when a test failed, and AddressSanitizer when it stopped the process; other
# codes mean that no test ran.
FAILED = 1

# The operation that is broken, only this one because each takes long to compile, and its tests.
LOOKUP = ("lookup", ["ops/test_lookup.py", "-k", "dense_row or limit"])
BAG = ("lookup_bag", ["ops/test_lookup_bag.py", "-k", "torchs or weights or last_offset or nan"])
PIECES = ("lookup_bag", ["emulator/test_structure.py", "-k", "lookup_bag"])
LINEAR = ("lookup_linear", ["ops/test_lookup_linear.py", "emulator/test_structure.py",
                            "-k", "lookup_linear"])  # fmt: skip
REPACK = ("repack", ["ops/test_repack.py", "emulator/test_structure.py", "-k", "repack"])
COALESCE = ("coalesce", ["ops/test_coalesce.py", "ops/test_lookup.py", "ops/test_lookup_bag.py",
                         "-k", "coalesce or backward or limit or torchs"])  # fmt: skip
PAGED = ("lookup", ["ops/test_layouts.py", "-k", "test_lookup_and_gradient or absent"])
PAGED_SUM = ("coalesce", ["ops/test_layouts.py", "-k", "test_lookup_and_gradient or absent"])
UPDATE = ("update", ["ops/test_update.py", "ops/test_rounding.py"])
WIDE_UPDATE = ("update", ["ops/test_update.py", "-k", "row_wise and widest"])


class Mutation(NamedTuple):
    """One broken line."""

    name: str
    file: str  # below csrc
    text: str  # in it once
    replacement: str
    operation_and_tests: tuple[str, list[str]]  # that must fail

    def __str__(self) -> str:
        return self.name

    def apply(self, folder: Path) -> Path:
        """A broken copy of csrc.

        Raises:
            RuntimeError: the file has changed and the text is no longer there, or not alone.
        """
        source = (CSRC / self.file).read_text()
        count = source.count(self.text)
        if count != 1:
            raise RuntimeError(
                f"mutation {self.name}: {self.file} must hold its text once, holds it {count} "
                f"times: {self.text!r}"
            )
        csrc = folder / "csrc"
        shutil.copytree(CSRC, csrc, ignore=shutil.ignore_patterns("cpu"))
        (csrc / self.file).write_text(source.replace(self.text, self.replacement))
        return csrc

    def is_noticed(self, folder: Path) -> bool:
        """Whether the tests fail on the broken kernels.

        Raises:
            RuntimeError: it does not compile, or no test ran.
        """
        operation, tests = self.operation_and_tests
        library = rebuild(self.apply(folder), self.file, operation, folder / "objects")
        run = start_tests(library, [*tests, "-x", "--tb=no"])
        output, _ = run.communicate()
        if run.returncode not in (0, FAILED):
            raise RuntimeError(f"mutation {self.name}: no test ran\n{output[-3000:]}")
        return run.returncode == FAILED


MUTATIONS = [
    Mutation(
        "a load past the row's end", "cuda/device.cuh",
        "v < count ? from[v] : narrow<T>(0)", "from[v]", LOOKUP,
    ),
    Mutation(
        "a store past the row's end", "cuda/device.cuh",
        "if (v < count) to[v] = pack.numbers[v];", "to[v] = pack.numbers[v];", LOOKUP,
    ),
    Mutation(
        "a whole pack where the row has fewer numbers", "cuda/device.cuh",
        "return count >= Pack<T>::kSize &&", "return count > 0 &&", LOOKUP,
    ),
    Mutation(
        "a limit that is not applied", "rows.h",
        "return limit < 0 ? 0 : limit < dim ? limit : dim;", "return dim;",
        LOOKUP,
    ),
    Mutation(
        "no barrier between the warps of a sum", "cuda/device.cuh",
        "__syncthreads();  // every warp's part must be there", "",
        WIDE_UPDATE,
    ),
    Mutation(
        "columns of lanes that overlap", "cuda/device.cuh",
        "return (pack * kLanes + lane) * kPack;", "return (pack * kLanes / 2 + lane) * kPack;", BAG,
    ),
    Mutation(
        "a slot of too few bits", "rows.h",
        "handle & ((1u << kSlotBits) - 1);", "handle & ((1u << (kSlotBits - 1)) - 1);", PAGED,
    ),
    Mutation(
        "a chunk's base one number on", "rows.h",
        "(word >> kDimBits) + slot", "(word >> kDimBits) + 1 + slot", PAGED,
    ),
    Mutation(
        "slots counted from one", "rows.h", "slot * uint64_t(dim)", "(slot + 1) * uint64_t(dim)",
        PAGED_SUM,
    ),
    Mutation(
        "a chunk past the last one", "rows.h", "chunk < num_chunks;", "chunk <= num_chunks;", PAGED,
    ),
    Mutation(
        "a row that ends past the numbers", "rows.h",
        "if (!is_chunk || offset + dim > numbers)", "if (!is_chunk || offset > numbers)", PAGED,
    ),
    Mutation(
        "handles taken for chunks", "tensors.h",
        "data<uint64_t>(args.index) + words,", "data<uint64_t>(args.index) + words - 1,", PAGED,
    ),
    Mutation(
        "absent rows that are read as empty", "cuda/device.cuh",
        "return !Rows::kMayLackRows || where.dim >= 0;", "return true;", PAGED,
    ),
    Mutation(
        "zeros that are not written", "cuda/lookup.cuh",
        "width - k, packs[i])", "where[i].dim - k, packs[i])", LOOKUP,
    ),
    Mutation(
        "a last row that is not written", "cuda/lookup.cuh",
        "if (position < lookups) store_pack(", "if (position + 1 < lookups) store_pack(",
        LOOKUP,
    ),
    Mutation(
        "empty bags that take a lookup", "cuda/bags.cuh",
        "offsets[middle] <= position ?", "offsets[middle] < position ?", BAG,
    ),
    Mutation(
        "a last bag that goes on to the end", "cuda/bags.cuh",
        "bag + 1 < bags || has_last ?", "bag + 1 < bags ?", BAG,
    ),
    Mutation(
        "padding that counts", "cuda/lookup_bag.cuh",
        "if (index == call.padding_idx) return found;", "", BAG,
    ),
    Mutation(
        "the next lookups found too early", "cuda/lookup_bag.cuh",
        "next = Lookups::at(call, first + Lookups::kCount, end);",
        "next = Lookups::at(call, first + Lookups::kCount - 1, end);", BAG,
    ),
    Mutation(
        "a maximum that loses NaN", "cuda/lookup_bag.cuh",
        "!(number <= best[at]) && best[at] == best[at]", "number > best[at]", BAG,
    ),
    Mutation(
        "pieces of a row that are all the first", "cuda/lookup_bag.cuh",
        "(place % parts) * kColumns", "(place % parts) * 0", PIECES,
    ),
    Mutation(
        "a mean over all lookups", "cuda/lookup_bag.cuh",
        "if (call.padding_idx < 0) return end - begin;", "if (true) return end - begin;", BAG,
    ),
    Mutation(
        "weights' gradient beyond the limit of a row", "cuda/lookup_bag.cuh",
        "const Pack<T> left = load_pack(numbers + k, dim - k);",
        "const Pack<T> left = load_pack(numbers + k, dim - k + 1);", BAG,
    ),
    Mutation(
        "no barrier before a product", "cuda/lookup_linear.cuh",
        "__syncthreads();  // all terms must be there", "", LINEAR,
    ),
    Mutation(
        "no barrier after a product", "cuda/lookup_linear.cuh",
        "__syncthreads();  // the terms before may still be read", "", LINEAR,
    ),
    Mutation(
        "lookups of the tile before", "cuda/lookup_linear.cuh",
        "__syncthreads();  // every lookup must be there", "", LINEAR,
    ),
    Mutation(
        "a tile that leaves out its last lookup", "cuda/lookup_linear.cuh",
        "left < kTileRows ? left : kTileRows", "left < kTileRows ? left : kTileRows - 1", LINEAR,
    ),
    Mutation(
        "a part that leaves out its last tile", "cuda/lookup_linear.cuh",
        "const int64_t end = *tiles;", "const int64_t end = *tiles - 1;", LINEAR,
    ),
    Mutation(
        "matrix rows of the block before", "cuda/lookup_linear.cuh",
        "first_row(cell) + rows(cell) > top;", "first_row(cell) >= top;", LINEAR,
    ),
    Mutation(
        "numbers beyond the kept ones", "cuda/repack.cuh",
        "k < move.kept ? from[k] : T(0)", "k < move.dim ? from[k] : T(0)", REPACK,
    ),
    Mutation(
        "lanes that write before others have read", "cuda/repack.cuh",
        "__syncwarp(lanes);", "", REPACK,
    ),
    Mutation(
        "a row copied from the wrong end", "cuda/repack.cuh",
        "(to <= from ? c : chunks - 1 - c)", "c", REPACK,
    ),
    Mutation(
        "a long run's first part read from its second place", "cuda/gradient.cuh",
        "2 * i + (i == window ? 1 : 0)", "2 * i", COALESCE,
    ),
    Mutation(
        "a run that takes the next one's first lookup", "cuda/gradient.cuh",
        "return run + 1 < *count ? starts[run + 1] : *total;",
        "return run + 1 < *count ? starts[run + 1] + 1 : *total;", COALESCE,
    ),
    Mutation(
        "max's gradient for every lookup", "cuda/gradient.cuh",
        "column + v] != position)", "column + v] < 0)", COALESCE,
    ),
    Mutation(
        "the first lookup's limit for the whole run", "cuda/coalesce.cuh",
        "dim = other > dim ? other : dim;", "", COALESCE,
    ),
    Mutation(
        "touched numbers at one place", "cuda/coalesce.cuh",
        "positions[first[run] + k] = offset + k;", "positions[first[run] + k] = offset;", COALESCE,
    ),
    Mutation(
        "state of the pack before", "cuda/update.cuh",
        "part = load_pack(state + at + v, count - v);", "part = load_pack(state + at, count);",
        UPDATE,
    ),
    Mutation(
        "random words of another place", "cuda/update.cuh",
        "random_words(rounding[0], rounding[1], position / 4)",
        "random_words(rounding[0], rounding[1], position / 8)", UPDATE,
    ),
]  # fmt: skip

# Quick to compile, and of different kinds: a mask, a barrier of a warp, a bound, a tail.
_QUICK = (
    "zeros that are not written",
    "lanes that write before others have read",
    "numbers beyond the kept ones",
)
QUICK = [mutation for mutation in MUTATIONS if mutation.name in _QUICK]


def main(names: list[str]) -> int:
    """Tries mutations; the number of those that no test noticed."""
    build()
    chosen = [mutation for mutation in MUTATIONS if not names or mutation.name in names]

    def is_noticed(mutation: Mutation) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            noticed = mutation.is_noticed(Path(folder))
        print("noticed " if noticed else "MISSED  ", mutation, flush=True)
        return noticed

    with ThreadPoolExecutor(2) as pool:
        missed = len(chosen) - sum(pool.map(is_noticed, chosen))
    print(f"{len(chosen)} mutations, {missed} missed")
    return missed


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) or not MUTATIONS else 0)
