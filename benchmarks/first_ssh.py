#!/usr/bin/env python3
"""Measure the time from ``git clone`` to the first ssh into a Debian, by the README's own commands.

    sudo benchmarks/first_ssh.py                                  # make setup, network vmcloner
    sudo benchmarks/first_ssh.py --no-setup --network try --clones 1

Clones this checkout's repository into a scratch folder, sets it up, and runs the commands of the
README's section "A complete Debian" up to the ssh, with a state folder and a cache of their own: so
the image is built. At the end everything that this made is removed, the host's packages excepted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECTION = "## A complete Debian"
LIMIT = 3600.0
"""Seconds for one command."""


def readme_commands(text: str) -> list[list[str]]:
    """Return the README's commands up to the first ssh, as lists of words."""
    (section,) = re.findall(rf"(?ms)^{SECTION}$(.*?)^## ", text)
    lines = re.findall(r"(?m)^    (vmcloner [^#\n]*?) *(?:#.*)?$", section)
    found: list[list[str]] = []
    for line in lines:
        found.append(shlex.split(line))
        if found[-1][1] == "ssh":
            return found
    raise SystemExit(f"README.md: no ssh in {SECTION!r}")


def adapted(
    commands: Sequence[Sequence[str]], fleet: str, clones: int | None, network: str
) -> list[list[str]]:
    """Return commands for another fleet, number of clones and network; the ssh runs ``true``."""
    made: list[list[str]] = []
    for words in (list(each) for each in commands):
        if words[1:4] == ["host", "prepare", "network"]:
            words += ["--name", network]
        elif words[1] == "create":
            words[2] = fleet
            at = words.index("-n") + 1
            words[at] = str(clones or words[at])
            most = int(words[at])
        elif words[1] == "ssh":
            words[2] = f"{fleet}-{min(most, int(words[2].rpartition('-')[2]))}"
            words.append("true")
        made.append(words)
    return made


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Run it all; return the seconds of each step."""
    # QEMU runs as another user and has to get through, so it is not in a private folder.
    scratch = Path(tempfile.mkdtemp(prefix="vmcloner-first-", dir="/var/tmp"))
    scratch.chmod(0o755)
    checkout, work = scratch / "vmcloner", scratch / "work"
    (work / "templates").mkdir(parents=True)
    (work / "vmcloner.toml").write_text(f'[hosts.local]\nstate = "{scratch}/state"\n')
    if options.network != "vmcloner":
        (work / "templates" / "debian-12-built.toml").write_text(
            'extends = "debian-12-built"\n'
            f'[[nics]]\nkind = "network"\nsource = "{options.network}"\n'
        )
    path = f"{checkout}/.venv/bin:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(scratch / "cache")}
    env.pop("VMCLONER_CONFIG", None)
    spent: dict[str, float] = {}

    def run(what: str, argv: Sequence[str], cwd: Path) -> None:
        begun = time.monotonic()
        print(f"$ {shlex.join(argv)}", flush=True)
        subprocess.run(argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, timeout=LIMIT, check=True)
        spent[what] = time.monotonic() - begun

    vmcloner = str(checkout / ".venv/bin/vmcloner")
    there = subprocess.run(
        ["virsh", "-q", "-c", "qemu:///system", "net-info", options.network],
        capture_output=True,
        check=False,
        timeout=60,
    )
    try:
        run("git clone", ["git", "clone", "-q", str(ROOT), str(checkout)], scratch)
        setup = [str(checkout / "contrib/setup/venv")] if options.no_setup else ["make", "setup"]
        run("set-up", setup, checkout)
        text = (checkout / "README.md").read_text()
        for words in adapted(readme_commands(text), options.fleet, options.clones, options.network):
            what = "host prepare network" if words[1] == "host" else words[1]
            run(what, words, work)
        spent["total"] = sum(spent.values())
        return spent
    finally:
        if Path(vmcloner).exists():
            words = [vmcloner, "delete", options.fleet, "--yes", "--missing-ok"]
            subprocess.run(words, cwd=work, env=env, check=False, timeout=LIMIT)
            if there.returncode != 0:
                words = [vmcloner, "host", "remove", "network", "--name", options.network]
                subprocess.run(words, cwd=work, env=env, check=False, timeout=LIMIT)
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clones", type=int, metavar="N", help="default: as in the README")
    parser.add_argument("--fleet", default="lab", help="default lab")
    parser.add_argument("--network", default="vmcloner", metavar="NAME", help="default vmcloner")
    parser.add_argument(
        "--no-setup", action="store_true", help="only make .venv: the host is set up already"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the seconds there too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was made is removed then too
    spent = measure(options)
    for what, seconds in spent.items():
        print(f"{what:22} {seconds:8.1f} s")
    if options.json is not None:
        options.json.write_text(json.dumps(spent, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
