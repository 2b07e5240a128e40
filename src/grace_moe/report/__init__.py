"""What was measured, for a person: tables for the terminal, and one HTML page of figures.

The page needs the extra `grace-moe[report]`; `require_report` says so in one line where it is missing.
"""

from grace_moe.report.content import AFTER, BEFORE, ReportContent, report_content
from grace_moe.report.cost_tables import diagnosis_table, fits_table, size_table, tiers_table
from grace_moe.report.day_page import day_page, write_day_report
from grace_moe.report.day_table import day_table
from grace_moe.report.describe import describe, describe_difference
from grace_moe.report.page import html_page, require_report, write_report
from grace_moe.report.summary import report_numbers
from grace_moe.report.tables import comparison_table, facts_table, pareto_table
from grace_moe.report.words import LABELS, sentence

__all__ = [
    "AFTER",
    "BEFORE",
    "LABELS",
    "ReportContent",
    "comparison_table",
    "day_page",
    "day_table",
    "describe",
    "describe_difference",
    "diagnosis_table",
    "facts_table",
    "fits_table",
    "html_page",
    "pareto_table",
    "report_content",
    "report_numbers",
    "require_report",
    "sentence",
    "size_table",
    "tiers_table",
    "write_day_report",
    "write_report",
]
