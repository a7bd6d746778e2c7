"""The report of finished runs: tables, a picture and a page that stands alone."""

from varemb.report.page import write_report
from varemb.report.table import (
    format_bytes,
    format_results,
    format_table,
    method_name,
    total_bytes,
)

__all__ = [
    "format_bytes",
    "format_results",
    "format_table",
    "method_name",
    "total_bytes",
    "write_report",
]
