"""A Ceph cluster for the tests of this session, and a pool that is empty at first."""

import itertools
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.rbd.cluster import PROGRAMS, Cluster
from vmcloner_rbd.settings import RbdSettings

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def cluster():
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    assert not missing, f"not installed: {missing}; contrib/setup/packages"
    folder = Path(tempfile.mkdtemp(prefix="rbd-"))
    folder.chmod(0o755)
    cluster = Cluster(folder / "c")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def settings(cluster):
    """Of a namespace of its own for each test: it is made in a moment, a pool takes seconds."""
    name = f"test{next(_NUMBERS)}"
    cluster.rbd("namespace", "create", f"vms/{name}")
    return RbdSettings(
        pool="vms", namespace=name, conf=cluster.conf, keyring=cluster.keyring, timeout=30
    )
