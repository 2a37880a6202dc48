"""The contract of image builders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from vmcloner_core import user_folders
from vmcloner_core.model import Progress


def image_cache() -> Path:
    """Return the user's folder for what builders keep, a folder ``KEY`` for each image.

    A builder fills a folder ``.KEY-…`` and then renames it, and holds the lock ``image/KEY`` in
    the folder above meanwhile (:func:`vmcloner_core.locks.hold`). A draft without its lock held is
    removed.
    """
    return user_folders.cache() / "images"


class ImageBuilder(ABC):
    """Builds a template's image, and the files to boot it, on this host."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short text that changes whenever the result of :meth:`build` would."""

    @abstractmethod
    def build(self, folder: Path, progress: Progress) -> Path:
        """Fill an empty folder: the disk image; kernel and initrd by their names in the template.

        :returns: the disk image in that folder, raw (``*.raw``) or qcow2 (``*.qcow2``).
        :raises BackendError: a tool or a package is missing.
        """
