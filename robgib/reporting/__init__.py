"""From run folders to a page."""

from robgib.reporting.page import render, trace_page, write_report
from robgib.reporting.validation import (
    merge_validations,
    read_validation,
    validation_markdown,
    validation_page,
    validation_rows,
)

__all__ = [
    "merge_validations",
    "read_validation",
    "render",
    "trace_page",
    "validation_markdown",
    "validation_page",
    "validation_rows",
    "write_report",
]
