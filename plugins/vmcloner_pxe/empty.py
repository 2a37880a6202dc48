"""Image builder ``empty``: a disk with nothing on it, for what is installed from the network.

It is small; how large the disk of a clone is, the ``disk_size`` of its template says.
"""

from __future__ import annotations

from pathlib import Path

from vmcloner_core.drivers import DriverContext, ImageBuilder
from vmcloner_core.hooks import ImageBackend, hookimpl
from vmcloner_core.model import Progress

SIZE = 1024**2
"""Bytes."""


class EmptyBuilder(ImageBuilder):
    """Makes the image. Thread-safe."""

    def __init__(self, context: DriverContext) -> None:
        self._context = context

    def fingerprint(self) -> str:
        """See :meth:`ImageBuilder.fingerprint`: there is one such image."""
        return f"empty {SIZE}"

    def build(self, folder: Path, progress: Progress) -> Path:
        """See :meth:`ImageBuilder.build`."""
        disk = folder / "disk.raw"
        with disk.open("wb") as stream:
            stream.truncate(SIZE)
        progress(SIZE, SIZE)
        return disk


@hookimpl
def vmcloner_image_builder() -> ImageBackend:
    """Describe the builder."""
    return ImageBackend(
        api=1,
        name="empty",
        description="A disk with nothing on it, for what is installed from the network",
        factory=EmptyBuilder,
    )
