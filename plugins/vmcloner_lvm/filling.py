"""Write an image to a thin volume."""

from __future__ import annotations

from pathlib import Path

from vmcloner_core.copying import Target
from vmcloner_core.full_copies import copy_one
from vmcloner_core.model import Copying, Progress
from vmcloner_core.os_errors import translated


def fill(
    source: int, path: Path, size: int, copying: Copying, progress: Progress, *, blank: bool = True
) -> None:
    """Write an open raw image to a new volume.

    :param size: the image's bytes. :param blank: the volume reads as zeros, so that the image's
        zeros need not be written.
    :raises HostCommandError: reading, writing or verifying failed.
    """
    with translated(path):
        target = Target(path=path, size=size, blank=blank, progress=progress)
        copy_one(source, target, copying)
