"""Measure what a pool of machines saves a project's tests; see README.md beside this file.

A project of N tests runs by pytest with xdist, once over a pool of machines and once with machines
that each test makes and deletes. It is the same file of tests; only the settings differ. Then
machines are taken and given back in this process, to measure how long that takes by itself.

Run it as a module: ``.venv/bin/python -m benchmarks.pytest_pool --real``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table

from vmcloner_core import Engine, Machine, Pool

ROOT = Path(__file__).parents[1]
TESTS = """
import pathlib
import pytest

pytestmark = {mark}

@pytest.mark.parametrize("n", range({tests}))
def test_a_machine(clone, vmcloner, n):
    assert vmcloner.show(clone.name).state.value == "running"
"""
MARK = "pytest.mark.vmcloner(template='{template}')"
INI = """
[pytest]
vmcloner_pool = {{template = '{template}', name = 'benchpool', size = {size}, reset = '{reset}',
  memory = {memory}, warm = {warm}}}
"""
CONFTEST = """
import pytest
from tests.pytest_plugin.shared import PLUGINS
from vmcloner_core import Engine

@pytest.fixture(scope="session")
def vmcloner():
    with Engine.open(plugins=PLUGINS) as engine:
        yield engine
"""
REFERENCE = """
hypervisors = ["reference"]
boot = "reference"
memory = "1MiB"
ready = 'console:ready name={{ name }} '
[image]
path = "image.raw"
"""


@attrs.frozen
class Project:
    """A user's project, and the host's settings for it."""

    folder: Path
    template: str
    tests: int
    workers: int
    size: int
    real: bool

    def run(self, pool: Pool | None, *, keep: bool = False) -> float:
        """Run the tests; returns the seconds."""
        mark = MARK.format(template=self.template) if pool is None else "[]"
        (self.folder / "test_it.py").write_text(TESTS.format(mark=mark, tests=self.tests))
        ini = "[pytest]\n"
        if pool is not None:
            keys = {"template": pool.template, "size": pool.size, "reset": pool.reset.value}
            kept = {"memory": str(pool.memory).lower(), "warm": str(pool.warm).lower()}
            ini = INI.format(**keys, **kept)
        (self.folder / "pytest.ini").write_text(ini)
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        argv += ["-n", str(self.workers), "--vmcloner-require"]
        argv += ["--vmcloner-keep-pool"] if keep else []
        begun = time.monotonic()
        done = subprocess.run(
            argv, cwd=self.folder, check=False, capture_output=True, text=True, timeout=3600
        )
        seconds = time.monotonic() - begun
        found = re.search(r"(\d+) passed", done.stdout)
        if found is None or int(found[1]) != self.tests or done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        return seconds


def rows(project: Project, engine: Engine) -> dict[str, float]:
    """Return the seconds of each way; the work is the same."""
    found = {"create and delete per test": project.run(None)}
    for reset, kept in _ways(project):
        pool = _pool(project, reset, kept)
        what = f"pool, reset {reset}{kept and f', {kept}'}"
        found[f"{what}, filled by the run"] = project.run(pool)
        engine.fill_pool(pool)
        found[f"{what}, filled before"] = project.run(pool, keep=True)
        engine.empty_pool("benchpool", force=True)
    return found


def _ways(project: Project) -> list[tuple[str, str]]:
    """Return when machines are reset, and what saves the boot then (a key of the pool)."""
    ways = [("always", ""), ("always", "memory"), ("on-failure", "")]
    return [*ways, ("always", "warm"), ("on-failure", "warm")] if project.real else ways


def _pool(project: Project, reset: str, kept: str = "") -> Pool:
    keys: dict[str, Any] = {kept: True} if kept else {}
    return Pool(template=project.template, name="benchpool", size=project.size, reset=reset, **keys)


def taking(engine: Engine, project: Project, rounds: int = 200) -> dict[str, float]:
    """Return how many milliseconds it takes to take a ready clone, and to give it back."""
    engine.fill_pool(_pool(project, "never"))
    took: list[float] = []
    gave: list[float] = []
    for _ in range(rounds):
        begun = time.perf_counter()
        machines: tuple[Machine, ...] = engine.acquire("benchpool")
        taken = time.perf_counter()
        engine.release(*machines)
        took.append((taken - begun) * 1000)
        gave.append((time.perf_counter() - taken) * 1000)
    engine.empty_pool("benchpool", force=True)
    return {
        "take, median ms": statistics.median(took),
        "take, 99th percentile ms": statistics.quantiles(took, n=100)[98],
        "give back, median ms": statistics.median(gave),
    }


def settings(folder: Path, *, real: bool, boot: float) -> None:
    """Write the host's settings, and what the processes of a run have in common."""
    backend = "" if real else '[defaults]\nhypervisor = "reference"\nstorage = "reference"\n'
    text = f'{backend}[limits]\nboot_jobs = 8\n[hosts.local]\nstate = "{folder}/state"\n'
    (folder / "vmcloner.toml").write_text(text)
    os.environ["VMCLONER_CONFIG"] = str(folder / "vmcloner.toml")
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
    if not real:
        os.environ["SHARED_REFERENCE"] = str(folder / "host")
        os.environ["SHARED_BOOT"] = str(boot)
        os.environ["PYTHONPATH"] = str(ROOT)
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "templates").mkdir()
        (folder / "templates" / "quick.toml").write_text(REFERENCE)
        (folder / "templates" / "image.raw").write_bytes(bytes(1024**2))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What a pool of machines saves tests.")
    parser.add_argument("--real", action="store_true", help="with guests of the template tiny")
    parser.add_argument("--boot", type=float, default=3.0, help="seconds that others take to boot")
    parser.add_argument("--tests", type=int, default=40)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--size", type=int, default=8, help="of the pool")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # Not in /tmp: QEMU runs as another user and has to get through.
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    template = "tiny" if options.real else "quick"
    try:
        settings(folder, real=options.real, boot=options.boot)
        os.chdir(folder)
        plugins: tuple[Any, ...] = ()
        if not options.real:
            from tests.pytest_plugin.shared import PLUGINS

            plugins = PLUGINS
        counts = (options.tests, options.workers, options.size)
        project = Project(folder, template, *counts, real=options.real)
        with Engine.open(plugins=plugins) as engine:
            engine.import_template(template)
            found, times = rows(project, engine), taking(engine, project)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(found, times, options)


def show(found: dict[str, float], times: dict[str, float], options: argparse.Namespace) -> None:
    """Print the figures, and write them."""
    what = "tiny guests" if options.real else f"reference guests, {options.boot:g} s to boot"
    title = f"{options.tests} tests, {options.workers} workers, a pool of {options.size}: {what}"
    table = Table("way", "seconds", "times as fast", title=title)
    base = found["create and delete per test"]
    for way, seconds in found.items():
        table.add_row(way, f"{seconds:.1f}", f"{base / seconds:.1f}")
    Console().print(table)
    for name, value in times.items():
        print(f"{name}: {value:.2f}")
    if options.json:
        options.json.write_text(json.dumps({"seconds": found, **times}, indent=2) + "\n")


if __name__ == "__main__":
    main()
