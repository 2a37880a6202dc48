"""Import an image into a thin pool: as a volume that is read-only and inactive."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import attrs

from vmcloner_core.drivers import ImageFile, ImageRecord
from vmcloner_core.errors import HostCommandError, NotEnoughResources, WrongState
from vmcloner_core.extents import data_runs
from vmcloner_core.locks import hold, hold_free
from vmcloner_core.model import Copying, Leftover, Progress
from vmcloner_core.process import CommandRunner
from vmcloner_core.raw_images import leftovers, opened, sweep
from vmcloner_core.units import format_size
from vmcloner_lvm import tags
from vmcloner_lvm.activation import Change, activate, deactivate
from vmcloner_lvm.devmapper import device_name
from vmcloner_lvm.filling import fill
from vmcloner_lvm.locking import LOCKS
from vmcloner_lvm.naming import checked, draft_name, origin_name
from vmcloner_lvm.pool import Pool
from vmcloner_lvm.records import foreign, image
from vmcloner_lvm.session import Session


@attrs.frozen
class Importer:
    """Imports images into one pool. ``folder``: where images are converted."""

    pool: Pool
    runner: CommandRunner
    folder: Path
    locks: Path = LOCKS

    def run(
        self, template: str, source: ImageFile, progress: Progress, copying: Copying
    ) -> tuple[ImageRecord, bool]:
        """Make an image the template's; returns its record and whether anything changed.

        Removes first what an interrupted import left. A lock keeps other imports of the template
        out.
        """
        checked(origin_name(template), f"template {template}", self.pool.lvm.group)
        found = image(self.pool.read(), self.pool.name, template)
        if found is not None and found[1].digest == source.digest:
            return found[1], False
        with (
            # Names are unique in the group: its pools import a template one after the other.
            hold(self.locks, [f"{self.pool.lvm.group}/{origin_name(template)}"]),
            opened(source, self.folder, self.runner, copying) as fd,
        ):
            return self._import(template, source, fd, progress, copying)

    def _import(
        self, template: str, source: ImageFile, fd: int, progress: Progress, copying: Copying
    ) -> tuple[ImageRecord, bool]:
        draft = draft_name(template)
        record = ImageRecord(template=template, digest=source.digest, size=source.size, allocated=0)
        with self.pool.locked() as session:
            found = image(session.group, self.pool.name, template)
            if found is not None and found[1].digest == source.digest:  # another process was faster
                return found[1], False
            if found is not None:
                session.check_removable(found[0].name)
            self.sweep(session, template)
            # A pool that doesn't zero its chunks has old bytes around what is written to one.
            blank = session.pool.zeroes
            data = sum(b - a for a, b in data_runs(fd)) if blank else source.size
            self._check_room(session, template, data)
            size = source.size + -source.size % session.group.extent
            named = [f"--addtag={tag}" for tag in tags.encode(record.to_mapping())]
            where = ["-T", str(self.pool), "-V", f"{size}b", "-n", draft]
            session.lvm.run("lvcreate", "-y", "-ay", "-Wn", *where, *named, held=True)
        with self.undone(template):
            self.switch(draft, activate)
            path = Path(f"/dev/{self.pool.lvm.group}/{draft}")
            fill(fd, path, source.size, copying, progress, blank=blank)
            written = self.pool.mapper.mapped(device_name(self.pool.lvm.group, draft))
            self.switch(draft, deactivate)
            done = attrs.evolve(record, allocated=written)
            self.publish(record, done)
        return done, True

    @contextlib.contextmanager
    def undone(self, template: str) -> Iterator[None]:
        """Remove a template's draft if the block fails."""
        try:
            yield
        except BaseException:
            with self.pool.locked() as session:
                self.sweep(session, template)
            raise

    def switch(self, name: str, change: Change) -> None:
        """Activate or deactivate a volume."""
        error = change(self.pool.lvm, self.pool.mapper, [name])[name]
        if error is not None:
            raise error

    def publish(self, draft: ImageRecord, done: ImageRecord) -> None:
        """Give the draft its final name; removes the image that it replaces."""
        name, final = draft_name(done.template), origin_name(done.template)
        group = self.pool.lvm.group
        old, new = tags.encode(draft.to_mapping())[1], tags.encode(done.to_mapping())[1]
        with self.pool.locked() as session:
            # For an image without data they are equal, and adding and deleting one tag deletes it.
            change = [] if old == new else [f"--deltag={old}", f"--addtag={new}"]
            session.lvm.run("lvchange", "-y", *change, "-pr", "-ky", f"{group}/{name}", held=True)
            if image(session.group, self.pool.name, done.template) is not None:
                remove_image(session, done.template)
            session.lvm.run("lvrename", group, name, final, held=True)

    def sweep(self, session: Session, template: str) -> None:
        """Remove what an interrupted import left.

        :raises Conflict: the volume of that name is not a draft of this pool.
        """
        draft = draft_name(template)
        if draft not in session.group.logical:
            return
        volume = session.group.thin.get(draft)
        values = tags.decode(volume.tags) if volume is not None else None
        record = ImageRecord.from_mapping(values or {})
        ours = record is not None and record.template == template
        if volume is None or volume.pool != self.pool.name or not ours:
            raise foreign(session.group, self.pool.name, draft)
        _drop(session, draft)

    def sweep_all(self) -> None:
        """Remove what imports and captures left that were killed, of all templates.

        :raises VmclonerError: something can't be removed.
        """
        sweep(self.folder)
        with abandoned(self._drafts, self.locks) as left:
            for template in left:
                with self.pool.locked() as session:
                    self.sweep(session, template)

    def leftovers(self) -> tuple[Leftover, ...]:
        """Return what :meth:`sweep_all` would remove."""
        with abandoned(self._drafts, self.locks) as left:
            return leftovers(self.folder) + tuple(left.values())

    def _drafts(self) -> Iterator[tuple[str, str, Leftover]]:
        group = self.pool.read()
        for volume in group.thin.values():
            record = ImageRecord.from_mapping(tags.decode(volume.tags) or {})
            ours = record is not None and volume.name == draft_name(record.template)
            if record is not None and ours and volume.pool == self.pool.name:
                lock = f"{group.name}/{origin_name(record.template)}"
                yield record.template, lock, unfinished(f"{group.name}/{volume.name}", 0)

    def _check_room(self, session: Session, template: str, need: int) -> None:
        status, chunk = session.status(), session.pool.chunk_size
        free = (status.data_total - status.data_used) * chunk
        if need > free:
            raise NotEnoughResources(
                f"template {template} needs {format_size(need)} in {self.pool}, "
                f"{format_size(free)} are free",
                hint=f"lvextend -L +SIZE {self.pool}, or import it into another pool",
            )
        session.check_room([0])


