"""vmcloner's conformance suites on a pool of its own, in a running libvirtd."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import attrs
import libvirt
import pytest
from vmcloner_libvirt_pool import LibvirtPool, LibvirtPoolSettings, vmcloner_storage_backend

from vmcloner_core.errors import BackendError, Conflict
from vmcloner_core.model import CloneRequest, Copying, Status
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import StorageConformance, make_image
from vmcloner_core.testing.store import StoreConformance

URI = os.environ.get("LIBVIRT_DEFAULT_URI", "qemu:///system")
make = vmcloner_storage_backend().factory


@pytest.fixture
def folder():
    """A folder that QEMU's user can reach, which pytest's own aren't."""
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-pool-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def pool(folder):
    """A pool of libvirt for one test, by name."""
    target = f"<target><path>{folder}</path></target>"
    made = libvirt.open(URI).storagePoolCreateXML(
        f"<pool type='dir'><name>{folder.name}</name>{target}</pool>"
    )
    yield folder.name
    made.destroy()


@pytest.fixture
def opening(vmcloner_context, pool):
    """A function that opens a driver of the pool."""
    context = vmcloner_context("libvirt-pool")
    return lambda: make(context, LibvirtPoolSettings(pool=pool, uri=URI))


class TestLibvirtPool(StorageConformance):
    @pytest.fixture
    def open_driver(self, opening):
        return opening


class TestItsVolumes(StoreConformance):
    @pytest.fixture
    def open_store(self, pool):
        return lambda: LibvirtPool(LibvirtPoolSettings(pool=pool, uri=URI))


def test_a_pool_that_is_not_there_is_named(opening, pool):
    driver = opening()
    wrong = make(driver.context, LibvirtPoolSettings(pool=f"{pool}-2", uri=URI))
    [check] = wrong.probe()
    assert (check.status, check.fix) == (Status.FAILED, f"see virsh -c {URI} pool-list --all")
    with pytest.raises(BackendError, match=f"{pool}-2"):
        wrong.volumes()


@pytest.fixture
def image(tmp_path):
    return make_image(tmp_path / "image", seed=1)


def test_an_image_of_another_format_becomes_raw(opening, folder, image, tmp_path):
    packed = tmp_path / "packed"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", image.path, packed], check=True)
    driver, told = opening(), []
    other = attrs.evolve(image, path=packed, format="qcow2")
    driver.import_image("tiny", other, lambda *now: told.append(now), Copying(verify=True)).unwrap()
    [found] = driver.origins()
    assert (found.digest, found.size, told[-1]) == (image.digest, image.size, (image.size,) * 2)
    assert (folder / "tiny.image").read_bytes() == image.path.read_bytes()


@pytest.mark.parametrize("content", [b"foreign", bytes(2**20)], ids=["text", "zeros"])
def test_a_record_that_is_not_vmcloners_is_left_alone(opening, folder, image, content):
    driver = opening()
    origin = driver.import_image("tiny", image, lambda *_: None).unwrap()
    (folder / "web-1-disk0.vmcloner").write_bytes(content)
    assert driver.volumes() == ()
    [outcome] = driver.clone([CloneRequest(labels=make_labels(), origin=origin)])
    assert isinstance(outcome.error, Conflict)
    assert (folder / "web-1-disk0.vmcloner").read_bytes() == content
