"""The contract of image builders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from vmcloner_core.model import Progress


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
