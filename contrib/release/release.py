"""Build a release: of the tagged commit that is checked out, with all its files and checksums.

The tag names the version: ``v1.2.0`` is 1.2.0. pyproject.toml has the same version, and
CHANGELOG.md a section for it. Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs

from contrib.lab.errors import LabError
from contrib.lab.proc import need, run
from contrib.packaging import deb, sources
from contrib.packaging.chroots import RELEASES

_VERSION = r"[0-9]+(?:\.[0-9]+)*(?:(?:a|b|rc)[0-9]+)?"


class Refused(Exception):
    """There is nothing to release here. The message says why."""


@attrs.frozen
class Release:
    """What is released.

    :param notes: the section of the changelog, without its title.
    :param epoch: seconds since 1970 of the commit, which files in archives get.
    """

    version: str
    tag: str
    notes: str
    epoch: int


def check(top: Path) -> Release:
    """Return what is to be released of a checkout; changes nothing.

    :raises Refused: something is changed, untagged or contradictory.
    """
    changed = _git(top, "status", "--porcelain").splitlines()
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise Refused(f"not all is committed: {changed[0][3:]}{more}; commit or remove it")
    tags = _git(top, "tag", "--points-at", "HEAD").split()
    found = [tag for tag in tags if re.fullmatch(f"v{_VERSION}", tag)]
    if len(found) != 1:
        problem = "has no tag" if not found else f"has the tags {', '.join(found)}"
        raise Refused(f"the commit {problem}; it needs one like v1.2.0: git tag -a v1.2.0")
    version = sources.version(top)
    if found[0] != f"v{version}":
        raise Refused(f"the tag is {found[0]}, and the version in pyproject.toml {version}")
    notes = section((top / "CHANGELOG.md").read_text(), version)
    epoch = int(_git(top, "log", "-1", "--format=%ct"))
    return Release(version=version, tag=found[0], notes=notes, epoch=epoch)


def section(changelog: str, version: str) -> str:
    """Return a version's section of a changelog, without its title.

    :raises Refused: it is missing or empty.
    """
    title = rf"^## {re.escape(version)}(?: .*)?$"
    parts = re.split(title, changelog, maxsplit=1, flags=re.MULTILINE)
    if len(parts) != 2:
        raise Refused(f"CHANGELOG.md has no section {version}; Unreleased becomes ## {version}")
    text = re.split(r"^## ", parts[1], maxsplit=1, flags=re.MULTILINE)[0].strip()
    if not text:
        raise Refused(f"in CHANGELOG.md the section {version} is empty")
    return text + "\n"


def build(top: Path, release: Release, out: Path) -> list[Path]:
    """Build all files of a release into a new folder, and return their paths; the sums are last."""
    if out.exists() and any(out.iterdir()):
        raise Refused(f"{out} is not empty; name another folder: --out FOLDER")
    os.environ["SOURCE_DATE_EPOCH"] = str(release.epoch)
    with tempfile.TemporaryDirectory() as work:
        # From git: what is ignored there must not get into an archive.
        archive = run(["git", "-C", top, "archive", "--format=tar", release.tag], timeout=120)
        run(["tar", "-x", "-C", work], content=archive)
        files = [*sources.build(out, Path(work))]
    run([sys.executable, "-m", "twine", "check", "--strict", *files], timeout=120)
    files += [deb.build(RELEASES[name], out, files[1]) for name in deb.DEBIAN]
    notes = out / f"vmcloner-{release.version}.md"
    notes.write_text(release.notes)
    files.append(notes)
    sums = out / "SHA256SUMS"
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    sums.write_text("".join(sorted(lines, key=lambda line: line.split()[1])))
    return [*files, sums]


def _git(top: Path, *words: str) -> str:
    need("git")
    return run(["git", "-C", top, *words]).decode()


def main(argv: Sequence[str] | None = None) -> int:
    """Build a release, or say why not."""
    parser = argparse.ArgumentParser(
        prog="release",
        description="Build source distribution, wheel, Debian packages and checksums of the commit "
        "that is checked out, which is tagged. Nothing is uploaded. Needs root, for chroots.",
    )
    parser.add_argument("--dry-run", action="store_true", help="check all, and build nothing")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: dist/VERSION")
    asked = parser.parse_args(argv)
    try:
        release = check(sources.TOP)
        if asked.dry_run:
            print(f"would release {release.version}:\n\n{release.notes}", end="")
            return 0
        if os.geteuid() != 0:
            raise Refused("chroots need root: sudo contrib/release/release")
        out = asked.out or sources.TOP / "dist" / release.version
        for file in build(sources.TOP, release, out):
            print(file)
    except (LabError, Refused) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
