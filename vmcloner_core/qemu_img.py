"""Convert images by qemu-img(1)."""

from __future__ import annotations

import os
from pathlib import Path

from vmcloner_core import copying
from vmcloner_core.drivers import ImageFile
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
    source = str(image.path.absolute())
    with translated(target):
        os.truncate(target, image.size)
        argv = ["-n", "--target-is-zero", "-f", image.format, "-O", "raw", *limit]
        runner.run(["qemu-img", "convert", *argv, source, str(target)], timeout=timeout)
        if not options.verify:
            return
        fd = os.open(target, os.O_RDWR | os.O_CLOEXEC)
        try:
            copying.flush(fd)
        finally:
            os.close(fd)
    argv = ["-f", image.format, "-F", "raw", source, str(target)]
    runner.run(["qemu-img", "compare", *argv], timeout=timeout)
