"""Warm origins whose making was killed: found, and removed by the next making or by ``gc``.

Whoever makes an origin holds :data:`LOCK`, so one that isn't whole is left if nobody holds it. All
that was made of it has a folder in this host's state folder: other images of this kind in a pool
that hosts share are those of others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import attrs

from vmcloner_core.errors import VmclonerError
from vmcloner_core.model import Leftover, Origin, warm_image
from vmcloner_core.os_errors import allocated
from vmcloner_core.survey import Survey
from vmcloner_core.template_images import TemplateImages
from vmcloner_core.warm_origins import WarmOrigins

LOCK = "warm"
"""The lock of who makes or removes an origin."""
KILLED = "the run that made it was killed"


def parents(key: str) -> str:
    """Return the fleet of the clone that an origin is made from."""
    return f"warm{key}"


@attrs.frozen
class UnfinishedOrigins:
    """What is left of origins on one host. All calls need :data:`LOCK`."""

    origins: WarmOrigins
    images: TemplateImages

    def keys(self, found: Survey) -> tuple[str, ...]:
        """Return their keys; none while some clones on the host can't be seen."""
        used = {clone.labels.warm for clone in found.clones}  # of these, only a note is damaged
        return tuple(k for k in self.origins.drafts() if k not in used and not found.unseen)

    def parts(self, keys: Collection[str]) -> tuple[Leftover, ...]:
        """Return their folders and images; parents are clones."""
        images = [image for key in keys for image in self._images(key)]
        folders = [self.origins.folder / key for key in keys]
        found = [("image", f"{i.template} in pool {i.pool}", i.allocated) for i in images]
        found += [("warm", str(folder), allocated(folder)) for folder in folders]
        return tuple(Leftover(kind=k, name=n, size=s, why=KILLED) for k, n, s in found)

    def remove(self, key: str) -> None:
        """Remove one whose parent is gone: its image, then its folder. Idempotent."""
        for image in self._images(key):
            self.images.delete_origin(image.pool, image.template)
        self.origins.remove(key)

    def collect(self, keys: Collection[str]) -> Iterator[Leftover]:
        """Remove several; yields what was removed, with the error of what wasn't."""
        for key in keys:
            parts, failed = self.parts([key]), None
            try:
                self.remove(key)
            except VmclonerError as error:
                failed = error
            yield from (attrs.evolve(part, error=failed) for part in parts)

    def _images(self, key: str) -> tuple[Origin, ...]:
        return self.images.origins(warm_image(key))
