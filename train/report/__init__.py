"""A cycle's report: one HTML file that needs nothing else, no script, no network."""

from train.report.page import CycleReport, write_report

__all__ = ["CycleReport", "write_report"]
