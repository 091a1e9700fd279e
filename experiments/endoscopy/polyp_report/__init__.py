"""The report of polyp sizing: errors per polyp and per frame, intervals over polyps, baselines, figures, run facts."""

from experiments.endoscopy.polyp_report.render import write_report
from experiments.report.records import RecordsError

__all__ = ["RecordsError", "write_report"]
