# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803
"""The gradient of a call, one distinct row after another: what coalesce stores and update applies.

A run, the lookups of one row, is added by one program in their order. A run longer than a window of
the sorted order would keep one program busy while all others are done; `windows.py` splits it.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from varemb.ops.triton.launch import (
    OPTIONS,
    columns_block,
    guard,
    programs_limit,
    rows_block,
    wide_dtype,
    wide_type,
)
from varemb.ops.triton.rows import locate, places
from varemb.ops.triton.rules import finish_rows
from varemb.ops.triton.sort import NARROWEST, Runs, sort_lookups
from varemb.ops.triton.terms import Call, Terms, load_terms, terms_of
from varemb.ops.triton.windows import finish_windows_kernel, sum_windows_kernel

# Longest run that one program adds, and the size of a window.
WINDOW = 256
# From this many lookups on, rows that fill less than a quarter of the widest tile are worth a
# launch of their own.
BUCKETED_LOOKUPS = 65536
# Arguments of the kernels that hand their sums to the sink.
_SINK_OPTIONS = (
    "out_ptr", "positions_ptr", "first_ptr", "state1_ptr", "state2_ptr", "hyper_ptr",
    "rounding_ptr", "ALGORITHM",
)  # fmt: skip


class Sink(NamedTuple):
    """Where summed gradients go: a dense or a sparse gradient, or the table itself."""

    out: Tensor  # [E], [n] or the values [E]
    positions: Tensor | None = None  # [n], sparse
    first: Tensor | None = None  # [runs], where each run begins in it
    state1: Tensor | None = None  # of the fused optimizer, as the rest
    state2: Tensor | None = None
    hyper: Tensor | None = None
    rounding: Tensor | None = None
    algorithm: int = 0


@triton.jit
def sum_runs_kernel(
    grad_ptr,  # [L, D] or [G, D]
    index_ptr,  # [blocks, 4] or [words]
    order_ptr,  # [L]
    keys_ptr,  # [L]
    starts_ptr,  # [L + 1]
    bounds_ptr,  # [C + 1]
    bag_ptr,  # [L], or None
    weights_ptr,  # [L], or None
    scales_ptr,  # [G], or None
    limit_ptr,  # [1] or [L], or None
    winners_ptr,  # [G, D], or None
    out_ptr,  # the sink, as in finish_rows
    positions_ptr,
    first_ptr,
    state1_ptr,
    state2_ptr,
    hyper_ptr,
    rounding_ptr,
    row_class,
    num_rows,
    width,
    granule,
    chunks,
    numbers,
    limit_step,
    LONGEST: tl.constexpr,
    ALGORITHM: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # The programs share the runs of a class, ROWS at a time; how many runs there are only the
    # device knows. Each gradient is read once. Runs beyond LONGEST are left to the windows.
    step = tl.num_programs(0).to(tl.int64) * ROWS
    first = tl.load(bounds_ptr + row_class) + tl.program_id(0).to(tl.int64) * ROWS
    last = tl.load(bounds_ptr + row_class + 1)
    for tile in range(first, last, step):
        run = tile + tl.arange(0, ROWS)  # [ROWS]
        begin = tl.load(starts_ptr + run, mask=run < last, other=0)
        end = tl.load(starts_ptr + run + 1, mask=run < last, other=0)
        is_short = (run < last) & (end - begin <= LONGEST)
        row = tl.load(keys_ptr + begin, mask=is_short, other=0).to(tl.int64) % num_rows
        offset, dim = locate(index_ptr, row, is_short, num_rows, width, granule, chunks, numbers)
        if chunks is not None:
            tl.device_assert(dim >= 0, "coalesce: the table has no row of an index")
        total = tl.zeros([ROWS, BLOCK_D], WIDE)
        reach = tl.zeros([ROWS], tl.int32)
        end = tl.where(is_short, end, begin)
        for ahead in range(0, tl.max(end - begin, 0)):
            terms, term_reach = load_terms(
                grad_ptr, order_ptr, bag_ptr, weights_ptr, scales_ptr, limit_ptr, winners_ptr,
                width, limit_step, begin + ahead, begin + ahead < end, dim, WIDE, BLOCK_D,
            )  # fmt: skip
            total += terms
            reach = tl.maximum(reach, term_reach)
        finish_rows(
            out_ptr, positions_ptr, first_ptr, state1_ptr, state2_ptr, hyper_ptr, rounding_ptr,
            total, run, row, offset, reach, ALGORITHM, WIDE, BLOCK_D,
        )  # fmt: skip


# Numbers in a tile: 4 per thread of four warps. Beside them an optimizer needs as many for the
# values and for each state; compiled for sm_90 that takes 114 registers at most, without a spill.
_TILE = 512


def class_widths(width: int, lookups: int) -> list[int]:
    """Columns of the tiles that rows are routed to by their dim, narrowest first.

    One width is enough for few lookups, where each launch costs more than idle lanes. Steps of four
    halve the launches that steps of two would need, and leave at least a quarter of the lanes busy.
    """
    widest = columns_block(width)
    if lookups < BUCKETED_LOOKUPS:
        return [widest]
    steps = [NARROWEST << (2 * i) for i in range(4)]
    return [*(step for step in steps if step < widest), widest]


class Gradient:
    """The sorted lookups of a call, ready to be summed into a sink.

    Args:
        op: name for messages.
        call: what was looked up, with at least one lookup.
        numbers: length of the flat values.
        is_ascending: rows must come in the order of the table; without classes, then.
        needs_reach: fill `runs.reach`.
    """

    def __init__(
        self,
        op: str,
        call: Call,
        numbers: int,
        *,
        is_ascending: bool = False,
        needs_reach: bool = False,
    ) -> None:
        self.terms: Terms = terms_of(op, call, numbers)
        self.width = call.grad.shape[1]
        self.lookups = call.indices.shape[0]
        self.widths = class_widths(self.width, 0 if is_ascending else self.lookups)
        self.places = places(call.index, call.num_rows, self.width, call.granule, numbers)
        self.runs: Runs = sort_lookups(
            self.places,
            call.indices,
            self.terms.bag,
            call.limit,
            self.terms.limit_step,
            call.padding_idx,
            len(self.widths),
            needs_reach=needs_reach,
        )

    def sum_into(self, sink: Sink) -> None:
        """Sums every run and hands it to the sink."""
        options = self._options(sink)
        grad = self.terms.call.grad
        if self.width == 0:
            return
        with guard(grad):
            for row_class, width in enumerate(self.widths):
                rows = rows_block(width, _TILE, self.lookups, grad)
                programs = min(triton.cdiv(self.lookups, rows), programs_limit(grad))
                sum_runs_kernel[(programs,)](
                    **options,
                    **self.terms.options(),
                    order_ptr=self.runs.order,
                    bounds_ptr=self.runs.bounds,
                    row_class=row_class,
                    ROWS=rows,
                    BLOCK_D=width,
                )
            if self.lookups > WINDOW:
                self._sum_windows(options)

    def _sum_windows(self, options: dict[str, Any]) -> None:
        grad, width = self.terms.call.grad, self.widths[-1]
        windows = triton.cdiv(self.lookups, WINDOW)
        wide = wide_dtype(grad.dtype)
        # A window holds at most two pieces of long runs.
        sums = torch.empty((2 * windows, self.width), dtype=wide, device=grad.device)
        reach = torch.empty(2 * windows, dtype=torch.int32, device=grad.device)
        shared = {
            **options,
            "before_ptr": self.runs.before,
            "sums_ptr": sums,
            "reach_ptr": reach,
            "lookups": self.lookups,
            "CLASSES": len(self.widths),
            "ROWS": min(rows_block(width, _TILE, WINDOW, grad), WINDOW),
            "BLOCK_D": width,
        }
        added = {name: value for name, value in shared.items() if name not in _SINK_OPTIONS}
        sum_windows_kernel[(windows,)](
            **added,
            **self.terms.options(),
            order_ptr=self.runs.order,
        )
        finish_windows_kernel[(windows,)](**shared)

    def _options(self, sink: Sink) -> dict[str, Any]:
        return {
            **self.places,
            "keys_ptr": self.runs.keys,
            "starts_ptr": self.runs.starts,
            "out_ptr": sink.out,
            "positions_ptr": sink.positions,
            "first_ptr": sink.first,
            "state1_ptr": sink.state1,
            "state2_ptr": sink.state2,
            "hyper_ptr": sink.hyper,
            "rounding_ptr": sink.rounding,
            "LONGEST": WINDOW,
            "ALGORITHM": sink.algorithm,
            "WIDE": wide_type(self.terms.call.grad.dtype),
            **OPTIONS,
        }
