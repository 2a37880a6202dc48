"""Convert and measure images with qemu-img(1), contained.

The image's owner may change its header after it was checked: qcow2's can name other files, for
what is below it and for its data.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from vmcloner_core import contained, copying
from vmcloner_core.drivers import ImageFile
from vmcloner_core.errors import HostCommandError
from vmcloner_core.model import Copying, Volume
from vmcloner_core.os_errors import translated
from vmcloner_core.process import CommandResult, CommandRunner

SLOWEST = 8 * 1024**2
"""Bytes per second; a slower conversion is considered hung."""
_ROOM = 64 * 1024**2
"""Bytes that it may write beside a disk's own: what it prints too, which goes to a file."""
_TABLES = 1024
"""Bytes of a disk for which an overlay's tables take far less than one."""


def convert(runner: CommandRunner, image: ImageFile, target: Path, options: Copying) -> None:
    """Write an image that is not raw to an empty file, as a sparse raw image.

    :raises HostCommandError: the conversion failed, or the bytes that were read back differ.
    """
    slowest, limit = _pace(options)
    timeout = 300 + image.size / slowest
    source = _source(image)
    with translated(target):
        os.truncate(target, image.size)
        argv = ["-n", "--target-is-zero", "-O", "raw", *limit]
        _run(runner, image, timeout, "convert", *argv, source, _target(target), write=target)
        if not options.verify:
            return
        fd = os.open(target, os.O_RDWR | os.O_CLOEXEC)
        try:
            copying.flush(fd)
        finally:
            os.close(fd)
    _run(runner, image, timeout, "compare", "-F", "raw", source, _target(target), write=target)


def flatten(
    runner: CommandRunner, volume: Volume, target: Path, options: Copying, *, live: bool = False
) -> None:
    """Write a qcow2 volume, with the raw file that it is an overlay of, to an empty file.

    :param target: it becomes a sparse raw image. :param live: a guest that has flushed its disks
        has the volume open.
    :raises HostCommandError: that fails, or the bytes that were read back differ.
    """
    slowest, limit = _pace(options)
    node: dict[str, object] = {"driver": "qcow2", "file": _file(volume.path), "backing": None}
    if live:
        node["force-share"] = True  # QEMU holds its lock
    read = [volume.path]
    if volume.backing is not None:
        node["backing"] = {"driver": "raw", "file": _file(volume.backing)}
        read.append(volume.backing)
    source, size = f"json:{json.dumps(node)}", max(volume.size, _ROOM)
    timeout = 300 + volume.size / slowest
    with translated(target):
        os.truncate(target, volume.size)
    made = _target(target)
    argv = ["convert", "-n", "--target-is-zero", "-O", "raw", *limit, source, made]
    _contained(runner, argv, read=read, write=target, size=size, timeout=timeout)
    if options.verify:
        argv = ["compare", "-F", "raw", source, made]
        _contained(runner, argv, read=read, write=target, size=size, timeout=timeout)


def to_qcow2(runner: CommandRunner, image: ImageFile, target: Path, *, compressed: bool) -> None:
    """Write an image as a qcow2 file of its own.

    :raises HostCommandError: that fails.
    """
    words = ["convert", "-O", "qcow2", *(["-c"] if compressed else []), _source(image), str(target)]
    size = image.size + image.size // _TABLES + _ROOM
    timeout = 300 + image.size / SLOWEST
    _contained(runner, words, read=[image.path], write=target, size=size, timeout=timeout)


def measure(runner: CommandRunner, image: ImageFile) -> int:
    """Return an upper bound of the bytes that an image takes as a sparse raw file.

    ``qemu-img measure`` counts holes for a raw target. For qcow2 it counts what holds data, in
    clusters of 64 KiB, and adds the tables: what the format takes beyond the virtual size.

    :raises HostCommandError: qemu-img failed, or did not say.
    """
    argv = ("measure", "--output", "json", "-O", "qcow2", _source(image))
    answer = _run(runner, image, 300, *argv)
    try:
        said = json.loads(answer.stdout)
        tables = int(said["fully-allocated"]) - image.size
        return max(0, int(said["required"]) - max(0, tables))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HostCommandError(
            f"qemu-img measure: no size in its output for {image.path}"
        ) from error


def enlarge(runner: CommandRunner, overlay: Path, below: Path, size: int) -> None:
    """Make a qcow2 image that is an overlay larger.

    :param below: what it is an overlay of. :param size: bytes that its disk then has.
    :raises HostCommandError: that fails.
    """
    words = ("resize", "-q", "-f", "qcow2", str(overlay), str(size))
    with translated(overlay):
        most = overlay.stat().st_size + size // _TABLES + _ROOM
    _contained(runner, words, read=[below], write=overlay, size=most, timeout=60)


def _run(
    runner: CommandRunner, image: ImageFile, timeout: float, *words: str, write: Path | None = None
) -> CommandResult:
    size = max(image.size, _ROOM)
    return _contained(runner, words, read=[image.path], write=write, size=size, timeout=timeout)


def _contained(
    runner: CommandRunner,
    words: Sequence[str],
    *,
    read: Sequence[Path],
    write: Path | None,
    size: int,
    timeout: float,
) -> CommandResult:
    """Run qemu-img so that it can open nothing but these files.

    :param write: by a path that a process apart can open.
    """
    argv = contained.command(
        ["qemu-img", *words],
        read=[path.resolve() for path in read],
        write=[write] if write is not None else [],
        size=size,
        seconds=timeout,
    )
    try:
        return runner.run(argv, timeout=timeout)
    except HostCommandError as error:
        raise type(error)(error.message.replace(argv[0], "qemu-img", 1)) from error


def _source(image: ImageFile) -> str:
    """Return how QEMU opens an image: in the format that was checked, without a backing file."""
    options = {"driver": image.format, "file": _file(image.path)}
    return "json:" + json.dumps(options | ({"backing": None} if image.format != "raw" else {}))


def _file(path: Path) -> dict[str, str]:
    """Return how QEMU opens a file or a device."""
    with translated(path):
        device = stat.S_ISBLK(path.stat().st_mode)
    return {"driver": "host_device" if device else "file", "filename": str(path.absolute())}


def _target(path: Path) -> str:
    """Return how QEMU opens a raw file or a device that is being made.

    Without locks of its own: on NFS, they and the flock(2) that a draft has keep each other out.
    """
    return "json:" + json.dumps({"driver": "raw", "file": _file(path) | {"locking": "off"}})


def _pace(options: Copying) -> tuple[int, list[str]]:
    """Return the bytes per second below which a conversion hangs, and options that limit it."""
    if options.bandwidth is None:
        return SLOWEST, []
    return min(SLOWEST, options.bandwidth // 2 or 1), ["-r", str(options.bandwidth)]
