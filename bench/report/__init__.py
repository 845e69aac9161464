"""`python -m bench report FILES... --html page.html --markdown summary.md`: result files as one page, whole by itself.

A file is read (`source`), its bench's module in `sections` says what to show as neutral `blocks`, and `page` and
`markdown` write those down.
"""

from bench.report.command import ReportOptions, run

__all__ = ["ReportOptions", "run"]
