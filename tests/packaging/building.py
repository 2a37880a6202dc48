"""What tests of distributions share: where the sources are, and how they are built."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
NOT_SHIPPED = {"build", "dist", "docs", "tests", "benchmarks", "contrib", "__pycache__"}


def run(*argv: object, timeout: float = 300, **more) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in argv]
    return subprocess.run(
        words, check=False, capture_output=True, text=True, timeout=timeout, **more
    )


def build(source: Path, folder: Path, *options: str) -> Path:
    """Build a wheel in a copy: setuptools leaves its work in the tree that it builds."""

    def ignore(where: str, names: list[str]) -> list[str]:
        top = NOT_SHIPPED if Path(where) == source else {"__pycache__"}
        return [n for n in names if n in top or n.startswith(".") or "egg-info" in n]

    shutil.copytree(source, folder / "source", ignore=ignore)
    built = run(
        *(sys.executable, "-m", "build", "--wheel", *options),
        *("--outdir", folder / "out", folder / "source"),
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (folder / "out").glob("*.whl")
    return wheel


def repack(texts: Iterable[str], folder: Path) -> None:
    """Make wheels of what is installed here for some requirements, and of all that it needs."""
    for text in texts:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        found = metadata.distribution(wanted.name)
        files = [f for f in found.files or () if not {"..", "__pycache__"} & set(f.parts)]
        (info,) = {f.parts[0] for f in files if f.parts[0].endswith(".dist-info")}
        *_, tag = (found.read_text("WHEEL") or "").split("\nTag: ")
        path = folder / f"{info.removesuffix('.dist-info')}-{tag.split()[0]}.whl"
        if not path.exists():
            with zipfile.ZipFile(path, "w") as wheel:
                for file in files:
                    wheel.write(found.locate_file(file), file)
            repack(found.requires or (), folder)
