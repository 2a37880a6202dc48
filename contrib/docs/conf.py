"""Sphinx's configuration, for the site and the man pages: ``make docs``, ``make man``."""

import re
from importlib import metadata
from pathlib import Path

project = "vmcloner"
author = "The vmcloner authors"
release = version = metadata.version("vmcloner")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns: list[str] = []
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
smartquotes = False  # options begin with two hyphens

html_theme = "furo"  # its fonts are the system's: a page loads nothing from elsewhere
html_title = "vmcloner"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_copyright = False  # LICENSE says whose it is
html_copy_source = False
html_show_sphinx = False

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True


def _man_pages() -> list[tuple[str, str, str, list[str], int]]:
    """Return a manual page for each page of the reference that is one: ``vmcloner-create(1)``."""
    pages = []
    for file in sorted(Path(__file__).parent.glob("reference/**/*.md")):
        title = file.read_text().partition("\n")[0]
        if match := re.fullmatch(r"# (vmcloner[a-z.-]*)\((\d)\) — (.*)", title):
            where = str(file.relative_to(Path(__file__).parent).with_suffix(""))
            pages.append((where, match[1], match[3], [author], int(match[2])))
    return pages


man_pages = _man_pages()
man_show_urls = True
