"""From run folders to a page."""

from robgib.reporting.comparison import (
    compare_runs,
    comparison_cells,
    comparison_findings,
    comparison_page,
    junit,
    lost_findings,
    run_findings,
    sarif,
)
from robgib.reporting.console import print_indented, print_runs, runs_json
from robgib.reporting.page import render, trace_page, write_report, write_trace
from robgib.reporting.summary import summarise
from robgib.reporting.trackers import TRACKERS, check_tracker, log_run
from robgib.reporting.validation import (
    merge_validations,
    read_validation,
    validation_markdown,
    validation_page,
    validation_rows,
    verdict_rows,
)

__all__ = [
    "TRACKERS",
    "check_tracker",
    "compare_runs",
    "comparison_cells",
    "comparison_findings",
    "comparison_page",
    "junit",
    "log_run",
    "lost_findings",
    "merge_validations",
    "print_indented",
    "print_runs",
    "read_validation",
    "render",
    "run_findings",
    "runs_json",
    "sarif",
    "summarise",
    "trace_page",
    "validation_markdown",
    "validation_page",
    "validation_rows",
    "verdict_rows",
    "write_report",
    "write_trace",
]
