"""What is in use is not deleted, and its user is named."""

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import time

import pytest

from vmcloner_core.errors import Conflict, WrongState
from vmcloner_core.model import CloneMode, CloneRequest
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import make_image, no_progress
from vmcloner_files import holders
from vmcloner_files.holders import Holders

QEMU = ["qemu-system-x86_64", "-machine", "q35,accel=tcg", "-S", "-nodefaults", "-display", "none"]


@pytest.fixture(params=[CloneMode.LINKED, CloneMode.FULL], ids=["overlay", "raw"])
def volumes(request, tmp_path, make_driver):
    """Return a driver and three volumes of its pool."""
    driver = make_driver(tmp_path, clone="overlay")
    image = make_image(tmp_path / "image.raw", seed=1)
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    requests = [
        CloneRequest(labels=make_labels(index=index), origin=origin, mode=request.param)
        for index in (1, 2, 3)
    ]
    return driver, [outcome.unwrap() for outcome in driver.clone(requests)]


@pytest.mark.parametrize("locking", ["on", "off"])
def test_disk_of_a_paused_machine(volumes, locking):
    driver, [_, busy, _] = volumes
    drive = f"file={busy.path},format={busy.format},if=virtio,file.locking={locking}"
    qemu = subprocess.Popen(
        [*QEMU, "-drive", drive, "-qmp", "stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with qemu:
        try:
            assert b"QMP" in qemu.stdout.readline()  # its disks are open by now
            outcomes = {outcome.key: outcome for outcome in driver.delete(driver.volumes())}
        finally:
            qemu.kill()
    assert isinstance(outcomes["web-2-disk0"].error, WrongState)
    assert f"in use by process {qemu.pid} (qemu-system-x86" in str(outcomes["web-2-disk0"].error)
    assert outcomes["web-1-disk0"].changed
    assert outcomes["web-3-disk0"].changed
    assert driver.volumes() == (busy,)


@pytest.fixture
def no_leases(monkeypatch):
    real = fcntl.fcntl

    def refused(fd, command, argument=0):
        if command == fcntl.F_SETLEASE:
            raise OSError(errno.EACCES, "Permission denied")
        return real(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", refused)


def test_without_leases_open_files_are_looked_for(volumes, no_leases):
    driver, [_, busy, _] = volumes
    with subprocess.Popen(["sleep", "60"], stdin=busy.path.open("rb")) as sleeper:
        try:
            outcomes = {outcome.key: outcome for outcome in driver.delete(driver.volumes())}
        finally:
            sleeper.kill()
    assert f"process {sleeper.pid} (sleep)" in str(outcomes["web-2-disk0"].error)
    assert outcomes["web-1-disk0"].changed
    assert outcomes["web-3-disk0"].changed


LOCKER = """
import fcntl, struct, time
lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 100, 1, 0)
fcntl.fcntl(0, fcntl.F_OFD_SETLK, lock)  # as QEMU does
print("locked", flush=True)
time.sleep(60)
"""


def test_root_in_a_container_sees_locks_at_least(volumes, no_leases, monkeypatch):
    """It has neither CAP_LEASE nor CAP_SYS_PTRACE, nor the host's processes in its /proc."""
    driver, [_, busy, _] = volumes
    monkeypatch.setattr(holders, "open_files", lambda: iter(()))
    argv = [sys.executable, "-c", LOCKER]
    with subprocess.Popen(argv, stdin=busy.path.open("rb"), stdout=subprocess.PIPE) as locker:
        try:
            assert locker.stdout.readline() == b"locked\n"
            outcomes = {outcome.key: outcome for outcome in driver.delete(driver.volumes())}
        finally:
            locker.kill()
    assert isinstance(outcomes["web-2-disk0"].error, WrongState)
    assert driver.volumes() == (busy,)


@pytest.mark.filesystems
def test_a_lock_on_a_file_of_another_file_system_is_not_counted(tmp_path, no_leases):
    """Both files have one inode number, as files on NFS and those that its server has."""
    with contextlib.ExitStack() as stack:
        files = []
        for name in ("a", "b"):
            point = tmp_path / name
            point.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", name, point], check=True)
            stack.callback(subprocess.run, ["umount", point], check=True)
            (point / "file").touch()
            files.append(stack.enter_context((point / "file").open("rb")))
        locked, other = files
        assert os.fstat(locked.fileno()).st_ino == os.fstat(other.fileno()).st_ino
        fcntl.flock(locked, fcntl.LOCK_EX)
        assert Holders().in_use(locked.fileno())
        assert not Holders().in_use(other.fileno())


def test_an_open_during_the_lease_ends_nobody(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with path.open("rb") as stream:
        assert not Holders().in_use(stream.fileno())
        opener = subprocess.Popen(["cat", path])
        time.sleep(0.3)  # the signal that the lease is wanted back comes to this process
        assert opener.poll() is None
    assert opener.wait(30) == 0


def test_this_process_counts_too(volumes):
    driver, [_, busy, _] = volumes
    with busy.path.open("rb"):
        [outcome] = driver.delete([busy])
    assert isinstance(outcome.error, WrongState)
    assert driver.delete([busy]).__next__().changed


def test_a_disk_that_libvirt_gave_to_qemus_user(volumes):
    driver, [first, _, _] = volumes
    os.chown(first.path, 65534, 65534)
    [outcome] = driver.delete([first])
    assert outcome.changed


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_what_is_no_regular_file_is_foreign(volumes, kind):
    driver, [first, second, _] = volumes
    [outcome] = driver.delete([first])
    assert outcome.changed
    if kind == "link":
        first.path.symlink_to(second.path)
    elif kind == "folder":
        first.path.mkdir()
    else:
        os.mkfifo(first.path)
    [outcome] = driver.delete([first])
    assert isinstance(outcome.error, Conflict)
    assert os.path.lexists(first.path)
    assert len(driver.volumes()) == 2
