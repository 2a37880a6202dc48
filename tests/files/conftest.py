"""Pools of files on this machine's file system, and on real XFS and btrfs."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmcloner_core.model import AS_IT_COMES, Copying
from vmcloner_core.testing.samples import make_context
from vmcloner_files.driver import FilesDriver
from vmcloner_files.settings import FilesSettings

MakeDriver = Callable[..., FilesDriver]


@pytest.fixture
def make_driver() -> MakeDriver:
    """Return a function that opens a driver on a folder."""

    def make(
        folder: Path,
        clone: str = "auto",
        copying: Copying = AS_IT_COMES,
        shared: bool | None = None,
    ) -> FilesDriver:
        context = make_context(folder, "pool")
        settings = FilesSettings(path=folder / "pool", clone=clone, shared=shared)
        return FilesDriver(context, settings, copying)

    return make


MKFS = {
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
    "xfs-plain": ["mkfs.xfs", "-q", "-m", "reflink=0"],
    "btrfs": ["mkfs.btrfs", "-q"],
    "ext4": ["mkfs.ext4", "-q"],
}
IN_MEMORY = {
    "ramfs": [],  # the one without extended attributes that every kernel has
    "tmpfs": ["-o", "size=16m"],
}


@pytest.fixture(scope="session")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Return a function that mounts a new file system of a kind; the same one when asked again."""
    mounted: dict[str, Path] = {}

    def run(*argv: str | Path) -> None:
        subprocess.run(argv, check=True, timeout=60)

    def mount(kind: str) -> Path:
        if kind not in mounted:
            folder = tmp_path_factory.mktemp(f"mount-{kind}")
            point = folder / "mnt"
            point.mkdir()
            if kind in IN_MEMORY:
                run("mount", "-t", kind, *IN_MEMORY[kind], kind, point)
            else:
                device = folder / "device"
                with device.open("wb") as stream:
                    stream.truncate(1024**3)
                run(*MKFS[kind], device)
                run("mount", "-o", "loop", device, point)
            mounted[kind] = point
        return mounted[kind]

    with contextlib.ExitStack() as unmount:
        yield mount
        for point in mounted.values():
            unmount.callback(run, "umount", point)


@pytest.fixture
def new_folder(tmp_path: Path) -> Callable[[Path], Path]:
    """Return a function that makes a folder on another file system, of this test's own."""
    number = 0

    def make(place: Path) -> Path:
        nonlocal number
        number += 1
        folder = place / f"{tmp_path.name}-{number}"
        folder.mkdir()
        return folder

    return make


@pytest.fixture
def shared_extents() -> Callable[[Path], int]:
    """Return a function that counts a file's extents that other files have too."""

    def count(path: Path) -> int:
        answer = subprocess.run(
            ["filefrag", "-v", path], check=True, capture_output=True, text=True, timeout=60
        )
        return sum("shared" in line for line in answer.stdout.splitlines()[3:])

    return count
