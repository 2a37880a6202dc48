"""Demonstrate the life of a fleet: show each command, its output, and the time of each phase.

Called by the script ``demo`` in the same folder, with the times (seconds since the epoch) at which
the set-up began, had installed its packages, and had created its Python environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

FLEET = "demo"
COUNT = 5
console = Console(highlight=False)
phases: list[tuple[str, float]] = []


class Failed(Exception):
    """A command of the demo failed."""


def show(phase: str, command: str) -> str:
    """Print a command, run it, print its output and return it."""
    console.print(f"\n[bold green]$[/] [bold]{command}[/]", soft_wrap=True)
    begun = time.monotonic()
    # Progress goes to standard error, which stays connected to the terminal.
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], check=False, stdout=subprocess.PIPE, text=True
    )
    sys.stdout.write(done.stdout)
    sys.stdout.flush()
    phases.append((phase, time.monotonic() - begun))
    if done.returncode != 0:
        raise Failed(f"{command}: exit status {done.returncode}")
    return done.stdout


def remains() -> list[dict[str, str]]:
    """Return the existing clones of the demo's fleet, for example from a killed demo."""
    done = subprocess.run(
        ["vmcloner", "list", "-f", "json"], check=False, stdout=subprocess.PIPE, text=True
    )
    if done.returncode != 0:
        raise Failed(f"vmcloner list: exit status {done.returncode}")
    return [clone for clone in json.loads(done.stdout) if clone["fleet"] == FLEET]


def tour() -> None:
    """Create, list and delete the fleet."""
    if found := remains():
        if len(found) > COUNT or {clone["template"] for clone in found} != {"tiny"}:
            raise Failed(f"another fleet {FLEET!r} already exists: see vmcloner list")
        console.print("\nAn earlier demo was interrupted. Its clones are deleted first.")
        show("remove the clones of an earlier demo", f"vmcloner delete {FLEET} --yes")
    show("build the template", "vmcloner template import tiny")
    try:
        show(
            f"create {COUNT}, start them, wait for each",
            f"vmcloner create {FLEET} -t tiny -n {COUNT} --start --wait",
        )
        show("list", f"vmcloner list {FLEET}")
        logs = f"for n in {{1..{COUNT}}}; do vmcloner console {FLEET}-$n --log; done"
        said = show("read their consoles", f"{logs} | grep -o 'vmcloner-ready.*'")
    finally:
        show("delete", f"vmcloner delete {FLEET} --yes --missing-ok")
    for number in range(1, COUNT + 1):
        if said.count(f"name={FLEET}-{number} ") != 1:
            raise Failed(f"{FLEET}-{number} did not print its name")
    show("list again", "vmcloner list")
    if remains():
        raise Failed("some clones of the fleet are left")


def report() -> None:
    """Print the time of each phase."""
    table = Table(title="\nTime of each phase", title_justify="left")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    for name, seconds in phases:
        table.add_row(name, f"{seconds:.1f}")
    table.add_section()
    table.add_row("total", f"{sum(seconds for _, seconds in phases):.1f}")
    console.print(table)


def main(times: list[str]) -> int:
    """Run the demo; return 1 if something failed."""
    begun, packages, venv = map(float, times)
    phases.extend(
        [
            ("set-up: packages", packages - begun),
            ("set-up: Python", venv - packages),
            ("set-up: libvirtd", time.time() - venv),
        ]
    )
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    try:
        tour()
    except Failed as error:
        console.print(f"demo: {error}", style="bold red")
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        report()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
