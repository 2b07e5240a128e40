"""What was measured, for a person: tables."""

from grace_moe.report.tables import comparison_table, describe, facts_table

__all__ = ["comparison_table", "describe", "facts_table"]
