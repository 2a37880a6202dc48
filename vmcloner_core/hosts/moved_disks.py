"""Disks of clones that are moved, as open files.

They are read as raw disks and written into blank volumes of the other host's pool, so any two pools
whose volumes are files or block devices will do.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vmcloner_core import qemu_img
from vmcloner_core.errors import NotEnoughResources
from vmcloner_core.extents import is_zero, nonzero_pieces
from vmcloner_core.hosts.cargo import CargoDisk
from vmcloner_core.model import AS_IT_COMES, Volume
from vmcloner_core.os_errors import translated
from vmcloner_core.outcomes import checked
from vmcloner_core.process import LocalRunner
from vmcloner_core.trusted_files import make_folder
from vmcloner_core.units import format_size

if TYPE_CHECKING:
    from vmcloner_core.local_host import LocalHost


def content_digest(fd: int, size: int) -> tuple[str, int]:
    """Return the SHA-256 of a disk's bytes that aren't zeros, and how many these are, about.

    It is the same whatever a pool has rounded the disk's size up to, and whatever is there.
    """
    digest, data = hashlib.sha256(size.to_bytes(8, "big")), 0
    for offset, piece in nonzero_pieces(fd):
        if offset >= size:
            break
        own = piece[: size - offset]
        if is_zero(own):
            continue
        digest.update(offset.to_bytes(8, "big"))
        digest.update(own)
        data += len(own)
    return digest.hexdigest(), data


def about(volume: Volume) -> CargoDisk:
    """Return what is known of a disk that has not been read."""
    if volume.kind != "file":
        return CargoDisk(number=volume.disk, size=volume.size, data=volume.size)
    with translated(volume.path):
        data = sum(
            path.stat().st_blocks * 512
            for path in (volume.path, volume.backing)
            if path is not None
        )
    return CargoDisk(number=volume.disk, size=volume.size, data=min(data, volume.size))


@contextlib.contextmanager
def readable(host: LocalHost, volume: Volume) -> Iterator[int]:
    """Yield a disk's bytes as an open file: its own, or of a raw copy of an overlay."""
    with _active(host, volume), contextlib.ExitStack() as stack:
        path = volume.path
        if volume.format != "raw":
            path = host.moves.draft(volume.labels.clone, volume.disk)
            stack.callback(path.unlink, missing_ok=True)
            _flatten(volume, path)
        with translated(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | _as_it_is(volume))
        stack.callback(os.close, fd)
        yield fd


def _flatten(volume: Volume, path: Path) -> None:
    """Write an overlay with what is below it to a raw file."""
    need = about(volume).data
    with translated(path.parent):
        make_folder(path.parent)
        free = shutil.disk_usage(path.parent).free
    if need > free:
        raise NotEnoughResources(
            f"{volume.name} takes {format_size(need)} while it is sent; {format_size(free)} are "
            f"free in {path.parent}",
            hint="free space there",
        )
    with translated(path):
        path.unlink(missing_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    qemu_img.flatten(LocalRunner(), volume, path, AS_IT_COMES)


def _as_it_is(volume: Volume) -> int:
    """Return the flag that opens no other file by a link; devices have names that are links."""
    return os.O_NOFOLLOW if volume.kind == "file" else 0


@contextlib.contextmanager
def _active(host: LocalHost, volume: Volume) -> Iterator[None]:
    """Keep a volume usable while its domain is off."""
    driver, backend = (
        host.drivers.storage(volume.pool),
        host.drivers.backend("storage", volume.pool),
    )
    for outcome in checked(lambda: driver.activate([volume]), [volume.name], backend):
        outcome.unwrap()
    try:
        yield
    finally:
        for _ in checked(lambda: driver.deactivate([volume]), [volume.name], backend):
            pass


@contextlib.contextmanager
def writable(host: LocalHost, volume: Volume) -> Iterator[int]:
    """Yield a disk as an open file to write to."""
    with _active(host, volume), translated(volume.path):
        fd = os.open(volume.path, os.O_RDWR | os.O_CLOEXEC | _as_it_is(volume))
        try:
            yield fd
        finally:
            os.close(fd)
