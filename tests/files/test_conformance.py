"""The storage conformance suite on each kind of pool that files can make."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vmcloner_core.model import CloneMode
from vmcloner_core.testing.samples import make_context
from vmcloner_core.testing.storage import STATE_ID, StorageConformance
from vmcloner_files import drafts
from vmcloner_files.driver import FilesDriver


class TestHere(StorageConformance):
    """On the file system of the tests' temporary folder, whatever it is."""

    @pytest.fixture
    def open_driver(self, tmp_path, make_driver):
        return lambda: make_driver(tmp_path)


class TestOverlay(StorageConformance):
    """LINKED clones forced to be qcow2 overlays."""

    @pytest.fixture
    def open_driver(self, tmp_path, make_driver):
        return lambda: make_driver(tmp_path, clone="overlay")

    def test_linked_clones_are_overlays(self, driver, origin):
        [volume] = self.make(driver, self.requests(origin, 1, CloneMode.LINKED))
        assert volume.format == "qcow2"
        assert volume.backing == volume.path.parent.parent / f"templates/{origin.template}.raw"
        assert driver.volumes() == (volume,)


class TestNamedDrafts(TestOverlay):
    """On a file system without O_TMPFILE, as NFS is."""

    @pytest.fixture(autouse=True)
    def without_tmpfile(self, monkeypatch):
        def refuse(folder: Path):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(drafts, "unnamed", refuse)


class TestLikeNfs(TestNamedDrafts):
    """A shared pool whose file system answers like NFS."""

    @pytest.fixture(autouse=True)
    def like_nfs(self, monkeypatch):
        lock, control = fcntl.flock, fcntl.fcntl

        def flock(file, how):
            fd = file if isinstance(file, int) else file.fileno()
            read_only = control(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            if how & fcntl.LOCK_EX and read_only:
                raise OSError(errno.EBADF, "an exclusive lock of a file that is open for reading")
            return lock(file, how)

        def no_leases(fd, command, *more):
            if command == fcntl.F_SETLEASE:
                raise OSError(errno.EAGAIN, "no delegation")
            return control(fd, command, *more)

        monkeypatch.setattr(fcntl, "flock", flock)
        monkeypatch.setattr(fcntl, "fcntl", no_leases)

    @pytest.fixture
    def open_driver(self, tmp_path, make_driver):
        context = make_context(tmp_path)
        context.host.state_id.parent.mkdir()
        context.host.state_id.write_text(STATE_ID)  # another's clones would not be seen
        return lambda: make_driver(tmp_path, clone="overlay", shared=True)


@pytest.mark.filesystems
class TestWithoutAttributes(TestOverlay):
    """On a file system without extended attributes."""

    @pytest.fixture
    def open_driver(self, mounts, new_folder, make_driver):
        folder = new_folder(mounts("ramfs"))
        return lambda: make_driver(folder)

    def test_labels_are_in_files(self, driver, origin):
        [volume] = self.make(driver, self.requests(origin, 1, CloneMode.LINKED))
        assert os.listxattr(volume.path) == []


class Reflinks(StorageConformance):
    """On a file system that shares blocks."""

    kind = ""

    @pytest.fixture
    def open_driver(
        self,
        mounts: Callable[[str], Path],
        new_folder: Callable[[Path], Path],
        make_driver: Callable[[Path], FilesDriver],
    ):
        folder = new_folder(mounts(self.kind))
        return lambda: make_driver(folder)

    def test_linked_clones_share_and_full_ones_do_not(self, driver, origin, shared_extents):
        for mode, shares in ((CloneMode.LINKED, True), (CloneMode.FULL, False)):
            [volume] = self.make(driver, self.requests(origin, 1, mode, fleet=mode.value))
            assert volume.format == "raw"
            assert bool(shared_extents(volume.path)) is shares

    def test_need_covers_what_a_hundred_clones_take(self, driver, origin):
        requests = self.requests(origin, 100, CloneMode.LINKED)
        before = driver.capacity().free
        self.make(driver, requests)
        assert before - driver.capacity().free <= driver.need(requests[0], 100)


@pytest.mark.filesystems
class TestXfs(Reflinks):
    kind = "xfs"


@pytest.mark.filesystems
class TestBtrfs(Reflinks):
    kind = "btrfs"
