"""Import an image into a volume group: as a thick volume that is read-only and inactive."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from vmcloner_core.copying import Target
from vmcloner_core.drivers import ImageFile, ImageRecord
from vmcloner_core.errors import VmclonerError
from vmcloner_core.full_copies import copy_one
from vmcloner_core.locks import hold
from vmcloner_core.model import Copying, Leftover, Progress
from vmcloner_core.os_errors import translated
from vmcloner_core.process import CommandRunner
from vmcloner_core.raw_images import leftovers, opened, sweep
from vmcloner_lvm.importing import abandoned, unfinished
from vmcloner_lvm.locking import LOCKS
from vmcloner_lvm.naming import checked
from vmcloner_lvm.records import not_ours
from vmcloner_lvm.thick_group import ThickGroup, image_name


@attrs.frozen
class ThickImporter:
    """Imports images into one group. ``folder``: where images are converted."""

    group: ThickGroup
    runner: CommandRunner
    folder: Path
    locks: Path = LOCKS

    def run(
        self, template: str, image: ImageFile, progress: Progress, copying: Copying
    ) -> tuple[ImageRecord, bool]:
        """Make an image the template's; returns its record and whether anything changed."""
        with hold(self.locks, [f"{self.group.name}/{image_name(template)}"]):
            there = self.group.read()
            old = self.group.image(there, template)
            if old is not None and old[1].digest == image.digest:
                return old[1], False
            if old is not None:
                self.group.check_removable(there, old[0])
            record = ImageRecord(
                template=template, digest=image.digest, size=image.size, allocated=image.size
            )

            def fill(target: Target) -> None:
                images = opened(image, self.folder, self.runner, copying)
                with images as source, translated(target.path):
                    copy_one(source, target, copying)

            self.make(record, fill, progress)
        return record, True

    def make(self, record: ImageRecord, fill: Callable[[Target], None], progress: Progress) -> None:
        """Fill a volume with a name of its own, then rename it to the template's."""
        template, group = record.template, self.group
        draft = checked(_draft_name(template), f"template {template}")
        self._drop(draft)
        made = group.create(draft, record.size, record.to_mapping())
        try:
            for error in group.activate([draft]).values():
                if error is not None:
                    raise error
            fill(Target(path=group.path(draft), size=made.size, progress=progress))
            group.deactivate([draft])
            group.complete([draft], "-pr")
            there = group.read()
            old = group.image(there, template)
            if old is not None:
                group.remove_one(there, old[0])
            group.lvm.run("lvrename", group.name, draft, image_name(template))
        except BaseException:
            with contextlib.suppress(VmclonerError):
                self._drop(draft)
            raise

    def sweep_all(self) -> None:
        """Remove what imports and captures left that were killed, of all templates.

        :raises VmclonerError: something can't be removed.
        """
        sweep(self.folder)
        with abandoned(self._drafts, self.locks) as left:
            for template in left:
                self._drop(_draft_name(template))

    def leftovers(self) -> tuple[Leftover, ...]:
        """Return what :meth:`sweep_all` would remove."""
        with abandoned(self._drafts, self.locks) as left:
            return leftovers(self.folder) + tuple(left.values())

    def _drafts(self) -> Iterator[tuple[str, str, Leftover]]:
        for volume in self.group.read().values():
            record = ImageRecord.from_mapping(volume.values)
            if record is not None and volume.name == _draft_name(record.template):
                lock = f"{self.group.name}/{image_name(record.template)}"
                left = unfinished(f"{self.group.name}/{volume.name}", volume.size)
                yield record.template, lock, left

    def _drop(self, draft: str) -> None:
        """Remove what an interrupted import left.

        :raises Conflict: it is not ours, or other volumes would be removed with it.
        :raises WrongState: it is in use.
        """
        there = self.group.read()
        volume = there.get(draft)
        if volume is None:
            return
        if ImageRecord.from_mapping(volume.values) is None:
            raise not_ours(self.group.name, draft)
        self.group.remove_one(there, volume)


def _draft_name(template: str) -> str:
    return f"image-draft.{template}"
