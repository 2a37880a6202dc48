"""The contract of image builders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from platformdirs import user_cache_path

from vmcloner_core.model import Progress


def image_cache() -> Path:
    """Return the user's folder for what builders keep, a folder ``KEY`` for each image.

    A builder fills a folder ``.KEY-…`` and then renames it, and holds the lock ``image/KEY`` in
    this folder meanwhile (:func:`vmcloner_core.locks.hold`); what is left without it is removed.
    """
    return user_cache_path("vmcloner") / "images"


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
