"""The page at the end of a run: pictures first, then numbers, curves, lineage and times, in one HTML file
that needs nothing else.

`data` says what the page shows, `curves` draws, `page` fills the template. The one door to Jinja.
"""

from pipelines.report.data import LineageLink, ReportData, RestoredPhoto, StepLine, TrainingCurve
from pipelines.report.page import write_report

__all__ = ["LineageLink", "ReportData", "RestoredPhoto", "StepLine", "TrainingCurve", "write_report"]
