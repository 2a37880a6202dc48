"""The site and the manual pages: built without a warning, complete, and self-contained."""

import re
import shutil
from pathlib import Path

import pytest

from contrib.docs import build, reference

LOADED = re.compile(
    r"<(?:script|img|iframe|source)[^>]*\bsrc=\"([^\"]*)|<link[^>]*\bhref=\"([^\"]*)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    assert build.build("html", folder / "source", folder / "html") == 0
    return folder / "html"


def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        for found in LOADED.findall(page.read_text()):
            assert not re.match(r"(https?:)?//", "".join(found)), page
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", style.read_text()), style


def test_all_commands_and_their_options_are_there(site):
    shell = reference.Shell()
    for words, parser, command in reference._parsers(shell):
        page = (site / "reference" / "commands" / f"vmcloner-{words.split()[0]}.html").read_text()
        text = re.sub(r"<[^>]*>", "", page)
        assert command.example.split()[1] in text, words
        for action in parser._actions:
            if action.container.title not in reference._OUTPUT:
                assert all(name in text for name in action.option_strings), (words, action)


def test_every_page_of_docs_can_be_reached(site):
    index = (site / "index.html").read_text()
    for page in (build.ROOT / "docs").glob("*.md"):
        assert page.stem == "index" or f'href="{page.stem}.html"' in index, page


def test_readme_names_every_page():
    text = (build.ROOT / "README.md").read_text()
    pages = {page.name for page in (build.ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages <= set(re.findall(r"\]\(docs/([\w-]+\.md)\)", text))


@pytest.mark.parametrize("page", sorted((build.ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_headings_of_a_page_differ(page):
    """A link to one of two equal ones leads to the first."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    assert len(headings) == len(set(headings))


def test_a_broken_link_is_an_error(tmp_path, monkeypatch):
    def gather(folder):
        folder.mkdir(parents=True)
        for settings in build.SETTINGS:
            shutil.copy(settings, folder)
        (folder / "index.md").write_text(f"# Index\n\n[a page]({target})\n")

    monkeypatch.setattr(build, "gather", gather)
    for target, wrong in (("index.md", False), ("nowhere.md", True)):
        done = build.build("html", tmp_path / target / "source", tmp_path / target / "html")
        assert bool(done) is wrong


def test_manual_pages(tmp_path):
    assert build.build("man", tmp_path / "source", tmp_path / "man") == 0
    names = {file.name for file in (tmp_path / "man").rglob("*.[15]")}
    assert {"vmcloner.1", "vmcloner-create.1", "vmcloner-template.1", "vmcloner.toml.5"} <= names
    page = next((tmp_path / "man").rglob("vmcloner-create.1")).read_text()
    assert ".SH SYNOPSIS" in page.upper()
    assert "count" in page
