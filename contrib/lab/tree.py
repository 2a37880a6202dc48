"""This checkout as installed in a lab: vmcloner from a wheel, and the tests."""

from __future__ import annotations

import configparser
import io
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from contrib.lab import cache
from contrib.lab.proc import run
from contrib.lab.supplies import PYTHON, TOP, compile_all

PREFIX = "opt/vmcloner"
"""The virtual environment inside."""
SITE = f"{PREFIX}/lib/python{'.'.join(map(str, PYTHON))}/site-packages"
SOURCES = ("vmcloner_core", "plugins", "templates", "pyproject.toml", "setup.cfg")
"""Sources of a wheel, in addition to README and LICENSE."""
_DOCUMENTS = ("README.md", "LICENSE")
_SCRIPT = """#!/{prefix}/bin/python3
import sys
from {module} import {function}
sys.exit({function}())
"""
_NOT_SENT = {"build", "dist", "results", "vmcloner.egg-info"}


def files(names: Iterable[str]) -> Iterator[Path]:
    """Yield the files in this checkout with these names, or in folders with these names."""
    for name in names:
        top = TOP / name
        for path in [top] if top.is_file() else top.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def vmcloner() -> tuple[str, Path]:
    """Return a key and a tar archive of the installed vmcloner, built from a wheel of this tree."""
    sources = list(files((*SOURCES, *_DOCUMENTS)))
    key = cache.digest(Path(__file__).read_bytes(), cache.digest_files(sources, TOP))

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            _install(_wheel(sources, Path(work)), Path(work) / "root")
            with tarfile.open(folder / "vmcloner.tar", "w") as archive:
                archive.add(Path(work) / "root", arcname="", filter=_owned_by_root)

    return key, cache.entry("vmcloner", key, build) / "vmcloner.tar"


def _wheel(sources: Iterable[Path], work: Path) -> Path:
    # In a copy, because setuptools leaves files in the tree that it builds.
    for path in sources:
        copy = work / "source" / path.relative_to(TOP)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", work, work / "source"),
        ],
        timeout=300,
    )
    (wheel,) = work.glob("*.whl")
    return wheel


def _install(wheel: Path, root: Path) -> None:
    site, scripts = root / SITE, root / PREFIX / "bin"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (listing,) = site.glob("*.dist-info/entry_points.txt")
    entries = configparser.ConfigParser(delimiters=("=",))
    entries.read(listing)
    scripts.mkdir(parents=True)
    for name, target in entries["console_scripts"].items():
        module, _, function = target.partition(":")
        script = scripts / name
        script.write_text(_SCRIPT.format(prefix=PREFIX, module=module, function=function))
        script.chmod(0o755)
    compile_all(site)


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def keep_coverage(data: bytes, path: Path) -> None:
    """Write the coverage data to a file, with the paths of the sources in this checkout."""
    with tempfile.NamedTemporaryFile() as inside:
        inside.write(data)
        inside.flush()
        command = [sys.executable, "-m", "coverage", "combine", "--quiet", "--keep"]
        run([*command, f"--data-file={path.absolute()}", inside.name], cwd=TOP)


def tests() -> bytes:
    """Return a tar archive of this checkout without the sources: tests use the installed ones."""
    names = [
        path.name
        for path in TOP.iterdir()
        if path.name not in _NOT_SENT | {"vmcloner_core", "plugins"}
        and not path.name.startswith(".")
    ]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in files(names):
            archive.add(path, arcname=str(path.relative_to(TOP)), filter=_owned_by_root)
    return stream.getvalue()
