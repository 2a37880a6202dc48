"""The contract of image builders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from vmcloner_core.model import Progress


class ImageBuilder(ABC):
    """Makes a template's image, and what boots it, on the spot."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short text that changes whenever :meth:`build` would make something else."""

    @abstractmethod
    def build(self, folder: Path, progress: Progress) -> Path:
        """Fill an empty folder (the disk image; kernel and initrd as the template names them).

        :returns: the disk image in that folder, raw (``*.raw``) or qcow2 (``*.qcow2``).
        :raises BackendError: a tool or a package is missing.
        """
