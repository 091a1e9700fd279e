"""The report of an experiment: statistics, figures and how it was run, from `results.jsonl`."""

from experiments.report import backend  # noqa: F401  # first
from experiments.report.pages import summary_table, write_report
from experiments.report.results_file import RecordsError

__all__ = ["RecordsError", "summary_table", "write_report"]
