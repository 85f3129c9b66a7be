"""The report of a run: one self-contained HTML file of curves, pictures, measured results and settings."""

from mmalign.report.page import write_report

__all__ = ["write_report"]
