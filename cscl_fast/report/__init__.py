"""The report on finished and running runs: one HTML file that needs nothing but a browser.

    python -m cscl_fast.report RUN [RUN …]

`records.py` reads run folders, `comparison.py` puts runs of one kind together over their seeds,
`sections.py` and the files around it write the page, `summary.py` the same as Markdown.
"""

from cscl_fast.report.comparison import Comparison, compare
from cscl_fast.report.page import page
from cscl_fast.report.records import ReportError, RunRecords, read_run, runs_below
from cscl_fast.report.summary import write_summary

__all__ = [
    "Comparison",
    "ReportError",
    "RunRecords",
    "compare",
    "page",
    "read_run",
    "runs_below",
    "write_summary",
]
