"""What tests of distributions share: where the sources are, and how they are built."""

import shutil
import subprocess
import sys
from pathlib import Path

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
