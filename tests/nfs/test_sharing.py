"""Hosts that share a pool's folder on real NFS mounts: two hosts, two state folders, one server."""

import contextlib
import os
import sys
from pathlib import Path

import attrs
import pytest

from tests.files import sharing_work
from tests.files.sharing_work import make
from tests.nfs.conftest import run
from vmcloner_core.drivers import ImageFile
from vmcloner_core.errors import BackendError, NotEnoughResources, VmclonerError
from vmcloner_core.model import CloneMode, CloneRequest
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import make_image, no_progress
from vmcloner_files import labelling

pytestmark = [pytest.mark.nfs, pytest.mark.timeout(600)]
WORKER = sharing_work.__file__
CUT_OFF = Path(__file__).with_name("cut_off.py")


@pytest.fixture
def image(shared):
    """The image, where the worker looks for it: beside the pool."""
    return attrs.evolve(make_image(shared.point / "image.raw", 1, 2**20), digest="sha256:a")


@pytest.fixture
def at_work(shared, image):
    """Return a function that has a host make and delete clones in the pool."""

    def start(host, name, count, rounds):
        words = [shared.states / name, shared.point / "pool", name, str(count), str(rounds)]
        return host.popen(sys.executable, WORKER, *words)

    return start


def names(driver):
    return sorted(volume.name for volume in driver.volumes())


def ended(process, timeout=300):
    _, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, errors.decode()


# --- in the ordinary run: short -------------------------------------------------------------------


def test_two_hosts_at_work_at_once(shared, at_work, image):
    """Locks hold between the hosts' mounts, and each host finds its own clones at once.

    One is killed amid its work, and comes back.
    """
    here, other = shared.hosts
    killed = at_work(other, "killed", 2, 10**6)
    assert killed.stdout.readline() == b"go\n"
    running = [at_work(here, "h1", 4, 1), at_work(other, "h2", 4, 1)]
    ended(running[0])
    killed.kill()
    killed.communicate()
    ended(running[1])
    ended(at_work(other, "killed", 2, 0))
    for name, count in (("h1", 4), ("h2", 4), ("killed", 2)):
        driver, _ = shared.opened(name)
        found = driver.volumes()
        assert sorted(volume.name for volume in found) == [
            f"{name}-{n}-disk0" for n in range(1, count + 1)
        ]
        assert not any("vmcloner" in str(os.listxattr(volume.path)) for volume in found)
        with driver._pool.lock():
            lock = ["flock", "--nonblock", shared.point / "pool/.lock", "true"]
            assert other.run(*lock, check=False).returncode == 1
        assert other.run(*lock, check=False).returncode == 0
    left = [path for path in (shared.point / "pool").rglob(".nfs*") if path.is_file()]
    assert left == []


def test_a_qcow2_image_is_imported(server, shared):
    """Another program writes the draft, whose lock is a lock on the file to it too."""
    path = server.folder / "image.qcow2"
    make_image(server.folder / "image.raw", 1, 2**20)
    run("qemu-img", "convert", "-O", "qcow2", server.folder / "image.raw", path)
    driver, _ = shared.opened("qcow2")
    image = ImageFile(path=path, format="qcow2", size=2**20, digest="sha256:b")
    driver.import_image("qcow2", image, no_progress).unwrap()
    made = shared.point / "pool/templates/qcow2.raw"
    assert made.read_bytes() == (server.folder / "image.raw").read_bytes()


@pytest.mark.parametrize("option", ["nolock", "local_lock=flock", "nocto"])
def test_a_mount_whose_locks_do_not_hold_is_refused(shared, image, tmp_path, option):
    here, _ = shared.hosts
    options = "nocto" if option == "nocto" else f"vers=3,nolock,{option}"
    here.mount(shared.back, tmp_path, options)
    try:
        driver, own = sharing_work.opened(shared.states / "refused", tmp_path / "refused")
        with pytest.raises(BackendError, match=f"{tmp_path} is mounted with ") as caught:
            make(driver, own, image, "web", 1)
        assert "shared = false" in caught.value.hint
        assert not (tmp_path / "refused").exists()
    finally:
        here.run("umount", tmp_path)


def test_a_server_that_takes_root_for_nobody(server, shared, image):
    """One line says what is wrong with the export, and nothing is made."""
    server.export(shared.back, "root_squash")
    try:
        driver, own = sharing_work.opened(shared.states / "squash", shared.point / "squashed")
        with pytest.raises(VmclonerError) as caught:
            make(driver, own, image, "web", 1)
        assert "no_root_squash" in caught.value.hint
        found = {check.name: check for check in driver.probe()}
        assert found["pool"].status.name == "FAILED"
        assert "no_root_squash" in found["pool"].fix
    finally:
        server.export(shared.back)


