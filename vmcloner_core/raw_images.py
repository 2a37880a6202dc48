"""Open images as raw files for their import; what is converted for that is swept if it is killed.

Storage drivers share the folder: each sweeps what any of them left there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmcloner_core.drivers import ImageFile
from vmcloner_core.errors import InvalidRequest
from vmcloner_core.locks import hold, hold_free
from vmcloner_core.model import AS_IT_COMES, Copying, Leftover
from vmcloner_core.os_errors import allocated, translated
from vmcloner_core.process import CommandRunner
from vmcloner_core.qemu_img import convert
from vmcloner_core.trusted_files import make_folder

_PREFIX = "import-"


@contextlib.contextmanager
def opened(
    image: ImageFile, folder: Path, runner: CommandRunner, copying: Copying = AS_IT_COMES
) -> Iterator[int]:
    """Yield the image's bytes as an open raw file; a qcow2 image is converted in ``folder``.

    :raises InvalidRequest: the image became shorter.
    """
    with contextlib.ExitStack() as stack:
        path = image.path.absolute()
        if image.format != "raw":
            path = stack.enter_context(_work_folder(folder)) / "image.raw"
            with translated(path):
                path.touch()
            convert(runner, image, path, Copying(verify=copying.verify))  # not paced: not the pool
        with translated(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, fd)
        if os.lseek(fd, 0, os.SEEK_END) < image.size:  # a device's size too
            raise InvalidRequest(f"{image.path} changed while it was imported")
        yield fd


@contextlib.contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder in ``folder``; :func:`sweep` leaves it, since its name is locked."""
    name = f"{_PREFIX}{uuid.uuid4().hex}"
    with hold(folder.parent, [name]):
        work = folder / name
        with translated(work):
            make_folder(folder)
            work.mkdir(mode=0o700)
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what imports that were killed left in ``folder``.

    :raises VmclonerError: something can't be removed.
    """
    with _left(folder) as left:
        for path in left:
            with translated(path), contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path)


def leftovers(folder: Path) -> tuple[Leftover, ...]:
    """Return what :func:`sweep` would remove."""
    with _left(folder) as left:
        why = "its import was killed"
        return tuple(
            Leftover(kind="image", name=str(path), size=allocated(path), why=why) for path in left
        )


@contextlib.contextmanager
def _left(folder: Path) -> Iterator[Sequence[Path]]:
    """Yield the folders that no import uses, with their locks held."""
    found = {path.name: path for path in folder.glob(f"{_PREFIX}*")}
    if not found:
        yield ()
        return
    with hold_free(folder.parent, found) as free:
        yield [found[name] for name in sorted(free)]
