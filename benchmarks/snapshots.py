"""Measure how a fleet of running guests gets back to where it was: revert, reset, create again."""

from __future__ import annotations

import argparse
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from vmcloner_core import Engine


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(engine: Engine, fleet: str, template: str, count: int) -> dict[str, float]:
    """Return the seconds of each way, for the whole fleet."""

    def create() -> None:
        engine.create(fleet, template, count=count, ready=True)

    found = {"create, start, until ready": timed(create)}
    found["snapshot of disks and memory"] = timed(
        lambda: engine.create_snapshot(fleet, name="bench", memory=True)
    )
    found["revert to it, running again"] = timed(
        lambda: engine.revert_snapshot(fleet, name="bench", force=True)
    )
    found["reset, until ready"] = timed(lambda: engine.reset(fleet, ready=True))
    found["delete a snapshot"] = timed(lambda: engine.delete_snapshot(fleet, name="bench"))

    def again() -> None:
        engine.delete(fleet)
        create()

    found["delete and create, until ready"] = timed(again)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=10)
    parser.add_argument("--template", default="tiny")
    options = parser.parse_args()
    fleet = f"bench{secrets.token_hex(3)}x"
    with tempfile.TemporaryDirectory(prefix="vmcloner-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # QEMU runs as another user
        config = folder / "vmcloner.toml"
        config.write_text(f'[hosts.local]\nstate = "{folder}/state"\n')
        config.chmod(0o600)
        with Engine.open(config=config) as engine:
            engine.import_template(options.template)
            try:
                found = measure(engine, fleet, options.template, options.n)
            finally:
                engine.delete(fleet)
    reference = found["revert to it, running again"]
    print(f"| {options.n} guests of {options.template} | s | times |\n|---|--:|--:|")
    for way, seconds in found.items():
        print(f"| {way} | {seconds:.2f} | {seconds / reference:.1f} |")


if __name__ == "__main__":
    main()
