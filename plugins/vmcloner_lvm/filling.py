"""Write an image into a thin volume, and only what isn't zero of it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vmcloner_core import qcow2
from vmcloner_core.copying import Pace, Target, fan_out
from vmcloner_core.drivers import ImageFile
from vmcloner_core.errors import HostCommandError, InvalidRequest
from vmcloner_core.model import Copying, Progress
from vmcloner_core.process import CommandRunner


@contextlib.contextmanager
def opened(image: ImageFile, folder: Path, runner: CommandRunner) -> Iterator[int]:
    """Yield the image's bytes as an open raw file; one in qcow2 is converted in ``folder``.

    :raises InvalidRequest: it isn't of the size that it was.
    """
    with contextlib.ExitStack() as stack:
        path = image.path.absolute()
        if image.format != "raw":
            _make_folder(folder)
            work = Path(stack.enter_context(tempfile.TemporaryDirectory("", "import-", folder)))
            raw = work / "image.raw"
            qcow2.convert(path, image.size, raw, runner)
            path = raw
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise HostCommandError(f"{path}: {error.strerror}") from error
        stack.callback(os.close, fd)
        if os.fstat(fd).st_size < image.size:
            raise InvalidRequest(f"{image.path} changed while it was imported")
        yield fd


def fill(source: int, path: Path, size: int, copying: Copying, progress: Progress) -> None:
    """Write an open raw image into a new volume: what isn't zero of it.

    :param size: the image's bytes.
    :raises HostCommandError: reading or writing failed, or other bytes were read back.
    """
    target = Target(path=path, size=size, blank=True, progress=progress)
    try:
        with target.open():
            fan_out(source, [target], pace=Pace(copying.bandwidth), verify=copying.verify)
    except OSError as error:
        raise HostCommandError(f"{path}: {error.strerror}") from error
    if target.error is not None:
        raise HostCommandError(f"{path}: {target.error.strerror}") from target.error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostCommandError(f"{folder}: {error.strerror}") from error
