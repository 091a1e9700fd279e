"""The report of an ablation: statistics, figures and run facts from `results.jsonl`."""

from experiments.report.records import RecordsError
from experiments.report.render import write_report
from experiments.report.tables import summary_table

__all__ = ["RecordsError", "summary_table", "write_report"]
