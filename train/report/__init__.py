"""A cycle's report: one HTML file that needs nothing else, no script, no network."""

from train.report.page import CycleReport, without_samples, write_report

__all__ = ["CycleReport", "without_samples", "write_report"]
