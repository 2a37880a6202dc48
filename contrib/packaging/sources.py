"""What is released of this checkout: a source distribution and a wheel."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

from contrib.lab.proc import run

TOP = Path(__file__).parents[2]
_NOT_SHIPPED = {"build", "dist", "results", "__pycache__"}


def version(top: Path = TOP) -> str:
    """Return the version that pyproject.toml names."""
    project = tomllib.loads((top / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def debian_version(python: str, suffix: str) -> str:
    """Return a version as Debian sorts it: ``1.0.0.dev0`` is before ``1.0.0``."""
    return re.sub(r"\.?(dev|a|b|rc)(\d+)", r"~\1\2", python) + f"+{suffix}"


def build(out: Path, top: Path = TOP) -> tuple[Path, Path]:
    """Build both into a folder, and return their paths; the wheel is built from the other."""
    with tempfile.TemporaryDirectory() as work:
        # In a copy: setuptools leaves its work in the tree that it builds.
        source = Path(work) / "source"
        shutil.copytree(top, source, ignore=left_out)
        made = Path(work) / "out"
        run([sys.executable, "-m", "build", "--outdir", made, source], timeout=600)
        (sdist,), (wheel,) = made.glob("*.tar.gz"), made.glob("*.whl")
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(sdist, out)), Path(shutil.copy(wheel, out))


def left_out(_: str, names: list[str]) -> list[str]:
    """Return those names of a folder that aren't copied, for :func:`shutil.copytree`."""
    return [n for n in names if n in _NOT_SHIPPED or n.startswith(".") or "egg-info" in n]
