"""From run folders to a page."""

from robgib.reporting.page import render, write_report
from robgib.reporting.validation import validation_markdown, validation_page, validation_rows

__all__ = ["render", "validation_markdown", "validation_page", "validation_rows", "write_report"]