def test_an_export_that_is_full(shared, image, full):
    """What did not get its bytes is not there; the same call makes it when there is room."""
    driver, own = shared.opened("full")
    make(driver, own, image, "web", 1)
    [origin] = [each for each in driver.origins() if each.template == "tiny"]
    requests = [
        CloneRequest(labels=make_labels("web", n, state=own), origin=origin, mode=mode)
        for n, mode in ((2, CloneMode.LINKED), (3, CloneMode.FULL), (4, CloneMode.LINKED))
    ]
    with full():
        outcomes = list(driver.clone(requests))
        assert [type(o.error) for o in outcomes] == [NotEnoughResources] * 3, outcomes
        assert [v.name for v in driver.volumes() if v.complete] == ["web-1-disk0"]
    for outcome in driver.clone(requests):
        outcome.unwrap()
    for volume in driver.volumes():
        with volume.path.open("rb") as stream:
            start = stream.read(4)
        assert start == (b"QFI\xfb" if volume.format == "qcow2" else image.path.read_bytes()[:4])
    assert len(driver.volumes()) == 4


@pytest.fixture
def full(shared):
    """Return a context in which the server has no byte left."""

    @contextlib.contextmanager
    def filled():
        path = shared.back / "ballast"
        with path.open("wb", buffering=0) as stream:
            for size in (2**20, 4096, 1):
                with contextlib.suppress(OSError):
                    while stream.write(bytes(size)):
                        pass
            os.fsync(stream.fileno())
        yield
        path.unlink()
        os.sync()

    return filled


def test_labels_that_another_host_replaces_while_they_are_read(shared, image, monkeypatch):
    """The file that is open is gone at the server: a stale handle."""
    driver, own = shared.opened("stale")
    make(driver, own, image, "stale", 1)
    reader, _ = shared.opened("stale")
    check, replaced = labelling.check_owner, []

    def once(path, *more):
        if not replaced:
            replaced.append(path)
            shared.hosts[1].run("sh", "-c", f"cp -p {path} {path}.new && mv {path}.new {path}")
            os.sync()
        check(path, *more)

    monkeypatch.setattr(labelling, "check_owner", once)
    assert names(reader) == ["stale-1-disk0"]
    assert replaced


# --- long -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_that_is_restarted_amid_the_work(server, shared, at_work):
    """Clients wait, and get their locks again; one that is too late for that fails by name.

    The same command converges.
    """
    placed = {"r1": shared.hosts[0], "r2": shared.hosts[1]}
    running = [at_work(host, name, 4, 6) for name, host in placed.items()]
    for process in running:
        assert process.stdout.readline() == b"go\n"
    server.restart()
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0 or b"\nvmcloner_core.errors." in errors, errors.decode()
    for name, host in placed.items():
        ended(at_work(host, name, 4, 0))
        driver, _ = shared.opened(name)
        assert names(driver) == [f"{name}-{n}-disk0" for n in range(1, 5)]


@pytest.mark.slow
def test_a_host_that_was_cut_off_overwrites_nothing(shared, image):
    """A label of its is under way when its locks go to another host, which adds more."""
    here, other = shared.hosts
    driver, own = shared.opened("cut-here")
    make(driver, own, image, "before", 1)
    words = [shared.states / "cut", shared.point / "pool", "cut"]
    link = ("ip", "-n", other.name, "link", "set", "vmcnfs1")
    process = other.popen(sys.executable, CUT_OFF, *words)
    try:
        assert process.stdout.readline() == b"go\n"
        assert process.stdout.readline() == b"written\n"
        here.run(*link, "down")
        process.stdin.write(b"\n")
        process.stdin.close()
        make(driver, own, image, "meanwhile", 3)
    finally:
        here.run(*link, "up")
    process.stdout.read()
    assert process.wait(timeout=300) == 1
    assert b"cut-1-disk0: Input/output error" in process.stderr.read()
    fresh, _ = shared.opened("cut-here")
    assert names(fresh) == ["before-1-disk0", *(f"meanwhile-{n}-disk0" for n in (1, 2, 3))]
    ended(other.popen(sys.executable, WORKER, *words, "1", "0"))
    assert names(shared.opened("cut")[0]) == ["cut-1-disk0"]
