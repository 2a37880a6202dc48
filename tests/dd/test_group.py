"""Copies in a real volume group: the storage contract, and what is particular about devices."""

import contextlib
import subprocess

import pytest

from vmcloner_core.copying import Target
from vmcloner_core.drivers import DriverContext
from vmcloner_core.errors import Conflict, HostCommandError, NotEnoughResources, NotFound
from vmcloner_core.model import CloneMode, CloneRequest, Copying, Host, Status
from vmcloner_core.process import LocalRunner
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import StorageConformance, make_image, no_progress
from vmcloner_dd.plugin import vmcloner_storage_backend
from vmcloner_dd.settings import DdSettings
from vmcloner_lvm.thick_group import COPYING

pytestmark = pytest.mark.lvm
VG = "vg"
MIB = 1024**2


def lvm(*argv):
    """Run a command of LVM; returns its words."""
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=300)
    return done.stdout.split()


@pytest.fixture
def open_driver(tmp_path):
    """Return a function that opens a driver of the group; leaves no thick volume there."""

    def opened(group=VG, **settings):
        host = Host(name="local", state=tmp_path / "state")
        context = DriverContext(host=host, name="pool", runner=LocalRunner())
        return vmcloner_storage_backend().factory(context, DdSettings(vg=group, **settings))

    yield opened
    left = lvm("lvs", "--noheadings", "-o", "lv_name", "-S", "segtype=linear", VG)
    if left:
        lvm("lvremove", "-y", *(f"{VG}/{name}" for name in left))


class TestGroup(StorageConformance):
    @pytest.fixture
    def open_driver(self, open_driver):
        return open_driver

    @pytest.fixture(params=[CloneMode.FULL], ids=["full"])
    def mode(self, request):
        return request.param

    def put_foreign(self, volume):
        lvm("lvcreate", "-y", "-L", "8m", "-n", volume.name, VG)
        volume.path.write_bytes(b"foreign")

    def check_foreign(self, volume):
        with volume.path.open("rb") as stream:
            assert stream.read(7) == b"foreign"


@pytest.fixture
def driver(open_driver):
    return open_driver()


@pytest.fixture
def origin(driver, tmp_path):
    image = make_image(tmp_path / "image.raw", seed=1)
    return driver.import_image("tiny", image, no_progress, Copying(verify=True)).unwrap()


def requests(origin, count, **options):
    return [
        CloneRequest(labels=make_labels(index=index), origin=origin, copying=Copying(**options))
        for index in range(1, count + 1)
    ]


def tags_of(name):
    return lvm("lvs", "--noheadings", "-o", "lv_tags", f"{VG}/{name}")[0].split(",")


def test_labels_are_there_before_the_bytes(driver, origin, monkeypatch):
    """Killed at any moment, there is no volume of ours without its tags."""
    seen = []
    write = Target.write

    def look(target, data, at):
        seen.append(tags_of(target.path.name))
        write(target, data, at)

    monkeypatch.setattr(Target, "write", look)
    [outcome] = driver.clone(requests(origin, 1, verify=True))
    assert outcome.ok, outcome.error
    assert all("vmcloner" in tags and COPYING in tags for tags in seen)
    assert COPYING not in tags_of("web-1-disk0")
    state = ("--noheadings", "-o", "lv_active,lv_skip_activation")
    assert lvm("lvs", *state, f"{VG}/web-1-disk0") == ["skip", "activation"]


class Killed(BaseException):
    """The process ends here."""


def cut_off(driver, origin, monkeypatch):
    """Begin two copies, and end in their middle."""
    write = Target.write

    def dies(target, data, at):
        if at:
            raise Killed
        write(target, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(Target, "write", dies)
        with contextlib.suppress(Killed):
            list(driver.clone(requests(origin, 2)))


def test_a_copy_that_died_is_gone_on_with(driver, origin, tmp_path, monkeypatch):
    cut_off(driver, origin, monkeypatch)
    left = driver.volumes()
    assert [volume.complete for volume in left] == [False, False]
    for outcome in driver.activate(left):
        assert not outcome.ok
    write, written = Target.write, []
    monkeypatch.setattr(
        Target, "write", lambda self, data, at: (written.append(at), write(self, data, at))
    )
    volumes = [outcome.unwrap() for outcome in driver.clone(requests(origin, 2, verify=True))]
    assert all(volume.complete for volume in volumes)
    assert 0 not in written
    for outcome in driver.activate(volumes):
        assert outcome.ok, outcome.error
    content = (tmp_path / "image.raw").read_bytes()
    for volume in volumes:
        with volume.path.open("rb") as stream:
            assert stream.read() == content
    assert all(outcome.ok for outcome in driver.deactivate(volumes))


def test_a_copy_that_died_becomes_as_large_as_its_new_image(driver, origin, tmp_path, monkeypatch):
    cut_off(driver, origin, monkeypatch)
    larger = make_image(tmp_path / "larger.raw", seed=2, size=origin.size + 6 * MIB)
    origin = driver.import_image("tiny", larger, no_progress).unwrap()
    volumes = [outcome.unwrap() for outcome in driver.clone(requests(origin, 2, verify=True))]
    assert all(outcome.ok for outcome in driver.activate(volumes))
    for volume in volumes:
        assert volume.complete
        with volume.path.open("rb") as stream:
            assert stream.read() == larger.path.read_bytes().ljust(volume.size, b"\0")
    assert all(outcome.ok for outcome in driver.deactivate(volumes))


@pytest.mark.parametrize(
    "hang",
    [
        ("-s", "-L", "8m"),
        ("--type", "thin", "--thinpool", "pool"),  # over it, as its external origin
    ],
)
def test_what_others_hung_on_an_image_stays_and_so_does_it(driver, origin, hang):
    lvm("lvcreate", "-y", *hang, "-n", "precious", f"{VG}/image.tiny")
    try:
        with pytest.raises(Conflict, match="be removed with it: vg/precious"):
            driver.delete_origin("tiny")
        names = lvm("lvs", "--noheadings", "-o", "lv_name", VG)
        assert {"precious", "image.tiny"} <= {*names}
    finally:
        lvm("lvremove", "-y", f"{VG}/precious")
    assert driver.delete_origin("tiny").changed


def test_no_room_is_said_and_leaves_nothing(driver, origin):
    [request] = requests(origin, 1)
    free = driver.capacity().free
    huge = CloneRequest(labels=request.labels, origin=origin, size=free + 64 * MIB)
    assert driver.need(huge, 1) > free
    [outcome] = driver.clone([huge])
    assert isinstance(outcome.error, NotEnoughResources)
    assert driver.volumes() == ()


def test_a_group_that_is_not_there(open_driver):
    driver = open_driver("nowhere")
    with pytest.raises(NotFound, match="nowhere"):
        driver.volumes()
    with pytest.raises(NotFound, match="nowhere"):
        driver.capacity()
    assert [c.status for c in driver.probe()][-1] is Status.FAILED


def test_verifying_reads_the_device(driver, origin, monkeypatch):
    flush = Target.flush

    def spoiled(target):
        with target.path.open("r+b", buffering=0) as stream:
            stream.write(b"x" * 4096)
        flush(target)

    monkeypatch.setattr(Target, "flush", spoiled)
    [outcome] = driver.clone(requests(origin, 1, verify=True))
    assert isinstance(outcome.error, HostCommandError)
    assert driver.volumes() == ()
