"""The storage driver ``rbd``: a pool is a pool in Ceph, or a namespace in one.

A template's image has a protected snapshot, and clones are its children: they share its objects.
Images are made under a draft's name, labelled, and then renamed; before they are removed, they lose
their names (see ``naming``). What is under way is in the pool's journal, which all hosts read.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import attrs

from vmcloner_core import raw_images
from vmcloner_core.cancelling import carried
from vmcloner_core.drivers import DriverContext, ImageFile, ImageRecord, Lane, StorageDriver
from vmcloner_core.errors import (
    Conflict,
    InvalidRequest,
    NotEnoughResources,
    NotFound,
    VmclonerError,
    WrongState,
)
from vmcloner_core.model import (
    AS_IT_COMES,
    Capacity,
    Check,
    CloneMode,
    CloneRequest,
    Copying,
    Labels,
    Leftover,
    NetworkSource,
    Origin,
    Outcome,
    Progress,
    Volume,
    VolumeProgress,
    untold,
)
from vmcloner_core.stored_ids import KnownPool
from vmcloner_core.units import format_size
from vmcloner_rbd import doctor, importing
from vmcloner_rbd.cluster import Cluster
from vmcloner_rbd.images import Header, Images
from vmcloner_rbd.journal import Entry, Journal
from vmcloner_rbd.naming import Naming
from vmcloner_rbd.records import ORIGIN, DiskRecord, image_in, image_text, origin_name
from vmcloner_rbd.settings import RbdSettings

T = TypeVar("T")
R = TypeVar("R")
THREADS = 8
"""Images that are made or removed at once: more gained nothing where it was measured."""
SECTOR = 512


class RbdDriver(StorageDriver):
    """Keeps a pool in Ceph."""

    clone_lane = Lane(batch=64)
    reset_lane = Lane(batch=64)
    delete_lane = Lane(batch=64)
    modes = frozenset({CloneMode.LINKED})

    def __init__(self, context: DriverContext, settings: RbdSettings) -> None:
        super().__init__(context)
        self._settings = settings
        self._folder = context.host.state / "import"
        self._pool = KnownPool.of(context.host, context.name)
        self._cluster = Cluster(settings, self._pool)
        self._images = Images(self._cluster)
        self._journal = Journal(self._cluster)
        self._naming = Naming(self._cluster, self._images, self._journal, settings.place)

    def probe(self) -> Iterator[Check]:
        """See :meth:`StorageDriver.probe`."""
        return doctor.examine_pool(self.name, self._cluster, self.context.runner)

    # --- origins --------------------------------------------------------------------------------

    def import_image(
        self,
        template: str,
        image: ImageFile,
        progress: Progress,
        copying: Copying = AS_IT_COMES,
    ) -> Outcome[Origin]:
        """See :meth:`StorageDriver.import_image`. An image with clones is not replaced."""
        with self._cluster.translated(f"template {template}"):
            found = self._origin(template)
            if found is not None and found.digest == image.digest:
                return Outcome(key=template, value=found.origin(self.name), changed=False)
            with raw_images.opened(image, self._folder, self.context.runner, copying) as fd:
                record, changed = self._import(template, image, fd, progress, copying)
        return Outcome(key=template, value=record.origin(self.name), changed=changed)

    def _import(
        self, template: str, image: ImageFile, fd: int, progress: Progress, copying: Copying
    ) -> tuple[ImageRecord, bool]:
        data = importing.data_in(fd, image.size)
        self._check_room(template, data)
        record = ImageRecord(
            template=template, digest=image.digest, size=image.size, allocated=data
        )
        entry = self._journal.draft(origin_name(template))
        with self._naming.drafted(entry):
            self._images.create(entry.draft, self.whole(image.size))
            with self._images.open(entry.draft, writable=True) as draft:
                draft.label(image_text(record))
                importing.fill(fd, draft, image.size, copying, progress)
                draft.protect()
            found, known = self._known_origin(template)
            if found is not None and found.digest != image.digest:
                self._remove_origin(template, known)
                found = None
            if found is None and self._naming.named(entry):
                return record, True
            self._naming.discard(entry)  # another process was faster
        found = self._origin(template)
        if found is None or found.digest != image.digest:
            raise Conflict(
                f"template {template}: another process has made another image in {self._cluster}",
                hint="run the same command again",
            )
        return found, False

    def _check_room(self, template: str, need: int) -> None:
        _total, free = self._cluster.space()
        if need > free:
            raise NotEnoughResources(
                f"template {template} needs {format_size(need)} in {self._cluster}, "
                f"{format_size(free)} are free",
                hint="delete clones, add OSDs, or import it into another pool",
            )

    def origins(self) -> tuple[Origin, ...]:
        """See :meth:`StorageDriver.origins`."""
        with self._cluster.translated():
            headers = self._headers(lambda name: name.startswith(ORIGIN))
        records = [_image_record(name, header) for name, header in headers.items()]
        found = [record.origin(self.name) for record in records if record is not None]
        return tuple(sorted(found, key=lambda origin: origin.template))

    def _origin(self, template: str) -> ImageRecord | None:
        """Return the record of a template's image, None if there is none.

        :raises Conflict: the image of that name is not ours.
        """
        return self._known_origin(template)[0]

    def _known_origin(self, template: str) -> tuple[ImageRecord | None, str]:
        """Return :meth:`_origin` and the image's id."""
        name = origin_name(template)
        header = self._found([name]).get(name)
        if header is None:
            return None, ""
        record = _image_record(name, header)
        if record is None:
            raise self._foreign(name)
        return record, header.id

    def delete_origin(self, template: str) -> Outcome[None]:
        """See :meth:`StorageDriver.delete_origin`."""
        with self._cluster.translated(f"template {template}"):
            found, known = self._known_origin(template)
            changed = found is not None and self._remove_origin(template, known)
        return Outcome(key=template, changed=changed)

    def _remove_origin(self, template: str, known: str) -> bool:
        """Remove the image of a template that has this id; tell whether it was there.

        Another process may remove it and make a new one of the same name, which stays as it is.
        """
        entry = self._journal.removal(origin_name(template), known)
        with self._journal.written([entry]) as left:
            try:
                with self._images.open_known(known, entry.name) as image:
                    image.unprotect()
                    image.remove_snapshot()
            except FileNotFoundError:
                return False
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                raise WrongState(
                    f"clones are linked to the image of template {template} in {self._cluster}",
                    hint="delete them first: vmcloner list",
                ) from error
            return self._naming.remove(entry, left)

    # --- volumes --------------------------------------------------------------------------------

    def clone(
        self,
        requests: Sequence[CloneRequest],
        progress: VolumeProgress = untold,  # noqa: ARG002 - no bytes are copied
    ) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.clone`."""
        new: dict[str, CloneRequest] = {}
        with self._cluster.translated():
            found = self._found([request.volume_name for request in requests])
            image = functools.cache(self._origin)
        for request in requests:
            name = request.volume_name
            try:
                if name in found:
                    volume = self._known(name, found[name], request)
                    yield Outcome(key=name, value=volume, changed=False)
                else:
                    with self._cluster.translated(name):
                        self._size(request, image)
                    new[name] = request
            except VmclonerError as error:
                yield Outcome(key=name, error=error)
        yield from self._each_made(new, lambda entry, request: self._make(entry, request, image))

    def _each_made(
        self,
        requests: Mapping[str, CloneRequest],
        make: Callable[[Entry, CloneRequest], Outcome[Volume]],
    ) -> Iterator[Outcome[Volume]]:
        """Make volumes in parallel, each as a draft that is in the journal."""
        entries = {name: self._journal.draft(name) for name in requests}
        with self._cluster.translated(), self._journal.written(list(entries.values())) as left:

            def one(name: str) -> Outcome[Volume]:
                try:
                    with self._cluster.translated(name), self._naming.undone(entries[name], left):
                        return make(entries[name], requests[name])
                except VmclonerError as error:
                    return Outcome(key=name, error=error)

            yield from _parallel(one, list(requests))

    def _make(
        self, entry: Entry, request: CloneRequest, image: Callable[[str], ImageRecord | None]
    ) -> Outcome[Volume]:
        """Make a volume that wasn't there."""
        size = self._fill(entry, request, image)
        if self._naming.named(entry):
            return Outcome(key=entry.name, value=self._volume(entry.name, request.labels, size))
        self._naming.discard(entry)  # another process was faster
        found = self._found([entry.name])
        if entry.name not in found:
            raise WrongState(f"{entry.name} was removed by another process while it was made")
        volume = self._known(entry.name, found[entry.name], request)
        return Outcome(key=entry.name, value=volume, changed=False)

    def _fill(
        self, entry: Entry, request: CloneRequest, image: Callable[[str], ImageRecord | None]
    ) -> int:
        """Make a draft with all that its volume has; returns its size."""
        size, record = self._size(request, image)
        if record is None:
            self._images.create(entry.draft, size)
        else:
            try:
                self._images.clone(origin_name(record.template), entry.draft)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINVAL):
                    raise
                raise WrongState(
                    f"{entry.name}: the image of template {record.template} in {self._cluster} "
                    "was removed, or its removal was interrupted",
                    hint="run the same command again",
                ) from error
        with self._images.open(entry.draft, writable=True) as draft:
            draft.label(DiskRecord(labels=request.labels, disk=request.disk).to_text())
            if record is not None and size != self.whole(record.size):
                draft.resize(size)
            if request.head:
                draft.write(0, request.head)
                draft.flush()
        return size

    def _size(
        self, request: CloneRequest, image: Callable[[str], ImageRecord | None]
    ) -> tuple[int, ImageRecord | None]:
        """Return the bytes of a request's volume, and its template's image.

        :raises VmclonerError: the image isn't there, or the request is not possible.
        """
        origin = request.origin
        if origin is None:
            return self.whole(request.size or 0), None
        if request.mode is not CloneMode.LINKED:
            raise InvalidRequest(
                f"{request.labels.clone}: pool {self.name} has no full clones",
                hint="leave out --full, or use a pool of dd or files",
            )
        record = origin.check_held(image(origin.template))
        return self.whole(request.size_over(record.size)), record

    def reset(
        self,
        requests: Sequence[CloneRequest],
        progress: VolumeProgress = untold,  # noqa: ARG002 - no bytes are copied
    ) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.reset`. The new image is complete before the old one goes."""
        with self._cluster.translated():
            found = self._found([request.volume_name for request in requests])
            image = functools.cache(self._origin)
        fit: dict[str, CloneRequest] = {}
        for request in requests:
            name = request.volume_name
            try:
                if name in found:
                    labels = self._known(name, found[name], request).labels
                    request = attrs.evolve(request, labels=labels)  # noqa: PLW2901
                fit[name] = request
            except VmclonerError as error:
                yield Outcome(key=name, error=error)

        def replace(entry: Entry, request: CloneRequest) -> Outcome[Volume]:
            size = self._fill(entry, request, image)
            volume = self._volume(entry.name, request.labels, size)
            for outcome in self.delete([volume]):
                if outcome.error is not None:
                    raise outcome.error
            self._naming.publish(entry)
            return Outcome(key=entry.name, value=volume)

        yield from self._each_made(fit, replace)

    def delete(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """See :meth:`StorageDriver.delete`."""
        with self._cluster.translated():
            found = self._found([volume.name for volume in volumes])
        entries: dict[str, Entry] = {}
        for volume in volumes:
            name = volume.name
            try:
                if name in found:
                    self._checked(name, found[name], volume.labels)
                    entries[name] = self._journal.removal(name, found[name].id)
                else:
                    yield Outcome(key=name, changed=False)
            except VmclonerError as error:
                yield Outcome(key=name, error=error)
        with self._cluster.translated(), self._journal.written(list(entries.values())) as left:

            def one(name: str) -> Outcome[None]:
                try:
                    with self._cluster.translated(name):
                        self._naming.check_alone(name, found[name])
                        return Outcome(key=name, changed=self._naming.remove(entries[name], left))
                except VmclonerError as error:
                    return Outcome(key=name, error=error)

            yield from _parallel(one, list(entries))

    def whole(self, size: int) -> int:
        """See :meth:`StorageDriver.whole`: whole sectors."""
        return size + -size % SECTOR

    def grow(self, volumes: Sequence[Volume], size: int) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.grow`. QEMU sees the new size when libvirt tells it."""
        with self._cluster.translated():
            found = self._found([volume.name for volume in volumes])

        def one(volume: Volume) -> Outcome[Volume]:
            try:
                with self._cluster.translated(volume.name):
                    return self._grown(volume, found.get(volume.name), self.whole(size))
            except VmclonerError as error:
                return Outcome(key=volume.name, error=error)

        yield from _parallel(one, volumes)

    def _grown(self, volume: Volume, header: Header | None, size: int) -> Outcome[Volume]:
        name = volume.name
        if header is None:
            raise NotFound(f"{self._cluster}: {name} is gone", hint="run its create again")
        labels = self._checked(name, header, volume.labels).labels
        changed = header.size < size
        if changed:
            with self._images.open_known(header.id, name) as image:
                image.resize(size)
        value = self._volume(name, labels, max(size, header.size))
        return Outcome(key=name, value=value, changed=changed)

    def hand_over(self, volumes: Sequence[Volume], state: str) -> Iterator[Outcome[None]]:
        """See :meth:`StorageDriver.hand_over`."""
        with self._cluster.translated():
            found = self._found([volume.name for volume in volumes])

        def one(volume: Volume) -> Outcome[None]:
            try:
                with self._cluster.translated(volume.name):
                    changed = self._handed_over(volume, found.get(volume.name), state)
                    return Outcome(key=volume.name, changed=changed)
            except VmclonerError as error:
                return Outcome(key=volume.name, error=error)

        yield from _parallel(one, volumes)

    @property
    def hands_over(self) -> bool:
        """See :attr:`StorageDriver.hands_over`. All that reach the cluster have the pool."""
        return True

    def _handed_over(self, volume: Volume, header: Header | None, state: str) -> bool:
        name = volume.name
        if header is None:
            raise NotFound(f"{self._cluster}: {name} is gone", hint="run its create again")
        heir = attrs.evolve(volume.labels, state=state)
        record = _disk_record(name, header)
        done = record is not None and record.labels.state == state
        record = self._checked(name, header, heir if done else volume.labels)
        if not done:
            labels = attrs.evolve(record.labels, state=state)
            with self._images.open_known(header.id, name) as image:
                image.label(attrs.evolve(record, labels=labels).to_text())
        return not done

    def volumes(self) -> tuple[Volume, ...]:
        """See :meth:`StorageDriver.volumes`."""
        with self._cluster.translated():
            headers = self._headers(_may_be_volume)
        records = {name: _disk_record(name, header) for name, header in headers.items()}
        owner = self._pool.owner()
        return tuple(
            self._volume(name, record.labels, headers[name].size)
            for name, record in records.items()
            if record is not None and not _of_others(record, owner)
        )

    def unlabelled(self, names: Sequence[str]) -> Sequence[str]:
        """See :meth:`StorageDriver.unlabelled`."""
        with self._cluster.translated():
            found = self._found(names)
            owner = self._pool.owner()
        records = {name: _disk_record(name, header) for name, header in found.items()}
        return [n for n in records if (r := records[n]) is None or _of_others(r, owner)]

    # --- leftovers ------------------------------------------------------------------------------

    def sweep(self) -> None:
        """See :meth:`StorageDriver.sweep`: what the journal names of processes that have ended."""
        raw_images.sweep(self._folder)
        with self._cluster.translated():
            dead = self._journal.dead()
            done = [entry for entry in dead if self._naming.swept(entry)]
            self._journal.forget(done)

    def leftovers(self) -> tuple[Leftover, ...]:
        """See :meth:`StorageDriver.leftovers`."""
        with self._cluster.translated():
            dead = self._journal.dead()
        drafts = (
            Leftover(
                kind="draft",
                name=f"{self._settings.place}/{entry.draft or entry.name}",
                size=0,
                why=f"{'making' if entry.draft else 'removing'} {entry.name} was interrupted",
            )
            for entry in dead
        )
        return (*raw_images.leftovers(self._folder), *drafts)

    # --- helpers --------------------------------------------------------------------------------

    def _headers(self, wanted: Callable[[str], bool]) -> dict[str, Header]:
        names = {n: known for n, known in self._images.names().items() if wanted(n)}
        return self._images.headers(names)

    def _found(self, names: Sequence[str]) -> dict[str, Header]:
        """Return those of the names that images have."""
        return self._headers(set(names).__contains__)

    def _known(self, name: str, header: Header, request: CloneRequest) -> Volume:
        """Return the volume of a request that is there.

        :raises Conflict: it is not ours, or another clone's.
        """
        record = self._checked(name, header, request.labels)
        return self._volume(name, record.labels, header.size)

    def _checked(self, name: str, header: Header, labels: Labels) -> DiskRecord:
        """Return the record of an image, if it is this clone's.

        :raises Conflict: it is not ours, or another clone's.
        """
        record = _disk_record(name, header)
        if record is None:
            raise self._foreign(name)
        if _of_others(record, labels.state):
            raise Conflict(
                f"{self._cluster}: {name} belongs to another host that shares the pool "
                f"(state folder {record.labels.state})",
                hint="choose another name, or delete that clone there",
            )
        if not record.labels.same_clone(labels):
            raise Conflict(
                f"{self._cluster}: {name} belongs to clone {record.labels.clone} of template "
                f"{record.labels.template}, not {labels.template}",
                hint="delete that clone first, or choose another name",
            )
        return record

    def _foreign(self, name: str) -> Conflict:
        return Conflict(
            f"{self._cluster}: {name} exists and is not vmcloner's",
            hint=f"it is not touched: rename it (rbd rename {self._settings.place}/{name} NEW), "
            "or choose another name",
        )

    def _volume(self, name: str, labels: Labels, size: int) -> Volume:
        """Return a volume. Its path is the one that the kernel's client of RBD would give it."""
        settings = self._settings
        return Volume(
            name=name,
            pool=self.name,
            labels=labels,
            path=Path("/dev/rbd") / settings.place / name,
            size=size,
            format="raw",
            kind="network",
            network=NetworkSource(
                protocol="rbd",
                name=f"{settings.place}/{name}",
                hosts=settings.monitors,
                config=settings.conf_file,
                user=settings.user,
                key=settings.key_file,
                secret=settings.secret or "",
            ),
        )

    # --- space ----------------------------------------------------------------------------------

    def capacity(self) -> Capacity:
        """See :meth:`StorageDriver.capacity`."""
        total, free = self._cluster.space()
        percent = 100 * (total - free) // max(1, total)
        warnings = (f"pool {percent} % full",) if percent >= doctor.WARNING else ()
        return Capacity(total=total, free=free, warnings=warnings)

    def need(self, request: CloneRequest, count: int) -> int:
        """See :meth:`StorageDriver.need`. A new clone takes a few keys."""
        return 0 if request.origin is not None else count * len(request.head)

    def close(self) -> None:
        """See :meth:`StorageDriver.close`."""
        self._cluster.close()


def _may_be_volume(name: str) -> bool:
    return "-disk" in name and "." not in name


def _disk_record(name: str, header: Header) -> DiskRecord | None:
    record = DiskRecord.from_bytes(header.record)
    return record if record is not None and record.is_of(name) else None


def _of_others(record: DiskRecord, state: str | None) -> bool:
    """Tell whether a disk is another host's: by the id of the state folder, if it has one."""
    return record.labels.state not in (None, state)


def _image_record(name: str, header: Header) -> ImageRecord | None:
    record = image_in(header.record)
    return record if record is not None and name == origin_name(record.template) else None


def _parallel(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Run work for all items in threads, and yield its results as they come."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="rbd") as pool:
        futures = [pool.submit(carried(work), item) for item in items]
        try:
            yield from (future.result() for future in as_completed(futures))
        finally:
            for future in futures:
                future.cancel()
