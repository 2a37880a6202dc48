"""Clone or delete in a process of its own, which ends, or waits for its end, at a given step.

``python -m tests.lvm.dying clone|delete FLEET STATE PATTERN [N] [HOW] [COUNT]``: before the Nth
command or message that matches, or while it runs (HOW: ``within``), the process gets SIGKILL. As
``held`` it says HERE instead, and waits at that step for the machine's power to be cut; as
``held-within`` it says so while the command runs.
"""

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

from tests.lvm.conftest import POOL, VG
from vmcloner_core.drivers import DriverContext
from vmcloner_core.model import CloneRequest, Host
from vmcloner_core.process import LocalRunner
from vmcloner_core.testing.samples import make_labels
from vmcloner_lvm.commands import bound
from vmcloner_lvm.devmapper import KernelDeviceMapper
from vmcloner_lvm.driver import LvmThinDriver
from vmcloner_lvm.settings import LvmThinSettings

SWAP = 8 * 1024**2
HEAD = b"swap" * 1024
WITHIN = 0.1


class Fate:
    """Knows when the process is to end."""

    def __init__(self, pattern, number, how):
        self.pattern, self.left = re.compile(pattern), number
        self.within, self.end = how.endswith("within"), wait if how.startswith("held") else die

    def step(self, what):
        if not self.pattern.search(what):
            return
        self.left -= 1
        if self.left == 0:
            if self.within:
                threading.Timer(WITHIN, self.end).start()
            else:
                self.end()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def wait():
    print("HERE", flush=True)
    time.sleep(600)


class DyingRunner(LocalRunner):
    def __init__(self, fate):
        self.fate = fate

    def run(self, argv, **options):
        self.fate.step(" ".join(argv[len(bound([])) :]))
        return super().run(argv, **options)


class DyingMapper(KernelDeviceMapper):
    def __init__(self, fate):
        super().__init__()
        self.fate = fate

    def message(self, name, text):
        self.fate.step(text)
        super().message(name, text)

    def write_head(self, *details):
        self.fate.step("write_head")
        super().write_head(*details)

    def drop_head(self, *details):
        self.fate.step("drop_head")
        super().drop_head(*details)


def requests(origin, fleet, count=2):
    """Return two snapshots and a swap disk."""
    disks = [
        CloneRequest(labels=make_labels(fleet, index), origin=origin)
        for index in range(1, count + 1)
    ]
    return [*disks, CloneRequest(labels=make_labels(fleet, 1), disk=1, size=SWAP, head=HEAD)]


def open_driver(state, runner=None, mapper=None):
    """Return a driver of the pool; its strategy is that of the environment."""
    strategy = os.environ.get("STRATEGY", "transaction")
    host = Host(name="local", state=Path(state))
    context = DriverContext(host=host, name="pool", runner=runner or LocalRunner())
    settings = LvmThinSettings(vg=VG, thinpool=POOL, strategy=strategy)
    return LvmThinDriver(context, settings, mapper)


def main(work, fleet, state, pattern, number="1", how="", count="2"):
    fate = Fate(pattern, int(number), how)
    driver = open_driver(state, DyingRunner(fate), DyingMapper(fate))
    if work == "clone":
        outcomes = list(driver.clone(requests(driver.origins()[0], fleet, int(count))))
    else:
        outcomes = list(driver.delete([v for v in driver.volumes() if v.labels.fleet == fleet]))
    sys.exit(any(outcome.error for outcome in outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
