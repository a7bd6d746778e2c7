"""The report of finished runs: tables, a picture and a page that stands alone."""

from varemb.report.comparison import (
    Table,
    importance_tables,
    main_tables,
    stability_table,
    summarize,
    sweep_table,
)
from varemb.report.inputs import load_runs
from varemb.report.page import write_report
from varemb.report.stream_table import format_stream_results
from varemb.report.table import (
    format_bytes,
    format_results,
    format_table,
    method_name,
    total_bytes,
)
from varemb.report.tradeoff import draw_tradeoff

__all__ = [
    "Table",
    "draw_tradeoff",
    "format_bytes",
    "format_results",
    "format_stream_results",
    "format_table",
    "importance_tables",
    "load_runs",
    "main_tables",
    "method_name",
    "stability_table",
    "summarize",
    "sweep_table",
    "total_bytes",
    "write_report",
]
