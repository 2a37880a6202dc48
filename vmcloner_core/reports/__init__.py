"""Reports on runs, computed from their logs: where the time went, and what failed.

Example::

    from vmcloner_core import Engine
    from vmcloner_core.reports import phases, report_of

    with Engine.open() as engine:
        for row in phases(report_of(engine.events, "web")):
            print(row.phase, row.p95)
"""

from vmcloner_core.reports.comparing import Condition, Difference, compared
from vmcloner_core.reports.model import CloneTimes, HostSample, Phase, Report, Span, phases
from vmcloner_core.reports.reading import report_of, report_of_runs

__all__ = [
    "CloneTimes",
    "Condition",
    "Difference",
    "HostSample",
    "Phase",
    "Report",
    "Span",
    "compared",
    "phases",
    "report_of",
    "report_of_runs",
]
