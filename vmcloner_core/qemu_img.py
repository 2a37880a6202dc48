"""Convert and measure images with qemu-img(1)."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from vmcloner_core import copying
from vmcloner_core.drivers import ImageFile
from vmcloner_core.errors import HostCommandError
from vmcloner_core.model import Copying
from vmcloner_core.os_errors import translated
from vmcloner_core.process import CommandRunner

SLOWEST = 8 * 1024**2
"""Bytes per second; a slower conversion is considered hung."""


def convert(runner: CommandRunner, image: ImageFile, target: Path, options: Copying) -> None:
    """Write an image that is not raw to an empty file, as a sparse raw image.

    :raises HostCommandError: the conversion failed, or the bytes that were read back differ.
    """
    slowest, limit = SLOWEST, []
    if options.bandwidth is not None:
        limit = ["-r", str(options.bandwidth)]
        slowest = min(SLOWEST, options.bandwidth // 2 or 1)
    timeout = 300 + image.size / slowest
    source = _source(image)
    with translated(target):
        os.truncate(target, image.size)
        argv = ["-n", "--target-is-zero", "-O", "raw", *limit]
        runner.run(["qemu-img", "convert", *argv, source, str(target)], timeout=timeout)
        if not options.verify:
            return
        fd = os.open(target, os.O_RDWR | os.O_CLOEXEC)
        try:
            copying.flush(fd)
        finally:
            os.close(fd)
    runner.run(["qemu-img", "compare", "-F", "raw", source, str(target)], timeout=timeout)


def measure(runner: CommandRunner, image: ImageFile) -> int:
    """Return an upper bound of the bytes that an image takes as a sparse raw file.

    ``qemu-img measure`` counts holes for a raw target. For qcow2 it counts what holds data, in
    clusters of 64 KiB, and adds the tables: what the format takes beyond the virtual size.

    :raises HostCommandError: qemu-img failed, or did not say.
    """
    argv = ["qemu-img", "measure", "--output", "json", "-O", "qcow2", _source(image)]
    answer = runner.run(argv, timeout=300)
    try:
        said = json.loads(answer.stdout)
        tables = int(said["fully-allocated"]) - image.size
        return max(0, int(said["required"]) - max(0, tables))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HostCommandError(
            f"qemu-img measure: no size in its output for {image.path}"
        ) from error


def _source(image: ImageFile) -> str:
    """Return how QEMU opens an image: in the format that was checked, without a backing file.

    The image's owner may change its header after the check.
    """
    with translated(image.path):
        device = stat.S_ISBLK(image.path.stat().st_mode)
    file = {"driver": "host_device" if device else "file", "filename": str(image.path.absolute())}
    options = {"driver": image.format, "file": file}
    return "json:" + json.dumps(options | ({"backing": None} if image.format != "raw" else {}))
