"""The printed table and the record of a case."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.cases import key_of
from benchmarks.contenders import CaseResult, Result

HEADER = (
    f"{'':46} {'ms median':>9} {'[20 %, 80 %]':>18} {'time/ours':>9}  {'stages ms':<22}"
    f" {'MB/lookup':>9} {'MB/row':>7} {'copy bw':>7} {'tensors MB':>10}  target"
)


def format_case(result: CaseResult) -> str:
    """One case as text: its facts, then a line for ours and one for every peer of each block."""
    facts = result.facts
    dims = (
        f"  mean dim of the rows {facts.mean_dim:.1f}, of the lookups {facts.access_dim:.1f}, "
        f"of the distinct rows {facts.distinct_dim:.1f}; {facts.distinct_rows:,} distinct rows; "
        f"Zipf {facts.zipf:g}; other processes kept {result.others_share:.2f} processors busy"
    )
    lines = [f"{result.op}: {result.spec}", dims, HEADER]
    for block in result.blocks:
        lines += [_format_result(line, result.spec.is_target) for line in block]
    return "\n".join(lines)


def _format_result(result: Result, is_target: bool) -> str:
    name = (
        f"  {result.name}" if result.speedup is None and not result.reason else f"    {result.name}"
    )
    if result.time is None:
        return f"{name:46} {result.reason}"
    ratio = f"{result.speedup.median:.2f} x" if result.speedup else "1"
    digits = 3 if result.time.median >= 0.1 else 5  # a call of one index takes microseconds
    spread = f"[{result.time.low:.{digits}f}, {result.time.high:.{digits}f}]"
    stages = (
        " + ".join(f"{ms:.2f}" for ms in result.stages.values()) if len(result.stages) > 1 else ""
    )
    target = ""
    if is_target and result.target:
        target = f"{result.target.words}: {'met' if result.is_met else 'NOT MET'}"
    return (
        f"{name:46} {result.time.median:9.{digits}f} {spread:>18} {ratio:>9}  {stages:<22}"
        f" {result.lookup_bytes / 1e6:9.1f} {result.distinct_bytes / 1e6:7.1f}"
        f" {result.copy_share:7.1%} {result.tensor_bytes / 1e6:10.1f}  {target}"
    ).rstrip()


LEGEND = """\
time/ours: the line's time over ours, median over interleaved rounds; above 1 ours is faster.
stages: forward + backward + optimizer. MB/lookup: bytes counted per lookup, FBGEMM's way.
MB/row: bytes that must move when every distinct row moves once.
copy bw: MB/row a second over the copy bandwidth measured in this run (above 100 %: caches).
Wide rows are the popular rows: read every speed beside the mean dims."""


def case_record(result: CaseResult) -> dict[str, Any]:
    """A case as it is written to the file of results."""
    return {
        "key": key_of(result.op, result.spec),
        "op": result.op,
        "short": result.spec.short,
        "spec": dataclasses.asdict(result.spec) | {"dtype": str(result.spec.dtype)},
        "is_target_case": result.spec.is_target,
        "facts": dataclasses.asdict(result.facts),
        "others_share": result.others_share,
        "seconds": result.seconds,
        "blocks": [
            [dataclasses.asdict(line) | {"is_met": line.is_met} for line in block]
            for block in result.blocks
        ],
    }