@contextlib.contextmanager
def abandoned(
    drafts: Callable[[], Iterable[tuple[str, str, Leftover]]], locks: Path
) -> Iterator[Mapping[str, Leftover]]:
    """Yield the drafts of images that nobody makes any more, by template, with their locks held.

    :param drafts: yields templates with the names of their locks. :param locks: where these are.
    """
    if not any(True for _ in drafts()):
        yield {}
        return
    with hold_free(locks, [lock for _, lock, _ in drafts()]) as free:
        # Seen under the lock: who held it may have finished the image meanwhile.
        yield {template: left for template, lock, left in drafts() if lock in free}


def unfinished(name: str, size: int) -> Leftover:
    """Return the draft of an image as what a killed run left. ``size``: bytes of its own."""
    return Leftover(kind="image", name=name, size=size, why="its import or capture was killed")


def remove_image(session: Session, template: str) -> None:
    """Remove a template's image; its clones don't need it.

    :raises WrongState: it is in use. :raises Conflict: other volumes would be removed with it.
    """
    _drop(session, origin_name(template))


def _drop(session: Session, name: str) -> None:
    session.check_removable(name)
    error = deactivate(session.lvm, session.mapper, [name], held=True)[name]
    if isinstance(error, WrongState):
        raise WrongState(error.message, hint="stop its user")
    if error is not None:
        raise HostCommandError(str(error))
    session.lvm.run("lvremove", "-y", f"{session.lvm.group}/{name}", held=True)
    session.reread()
