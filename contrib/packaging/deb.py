"""Build Debian packages: ``python -m contrib.packaging.deb [RELEASE ...] [--out FOLDER]``.

Each is built and checked by lintian in a chroot of the release that it is for.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from contrib.docs.build import build as build_docs
from contrib.lab.errors import LabError
from contrib.lab.proc import run, say
from contrib.packaging import sources
from contrib.packaging.chroots import RELEASES, Release, Root, unpacked

HERE = Path(__file__).parent
DEBIAN = ("bookworm", "trixie")
_TOOLS = ("build-essential", "debhelper", "lintian")
_EXTRAS = ("cluster",)
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")


def build(release: Release, out: Path, wheel: Path, *, lintian: bool = True) -> Path:
    """Build the package of a wheel for a release, and return its path.

    :raises LabError: it cannot be built, or lintian finds a fault.
    """
    say(f"building the package for {release.name}")
    with unpacked(release, (*_TOOLS, *_build_depends())) as root:
        tree = root.folder / "build/vmcloner"
        shutil.copytree(HERE / "debian", tree / "debian")
        shutil.copy(HERE / "vendored.py", tree / "debian")
        for name in ("CHANGELOG.md", "README.md"):
            shutil.copy(sources.TOP / name, tree)
        _fetch(release, wheel, tree / "wheels")
        _manuals(tree / "man")
        (tree / "debian/changelog").write_text(_changelog(release, wheel))
        work = ("env", "--chdir=/build/vmcloner")
        root.run(*work, "dpkg-buildpackage", "--build=binary", "--no-sign", timeout=900)
        (made,) = tree.parent.glob("*.deb")
        if lintian:
            _lintian(root, f"/build/{made.name}")
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(made, out))


def _lintian(root: Root, package: str) -> None:
    """Check a package. An override that is needed in one release only is no fault."""
    out = root.run("lintian", "--allow-root", "--display-info", "--fail-on=none", package)
    lines = [line for line in out.splitlines() if line.startswith(("E:", "W:", "I:"))]
    faults = [line for line in lines if " unused-override " not in line]
    if faults:
        raise LabError("\n".join([f"lintian has complaints about {package}:", *faults]))


def _build_depends() -> list[str]:
    text = (HERE / "debian/control").read_text()
    field = text.partition("Build-Depends:")[2].partition("\nStandards")[0]
    return [word.strip().partition(" ")[0] for word in field.split(",")][1:]


def _fetch(release: Release, wheel: Path, to: Path) -> None:
    """Put the wheel and those of all its requirements into a folder.

    The chroot needs no access to an index. Without markers: pip would hold them against the
    Python that it runs on.
    """
    project = tomllib.loads((sources.TOP / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in _EXTRAS:
        wanted += project["optional-dependencies"][extra]
    run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--dest", to),
            *("--python-version", release.python, "--implementation", "cp"),
            *("--only-binary", ":all:"),
            *(word for platform in _PLATFORMS for word in ("--platform", platform)),
            *(line.partition(";")[0].strip() for line in wanted),
        ],
        timeout=600,
    )
    shutil.copy(wheel, to)


def _manuals(to: Path) -> None:
    if build_docs("man", to / "source", to / "pages") != 0:
        raise LabError("the manual pages cannot be built; run: make man")


def _changelog(release: Release, wheel: Path) -> str:
    number = sources.debian_version(wheel.name.split("-")[1], release.suffix)
    control = (HERE / "debian/control").read_text()
    maintainer = control.partition("Maintainer: ")[2].partition("\n")[0]
    date = format_datetime(datetime.fromtimestamp(wheel.stat().st_mtime, UTC))
    return (
        f"vmcloner ({number}) {release.name}; urgency=medium\n\n"
        f"  * Built from the wheel of this version; changelog.gz says what is new.\n\n"
        f" -- {maintainer}  {date}\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Build packages, and print their paths."""
    parser = argparse.ArgumentParser(prog="deb", description="Build Debian packages.")
    parser.add_argument("releases", nargs="*", metavar="RELEASE", help=f"of {', '.join(DEBIAN)}")
    parser.add_argument("--out", type=Path, default=sources.TOP / "dist", metavar="FOLDER")
    asked = parser.parse_args(argv)
    unknown = set(asked.releases) - set(DEBIAN)
    if unknown:
        parser.error(f"unknown release {', '.join(sorted(unknown))}; known: {', '.join(DEBIAN)}")
    try:
        _, wheel = sources.build(asked.out)
        for name in asked.releases or DEBIAN:
            print(build(RELEASES[name], asked.out, wheel))
    except LabError as error:
        print(f"deb: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
