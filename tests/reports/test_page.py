"""The HTML report: self-contained, safe whatever guests say, and seen in a real browser."""

import re
import sys

import pytest
from lxml import html

from tests.reports.browser import needs_chromium, shown
from tests.reports.runs import Log, events_of, events_of_hosts
from vmcloner_core.errors import BackendError
from vmcloner_core.reports import report_of
from vmcloner_core.reports.page import page

EVIL = "</pre></title><script>document.title='evil'</script><img src=x onerror=alert(1)>\x1b[31m"


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """The page of a run with texts from a hostile guest, and its file."""
    folder = tmp_path_factory.mktemp("report")
    log = Log(clones=["web-1", "web-2", "web-3", EVIL])
    log.made("web-1")
    log.made("web-3", 20)
    for name in ("web-2", EVIL):
        log.step(name, f"clone{EVIL}", 0, 1)
        log.step(name, "wait", 2, 29, f"no {EVIL} $x^2$", seen=[(EVIL, 3)], log=f"a\n{EVIL}")
    for at in range(1, 30):
        log.sample(at, cpu=3.0 * at, pool=at * 2**30 if at % 5 == 0 else None)
    log.result()
    text = page(report_of(events_of(folder), log.write(folder)))
    (folder / "report.html").write_text(text)
    return text, folder / "report.html"


def test_it_loads_nothing_and_has_no_script(document):
    text, _ = document
    root = html.document_fromstring(text)
    assert not root.xpath("//script|//img|//link|//iframe|//object|//@onerror|//@src")
    assert all(href.startswith("#") for href in root.xpath("//@href"))
    assert not re.search(r"url\((?!#)|@import", text)
    policy = root.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_what_is_in_it(document):
    root = html.document_fromstring(document[0])
    titles = root.xpath("//svg[@class='timeline']//title/text()")
    assert "web-1: storage 1.0 s, from 1.0 s" in titles
    assert "web-3: ssh 3.0 s, from 27.0 s" in titles
    assert sum(" failed in wait: " in title for title in titles) == 2
    assert len(root.xpath("//details")) == 2
    assert "document.title='evil'" in root.xpath("//pre")[0].text_content()
    assert "\x1b" not in document[0]
    assert {svg.get("class") for svg in root.xpath("//svg")} == {"timeline", "distribution", "host"}
    bars = root.xpath("//svg[@class='timeline']//*[starts-with(@class, 'phase')]//path")
    assert len(bars) == 8 + 8 + 2 * 4  # of two that got ready, and of two that didn't


def test_without_the_library(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "vmcloner_core.reports.charts", raising=False)
    monkeypatch.delattr("vmcloner_core.reports.charts", raising=False)
    log = Log(clones=["web-1"])
    with pytest.raises(BackendError, match="matplotlib") as caught:
        page(report_of(events_of(tmp_path), log.write(tmp_path)))
    assert "vmcloner[report]" in caught.value.hint


def test_runs_without_times(tmp_path):
    """Nothing got ready, nothing was sampled, nothing was done."""
    log = Log(clones=["web-1"])
    text = page(report_of(events_of(tmp_path), log.write(tmp_path)))
    assert "not finished" in text
    assert page(report_of(events_of(tmp_path), Log(2).write(tmp_path)))


def test_two_hosts_and_one_pool(tmp_path):
    """The run is in no single pool on the other host: its samples have none."""
    for host, pool in (("a", 2**30), ("b", None)):
        log = Log(clones=[f"web-{host}"])
        for at in (1, 2):
            log.sample(at, pool=pool)
        log.result()
        run = log.write(tmp_path / host)
    text = page(report_of(events_of_hosts(a=tmp_path / "a", b=tmp_path / "b"), run))
    titles = html.document_fromstring(text).xpath("//svg[@class='host']//title/text()")
    assert set(titles) == {
        "a processors, %", "b processors, %", "a memory, GiB", "b memory, GiB", "a pool, GiB",
    }  # fmt: skip


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(document, tmp_path, scheme):
    """Chromium shows the bars in their colours, on the right background, and runs no script."""
    seen = shown(document[1], scheme, "1100,1800", tmp_path)
    assert seen.getpixel((2, 2)) == ((255, 255, 255) if scheme == "light" else (20, 24, 29))
    colours = {colour: count for count, colour in seen.getcolors(2**24)}
    wanted = {
        "light": {
            "ssh": (0xD2, 0x63, 0x2A),
            "storage": (0x2F, 0x6F, 0xB5),
            "x": (0xC0, 0x1C, 0x28),
        },
        "dark": {"ssh": (0xE0, 0x7F, 0x4B), "storage": (0x5A, 0x9A, 0xE0), "x": (0xFF, 0x6B, 0x6B)},
    }[scheme]
    for what, colour in wanted.items():
        assert colours.get(colour, 0) > 20, what
