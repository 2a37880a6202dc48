"""What a lab gets beside its image, on a read-only disk: Python packages, and guests on Xen.

A disk, since sending thirty megabytes through an emulated network card takes longer than all the
rest of a start; and apart from the image, since it changes more often.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path

from contrib.lab import cache, guests
from contrib.lab.proc import run, say

TOP = Path(__file__).parents[2]
PYTHON = (3, 11)
"""The image's."""
SIZE = "512M"
"""Of the disk; sparse. Part of the saved machine: it can't differ from one start to the next."""
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
_TEST_TOOLS = ("coverage", "pytest", "pytest-rerunfailures", "pytest-timeout", "hypothesis")


def requirements() -> list[str]:
    """Return what vmcloner and its tests need, as pip reads it, for the image's Python.

    Without markers: pip would hold them against the Python that it runs on.
    """
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    lines: list[str] = [*project["project"]["dependencies"]]
    for extra, needed in project["project"]["optional-dependencies"].items():
        lines += needed if extra != "libvirt" else []  # Debian's is in the image
    lines += [
        line
        for line in project["dependency-groups"]["dev"]
        if line.replace(">", "=").partition("=")[0] in _TEST_TOOLS
    ]
    return [line.partition(";")[0].strip() for line in lines]


def supplies(*, guest: bool) -> Path:
    """Return the disk, raw; built if it isn't in the cache.

    :param guest: whether it has the guest, whose kernel takes a while to build, too.
    """
    site = _site()
    parts: list[bytes | str] = [site.name, Path(__file__).read_bytes()]
    if guest:
        parts.append(guests.key())

    def build(folder: Path) -> None:
        content = folder / "content"
        shutil.copytree(site / "site", content / "site")
        if guest:
            (content / "guest").mkdir()
            guests.build(content / "guest")
        _pack(content, folder / "disk.raw")

    return cache.entry("supplies", cache.digest(*parts), build) / "disk.raw"


def _site() -> Path:
    wanted = requirements()

    def build(folder: Path) -> None:
        say("fetching Python packages for the lab (once)")
        _install(wanted, folder / "site")

    return cache.entry("site", cache.digest(Path(__file__).read_bytes(), *wanted), build)


def _install(wanted: list[str], site: Path) -> None:
    version = ".".join(map(str, PYTHON))
    run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--target", site),
            *("--python-version", version, "--implementation", "cp", "--only-binary", ":all:"),
            *(word for platform in _PLATFORMS for word in ("--platform", platform)),
            *wanted,
        ],
        timeout=600,
    )
    compile_all(site)


def compile_all(folder: Path) -> None:
    """Compile Python files for the image, where this Python is of the same version."""
    if sys.version_info[:2] == PYTHON:
        run(
            [
                *(sys.executable, "-m", "compileall", "-q", "-o", "0"),
                *("--invalidation-mode", "unchecked-hash", folder),
            ],
            timeout=300,
        )


def _pack(content: Path, disk: Path) -> None:
    """Write a folder to a file system in a raw image; the folder is used up."""
    for path in (content, *content.rglob("*")):
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o644))
    run(
        [
            *("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0"),
            *("-E", "root_owner=0:0", "-L", "supplies", "-d", content, disk, SIZE),
        ],
        timeout=120,
    )
    shutil.rmtree(content)
