"""Measure when clones that are started together become ready: all at once, and admitted.

    sudo .venv/bin/python benchmarks/boot_storm.py -n 20 [--template debian-12-built]

The same fleet is started twice in one run, with --boot-jobs 256 and with auto. Needs a libvirtd.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from vmcloner_core import Engine
from vmcloner_core.hooks import hookimpl
from vmcloner_core.plan import MAX_JOBS, StepEvent, StepStatus

WAYS = (("all at once", MAX_JOBS), ("admitted", "auto"))
SETTINGS = """
[hosts.local]
state = "{folder}/state"
[hosts.local.storage.files]
path = "{folder}/pool"
"""


class Ready:
    """Notes when each clone became ready, in seconds since its run began."""

    def __init__(self) -> None:
        self.at: list[float] = []

    @hookimpl
    def vmcloner_step_changed(self, event: StepEvent) -> None:
        """Note the end of a wait."""
        if event.step == "wait" and event.status in (StepStatus.DONE, StepStatus.UNCHANGED):
            self.at.append(event.at)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=20, help="Number of clones (default 20).")
    parser.add_argument("--template", default="tiny", help="Template (default tiny).")
    parser.add_argument("--fleet", default="storm", help="Name of the fleet (default storm).")
    parser.add_argument("--timeout", type=float, default=1200, help="Seconds for each clone.")
    args = parser.parse_args()
    print(f"{'way':12}  {'ready':>5}  {'first':>7}  {'p50':>7}  {'last':>7}  p50/last")
    with tempfile.TemporaryDirectory(prefix="boot-storm-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # QEMU's user reads disks there
        (folder / "vmcloner.toml").write_text(SETTINGS.format(folder=folder))
        watcher = Ready()
        with Engine.open(config=folder / "vmcloner.toml", plugins=[watcher]) as engine:
            try:
                engine.create(args.fleet, args.template, count=args.n)
                for way, jobs in WAYS:
                    watcher.at.clear()
                    engine.start(args.fleet, ready=True, timeout=args.timeout, boot_jobs=jobs)
                    print(_row(way, watcher.at), flush=True)
                    engine.stop(args.fleet, kill=True)
            finally:
                engine.delete(args.fleet)
                for template in {origin.template for origin in engine.origins()}:
                    engine.delete_template(template)


def _row(way: str, at: list[float]) -> str:
    half, last = statistics.median(at), max(at)
    return (
        f"{way:12}  {len(at):5}  {min(at):5.1f} s  {half:5.1f} s  {last:5.1f} s  {half / last:7.0%}"
    )


if __name__ == "__main__":
    main()
