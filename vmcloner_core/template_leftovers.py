"""Images and built files of templates that no template names any more: found, and removed.

An image stays in its pool when its template's file is removed, and what an image builder made stays
in the state folder. Nothing is removed that clones may use: linked clones read their template's
image, clones that boot a kernel of the host read what was built.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import attrs

from vmcloner_core.catalog import Catalog
from vmcloner_core.driver_registry import DriverRegistry
from vmcloner_core.errors import VmclonerError, WrongState
from vmcloner_core.model import Outcome, warm_key
from vmcloner_core.names import fold
from vmcloner_core.os_errors import translated
from vmcloner_core.survey import Survey
from vmcloner_core.template_images import TemplateImages


@attrs.frozen(kw_only=True)
class TemplateLeftover:
    """What is left of a template.

    :param pool: the pool with its image, None for what a builder made.
    :param folder: what a builder made, in the state folder. :param size: bytes that it takes.
    """

    template: str
    pool: str | None = None
    folder: Path | None = None
    size: int = 0


@attrs.frozen
class Leftovers:
    """What templates left on one host.

    :param built: the folder with the results of image builders, one folder per template.
    :param received: the folder with the templates that controllers sent.
    """

    built: Path
    received: Path
    catalog: Catalog
    images: TemplateImages
    drivers: DriverRegistry

    def find(self) -> tuple[TemplateLeftover, ...]:
        """Return what no template names; a template that can't be read names what has its name.

        Disks of warm origins are no templates', and those of other hosts that share the pool aren't
        to be told from what is left here: see :class:`UnfinishedOrigins`.
        """
        infos = {info.name: info.template for info in self.catalog.infos()}
        found = [
            TemplateLeftover(template=origin.template, pool=origin.pool, size=origin.allocated)
            for origin in self.images.origins()
            if origin.template not in infos and warm_key(origin.template) is None
        ]
        for folder in self._folders():
            template = infos.get(folder.name)
            image = template.image if template is not None else None
            unused = image is not None and not (image.builder or image.captured)
            if folder.name not in infos or unused:
                size = _allocated(folder)
                found.append(TemplateLeftover(template=folder.name, folder=folder, size=size))
        return tuple(sorted(found, key=lambda left: (left.template, left.pool or "")))

    def _folders(self) -> Iterator[Path]:
        try:
            entries = sorted(self.built.iterdir())
        except OSError:  # it isn't there, or is not this user's
            return
        yield from (e for e in entries if e.is_dir() and not e.name.startswith("."))

    def remove(self, left: TemplateLeftover, found: Survey) -> Outcome[TemplateLeftover]:
        """Remove a leftover; the lock of its template is held.

        :param found: what is on the host: what its clones may use is kept, with an error.
        """
        users = clones_of(left.template, found)
        try:
            if users:
                raise WrongState(
                    f"{left.template}: {fold(users)} was made from it",
                    hint="delete them first, or restore the template's file",
                )
            if left.pool is not None:
                changed = self.images.delete_origin(left.pool, left.template).changed
            else:
                changed = self.remove_built(left.template)
        except VmclonerError as error:
            return Outcome(key=left.template, value=left, error=error, changed=False)
        return Outcome(key=left.template, value=left, changed=changed)

    def remove_received(self, name: str) -> None:
        """Remove a template that a controller sent, text and files. Idempotent."""
        file, folder = self.received / f"{name}.toml", self.received / name
        with translated(file):
            file.unlink(missing_ok=True)
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)

    def remove_built(self, name: str) -> bool:
        """Remove what a builder made for a template; tell whether there was anything.

        It is gone at once: a killed removal leaves a draft, which the next run sweeps.
        """
        from vmcloner_core.images import DRAFT_PREFIX

        folder = self.built / name
        with translated(folder):
            if not folder.is_dir() or folder.is_symlink():
                return False
            draft = Path(tempfile.mkdtemp(prefix=DRAFT_PREFIX.format(name), dir=self.built))
            folder.rename(draft / name)
            shutil.rmtree(draft)
        return True


def clones_of(template: str, found: Survey) -> tuple[str, ...]:
    """Return the names of this state folder's clones that were made from a template.

    Another folder's template of that name is another one. An image that both have clones of in one
    pool is kept by the pool.

    :raises BackendError: there may be others, on what could not be read.
    """
    found.check_complete(f"template {template}")
    return tuple(c.name for c in found.clones if c.ours and c.template == template)


def _allocated(folder: Path) -> int:
    total = 0
    for place, _folders, files in os.walk(folder):
        for name in files:
            try:
                total += (Path(place) / name).lstat().st_blocks * 512
            except OSError:
                continue  # another process removed it
    return total


def named(left: Collection[TemplateLeftover]) -> dict[str, list[TemplateLeftover]]:
    """Return leftovers by their templates' names."""
    found: dict[str, list[TemplateLeftover]] = {}
    for each in left:
        found.setdefault(each.template, []).append(each)
    return found
