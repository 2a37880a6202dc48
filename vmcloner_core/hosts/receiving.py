"""What the host does where a template arrives.

What has arrived is kept under a draft's name whose length says how far it is: a transfer that was
cut off goes on from there, also if another controller goes on with it. A file is used when its
digest is right.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vmcloner_core import catalog
from vmcloner_core.errors import BackendError, NotEnoughResources
from vmcloner_core.extents import length
from vmcloner_core.hosts.chunks import Chunk, written
from vmcloner_core.hosts.parcels import FILES, IMAGE, Item, Parcel, holding, pool_of, unheard
from vmcloner_core.images import from_file, hash_parts
from vmcloner_core.model import ImageSource, Origin, Outcome, Progress
from vmcloner_core.os_errors import translated
from vmcloner_core.trusted_files import make_folder
from vmcloner_core.units import format_size

if TYPE_CHECKING:
    from vmcloner_core.engine import Engine


@attrs.frozen
class Received:
    """A parcel that arrives on a host."""

    engine: Engine
    parcel: Parcel
    storage: str

    @property
    def _folder(self) -> Path:
        return self.engine.host.received

    def _draft(self, item: Item) -> Path:
        return self._folder / f".{self.parcel.template}-{item.name}-{item.digest[:16]}.part"

    def _item(self, name: str) -> Item:
        return next(item for item in self.parcel.items if item.name == name)

    def begin(self) -> tuple[int, ...]:
        """Return how much of each file is here.

        :raises NotEnoughResources: no room for the rest, or for the image in the pool.
        """
        with translated(self._folder):
            make_folder(self._folder)
            drafts = [self._draft(item) for item in self.parcel.items]
            there = [path.stat() if path.exists() else None for path in drafts]
            taken = sum(status.st_blocks * 512 for status in there if status is not None)
            free = shutil.disk_usage(self._folder).free
        what = f"the files of template {self.parcel.template}"
        need = self.parcel.size
        if need - taken > free:
            raise NotEnoughResources(
                f"{what} take {format_size(need)} while they arrive; {format_size(free)} are free "
                f"in {self._folder}",
                hint="free space there",
            )
        pool = pool_of(self.engine, self.storage)
        room = pool.capacity().free
        image = self._item(IMAGE).data
        if image > room:
            raise NotEnoughResources(
                f"{what}: the image takes {format_size(image)}; {format_size(room)} are free in "
                f"pool {pool.name!r}",
                hint="delete clones or use another pool",
            )
        return tuple(status.st_size if status is not None else 0 for status in there)

    def receive(self, name: str, since: int, chunk: Chunk) -> int:
        """Write a part of a file; returns how much of the file is here then.

        :param since: how much the sender believes to be here; nothing is written if that is wrong.
        """
        item = self._item(name)
        path = self._draft(item)
        with translated(path), _opened(path) as fd:
            there = length(fd)
            if there != since:
                return there
            end = chunk.end(item.size)
            if not there <= end <= item.size:
                raise BackendError("what arrived is not the next part of the file")
            if chunk.octets:
                written(chunk.octets, fd, chunk.at, end)
            os.ftruncate(fd, end)  # last: the length says how far it is
            return end

    def end(self) -> bool:
        """Check the files, and make them a template with its image. Idempotent.

        :raises BackendError: a file isn't what was sent; it is removed.
        """
        host = self.engine._host
        name = self.parcel.template
        with host.hold([f"template/{name}"], lambda: False):
            has = holding(self.engine, name, self.storage)
            if has.template and has.image:
                self._forget()
                return False
            own = has.template and not has.sent
            for item in self.parcel.items:
                self._check(item)
            if not own:
                self._place()
            self._import()
            if not own:
                with translated(self._folder):
                    catalog.write(self._folder / f"{name}.toml", catalog.sent(self._placed_keys()))
            self._forget()
        return True

    def _check(self, item: Item) -> None:
        path = self._draft(item)
        with translated(path), _opened(path) as fd:
            if length(fd) == item.size and hash_parts(fd, unheard) == item.digest:
                os.fsync(fd)
                return
            path.unlink()
        raise BackendError(
            f"{item.name} of template {self.parcel.template} arrived damaged",
            hint="run the same command again: it is sent anew",
        )

    def _place(self) -> None:
        """Give the files beside the image their names."""
        folder = self._folder / self.parcel.template
        with translated(folder):
            make_folder(folder)
            for item in self.parcel.items:
                if item.name != IMAGE:
                    shutil.copyfile(self._draft(item), folder / item.name)
                    (folder / item.name).chmod(0o644)

    def _placed_keys(self) -> dict[str, Any]:
        """Return the template's keys with the files' places here."""
        keys = {k: dict(v) if isinstance(v, dict) else v for k, v in self.parcel.keys.items()}
        for item in self.parcel.items:
            if item.name != IMAGE:
                table, key = FILES[item.name]
                path = self._folder / self.parcel.template / item.name
                keys.setdefault(table, {})[key] = str(path)
        return keys

    def _import(self) -> None:
        host, name = self.engine._host, self.parcel.template
        source = ImageSource(path=self._draft(self._item(IMAGE)), format=self.parcel.format)
        image = from_file(source, unheard, self.parcel.digest)  # refuses what refers to others
        pool = pool_of(self.engine, self.storage)

        def work(progress: Progress) -> Outcome[Origin]:
            return host.images.imported(pool, name, image, progress)

        host.images.told("import", name, "", time.monotonic(), work)

    def _forget(self) -> None:
        for item in self.parcel.items:
            self._draft(item).unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a draft for one writer at a time."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)
