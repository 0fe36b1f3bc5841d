"""From run folders to a page."""

from robgib.reporting.page import render, write_report

__all__ = ["render", "write_report"]
