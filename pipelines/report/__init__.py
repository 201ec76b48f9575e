"""The HTML report of a run: images, scores, curves, lineage and step times in one self-contained file.

`data` holds the content of the page, `curves` lays out the training curves, and `page` fills the template; it
is the one module that imports Jinja.
"""

from pipelines.report.data import (
    LineageLink,
    ReportData,
    RestoredFace,
    RestoredPhoto,
    StepLine,
    TrainingCurve,
)
from pipelines.report.page import write_report

__all__ = [
    "LineageLink",
    "ReportData",
    "RestoredFace",
    "RestoredPhoto",
    "StepLine",
    "TrainingCurve",
    "write_report",
]
