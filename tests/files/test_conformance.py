"""The storage conformance suite on each kind of pool that files can make."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vmcloner_core.model import CloneMode
from vmcloner_core.testing.storage import StorageConformance
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
