"""What tests of lvm-thin share; those marked ``lvm`` need the empty thin pool vg/pool, and root."""

import subprocess

import pytest

from vmcloner_core.drivers import DriverContext
from vmcloner_core.model import Host
from vmcloner_core.process import LocalRunner
from vmcloner_lvm.driver import LvmThinDriver
from vmcloner_lvm.settings import LvmThinSettings

VG, POOL = "vg", "pool"


def lvm(*argv):
    """Run a command of LVM; returns its words."""
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=300)
    return done.stdout.split()


def thin_volumes():
    """Return the names of all volumes in the pool."""
    return lvm("lvs", "--noheadings", "-o", "lv_name", "-S", f"pool_lv={POOL}", VG)


@pytest.fixture
def pool():
    """Have the thin pool, which is empty at first, and leave it empty."""
    yield f"{VG}/{POOL}"
    empty()


def empty():
    """Remove all volumes of the pool."""
    names = thin_volumes()
    if names:
        lvm("lvremove", "-ff", "-y", *(f"{VG}/{name}" for name in names))


@pytest.fixture
def open_driver(pool, tmp_path):
    """Return a function that opens a driver of the pool."""

    def opened(strategy="auto", runner=None, mapper=None):
        host = Host(name="local", state=tmp_path / "state")
        context = DriverContext(host=host, name="pool", runner=runner or LocalRunner())
        settings = LvmThinSettings(vg=VG, thinpool=POOL, strategy=strategy)
        return LvmThinDriver(context, settings, mapper)

    return opened
