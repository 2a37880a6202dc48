"""Build the documentation: ``python -m contrib.docs.build html|man``. A warning is an error.

The pages in docs/ and those that are generated from the code are put together in
build/docs/source, and Sphinx makes build/docs/html, or build/man, of them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from contrib.docs import reference

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
SOURCE = BUILD / "docs" / "source"
SETTINGS = [Path(__file__).with_name(name) for name in ("conf.py", "site.css")]
REPOSITORY = "https://github.com/vmcloner/vmcloner/blob/main/"
_OUTSIDE = re.compile(r"\]\(\.\./([^)\s]+)\)")


def gather(folder: Path) -> None:
    """Put all pages into a folder that is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for settings in SETTINGS:
        shutil.copy(settings, folder)
    for data in sorted((ROOT / "docs").glob("*.json")):
        shutil.copy(data, folder)
    for pictures in ("drawings", "figures"):
        shutil.copytree(ROOT / "docs" / pictures, folder / pictures)
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = _OUTSIDE.sub(rf"]({REPOSITORY}\1)", page.read_text())
        (folder / page.name).write_text(text)
    for name, text in reference.pages().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def build(kind: str, source: Path = SOURCE, target: Path | None = None) -> int:
    """Build the site (``html``) or the manual pages (``man``); returns Sphinx's exit code."""
    target = target or {"html": BUILD / "docs" / "html", "man": BUILD / "man"}[kind]
    gather(source)
    shutil.rmtree(target, ignore_errors=True)
    argv = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-b", kind]
    argv += ["-d", str(source.with_name("doctrees")), str(source), str(target)]
    return subprocess.run(argv, check=False).returncode


if __name__ == "__main__":
    sys.exit(build(sys.argv[1]))
