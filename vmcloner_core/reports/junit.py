"""Reports as JUnit XML, which CI servers show: a test case for each clone."""

from __future__ import annotations

from lxml import etree

from vmcloner_core.errors import shown
from vmcloner_core.reports.model import CloneTimes, Report

MAX_TEXT = 64 * 1024
"""Characters of one text."""


def junit(report: Report) -> bytes:
    """Return a report as JUnit XML."""
    suite = etree.Element(
        "testsuite",
        name=shown(f"vmcloner {' '.join(report.actions)} {report.name}"),
        tests=str(len(report.clones)),
        failures=str(len(report.failures)),
        errors=str(len(report.unfinished)),
        skipped="0",
        time=f"{report.seconds:.3f}",
    )
    if report.begun:
        suite.set("timestamp", shown(report.begun))
    for clone in report.clones:
        _case(suite, report, clone)
    suites = etree.Element("testsuites")
    suites.append(suite)
    return bytes(etree.tostring(suites, xml_declaration=True, encoding="UTF-8", pretty_print=True))


def _case(suite: etree._Element, report: Report, clone: CloneTimes) -> None:
    seconds = clone.ready if clone.ready is not None else sum(s.seconds for s in clone.spans)
    case = etree.SubElement(
        suite,
        "testcase",
        classname=shown(f"vmcloner.{report.name}"),
        name=shown(clone.name),
        time=f"{seconds:.3f}",
    )
    if clone.error is not None:
        failure = etree.SubElement(case, "failure", type=shown(clone.failed or ""))
        failure.set("message", shown(clone.error, MAX_TEXT))
    elif clone.status == "unfinished":
        etree.SubElement(case, "error", message="its run was killed, or goes on")
    if clone.log:
        said = etree.SubElement(case, "system-out")
        said.text = "\n".join(shown(line, MAX_TEXT) for line in clone.log[:MAX_TEXT].split("\n"))
