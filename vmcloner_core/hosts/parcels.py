"""Templates and their images on their way from one host to another: the ends of it.

A parcel is a template's keys, and the files that these name: its image, its kernel and so on. The
files cross in chunks, of which only the parts that aren't zeros are sent, compressed. What arrives
is kept under a draft's name whose length says how far it is: a transfer that was cut off goes on
from there, also if another controller goes on with it. A file is used when its digest is right.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from vmcloner_core import catalog, pulling
from vmcloner_core.drivers import ImageFile, StorageDriver
from vmcloner_core.errors import (
    BackendError,
    InvalidRequest,
    NotEnoughResources,
    NotFound,
    VmclonerError,
    WrongState,
)
from vmcloner_core.extents import GRANULE, Run, data_runs, is_zero, length
from vmcloner_core.images import from_file, hash_parts
from vmcloner_core.model import ImageSource, Origin, Outcome, Progress, Template
from vmcloner_core.names import check_template
from vmcloner_core.os_errors import translated
from vmcloner_core.template_images import TemplateImages
from vmcloner_core.trusted_files import make_folder
from vmcloner_core.units import MAX_SIZE, format_size

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from vmcloner_core.engine import Engine
    from vmcloner_core.hosts.beside import Asked, Event

CHUNK = 64 * GRANULE
"""Bytes of a file that cross in one call, before they are compressed: 4 MiB."""
LEVEL = 1
"""Of zstd: images that compress at all do so at this level, at several hundred MiB/s."""
IMAGE = "image"
FILES = {
    "vmlinuz": ("kernel", "path"),
    "initrd": ("kernel", "initrd"),
    "user_data": ("identity", "user_data"),
    "network_config": ("identity", "network_config"),
    "domain_xml": ("domain", "xml"),
}
"""The other files of a parcel: which key of the template names each."""
MAX_FILE = 1024**3
"""Bytes of one of these."""
STEP = "send"
"""The name of the step in events."""


def _digest(_instance: object, _attribute: object, value: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", value):
        raise InvalidRequest("not a digest")


def _origin(_instance: object, _attribute: object, value: str) -> None:
    if not re.fullmatch(r"[a-z0-9-]{1,32}:[\x21-\x7e]{1,256}", value):
        raise InvalidRequest("not an image's digest")


@attrs.frozen(kw_only=True)
class Item:
    """A file of a parcel.

    :param size: bytes. :param data: bytes of it that aren't zeros, about.
    :param digest: of its bytes; see :func:`vmcloner_core.images.hash_parts`.
    """

    name: str
    size: int
    data: int
    digest: str = attrs.field(validator=_digest)

    def __attrs_post_init__(self) -> None:
        if self.name not in (IMAGE, *FILES):
            raise InvalidRequest(f"not a file of a template: {self.name!r}")
        if not 0 <= self.size <= (MAX_SIZE if self.name == IMAGE else MAX_FILE):
            raise InvalidRequest(f"{self.name}: {self.size} bytes")


@attrs.frozen(kw_only=True)
class Parcel:
    """A template, and what of it has to be sent.

    :param keys: its keys, with those that it extends, as in its file.
    :param digest, format: of its image, as pools know it.
    """

    template: str = attrs.field(validator=lambda _i, _a, v: check_template(v) and None)
    keys: dict[str, Any]
    digest: str = attrs.field(validator=_origin)
    format: Literal["raw", "qcow2"]
    items: tuple[Item, ...]

    @property
    def size(self) -> int:
        """The bytes that have to be sent, before they are compressed."""
        return sum(item.data for item in self.items)


@attrs.frozen(kw_only=True)
class Chunk:
    """A part of a file: the first at or after an offset that has data, or the file's end.

    :param octets: the data, packed (:func:`packed`); empty at the file's end.
    :param data: bytes of it that aren't zeros, about.
    """

    at: int
    data: int = 0
    octets: bytes = attrs.field(default=b"", repr=False)

    def end(self, size: int) -> int:
        """Return how much of a file of that size is there when this part is."""
        return min(self.at + CHUNK, size) if self.octets else size


@attrs.frozen(kw_only=True)
class Holding:
    """What a host has of a template.

    :param template: whether it has its text. :param image: whether it has its image, or makes it by
        itself. :param digest: of the image in its pool, empty if it isn't there.
    :param memory: bytes of a clone. :param why: what makes a template unfit to be given to others
        by a host, empty if nothing.
    """

    template: bool
    image: bool = False
    digest: str = ""
    memory: int = 0
    why: str = ""


def packed(fd: int, at: int, end: int) -> Chunk:
    """Return the bytes of a file from ``at`` to ``end``, at most CHUNK, without runs of zeros."""
    bitmap, pieces = 0, []
    for number, offset in enumerate(range(at, end, GRANULE)):
        piece = os.pread(fd, min(GRANULE, end - offset), offset)
        if not is_zero(piece):
            bitmap |= 1 << number
            pieces.append(piece)
    octets = zstd.compress(bitmap.to_bytes(8, "little") + b"".join(pieces), LEVEL)
    return Chunk(at=at, octets=octets, data=len(pieces) * GRANULE)


def next_chunk(fd: int, runs: Sequence[Run], size: int, offset: int) -> Chunk:
    """Return the first part of a file at or after ``offset`` that has data.

    :param runs: where the file has data. :param size: its bytes.
    """
    start = next((max(a, offset) for a, b in runs if b > offset), size)
    if start >= size:
        return Chunk(at=size)
    at = start - start % CHUNK
    return packed(fd, at, min(at + CHUNK, size))


def written(octets: bytes, fd: int, at: int, end: int) -> None:
    """Write what :func:`packed` returned.

    :raises BackendError: it is nothing of that kind.
    """
    wrong = BackendError("what arrived is no part of a file")
    try:
        plain = zstd.ZstdDecompressor().decompress(octets, max_length=CHUNK + 9)
    except zstd.ZstdError as error:
        raise wrong from error
    bitmap, position = int.from_bytes(plain[:8], "little"), 8
    present = [o for number, o in enumerate(range(at, end, GRANULE)) if bitmap >> number & 1]
    if len(plain) != 8 + sum(min(GRANULE, end - offset) for offset in present):
        raise wrong
    for offset in present:
        piece = plain[position : position + min(GRANULE, end - offset)]
        os.pwrite(fd, piece, offset)
        position += len(piece)


class _Sending:
    """The open files of a parcel on the host that sends them."""

    def __init__(self, parcel: Parcel, files: dict[str, int]) -> None:
        self.parcel = parcel
        self.files = files
        self._runs = {name: list(data_runs(fd)) for name, fd in files.items()}

    def chunk(self, name: str, offset: int) -> Chunk:
        size = next(i.size for i in self.parcel.items if i.name == name)
        return next_chunk(self.files[name], self._runs[name], size, offset)


class ParcelCalls(ABC):
    """The calls of :class:`~vmcloner_core.hosts.beside.Beside` that are about parcels."""

    def __init__(self) -> None:
        super().__init__()
        self._sent: dict[str, tuple[_Sending, contextlib.ExitStack]] = {}

    @property
    @abstractmethod
    def _engine(self) -> Engine:
        """The engine of this host."""

    def call_holding(self, asked: Asked, _event: Event) -> Holding:
        """Return what the host has of a template, and of its image in a pool."""
        return holding(self._engine, asked.name, asked.storage)

    def call_pack(self, asked: Asked, _event: Event) -> Parcel:
        """Return a template's parcel; its files stay open until :meth:`call_unpack`."""
        self.call_unpack(asked, _event)
        stack = contextlib.ExitStack()
        try:
            sending = _pack(self._engine, asked.name, asked.storage, stack)
        except BaseException:
            stack.close()
            raise
        self._sent[asked.name] = sending, stack
        return sending.parcel

    def call_unpack(self, asked: Asked, _event: Event) -> None:
        """Close a parcel's files."""
        if asked.name in self._sent:
            self._sent.pop(asked.name)[1].close()

    def call_chunk(self, asked: Asked, _event: Event) -> Chunk:
        """Return a part of a file of a parcel."""
        if asked.name not in self._sent:
            raise WrongState(f"{asked.name} is not packed", hint="run the same command again")
        return self._sent[asked.name][0].chunk(asked.item, asked.offset)

    def call_offer(self, asked: Asked, _event: Event) -> tuple[int, ...]:
        """Return how much of each file of a parcel is here, with room for the rest checked."""
        return Arrival(self._engine, _parcel(asked), asked.storage).begin()

    def call_receive(self, asked: Asked, _event: Event) -> int:
        """Write a part of a file of a parcel; returns how much of the file is here then."""
        assert asked.chunk is not None  # noqa: S101 - the controller gives one
        arrival = Arrival(self._engine, _parcel(asked), asked.storage)
        return arrival.receive(asked.item, asked.offset, asked.chunk)

    def call_arrived(self, asked: Asked, _event: Event) -> bool:
        """Check what has arrived, and use it; returns whether that changed anything."""
        return Arrival(self._engine, _parcel(asked), asked.storage).end()

    def _close_parcels(self) -> None:
        for _, stack in self._sent.values():
            stack.close()
        self._sent.clear()


def _parcel(asked: Asked) -> Parcel:
    if asked.parcel is None:
        raise WrongState("a call without a parcel")
    return asked.parcel


def _pool(engine: Engine, storage: str) -> StorageDriver:
    host = engine._host
    return host.drivers.storage(storage or engine.settings.defaults.storage)


def holding(engine: Engine, name: str, storage: str) -> Holding:
    """Return what a host has of a template.

    :raises InvalidRequest: its file there is wrong.
    """
    images: TemplateImages = engine._host.images
    try:
        template = engine.template(name)
    except NotFound:
        if name in {info.name for info in engine.templates()}:
            raise  # it extends one that is missing
        return Holding(template=False)
    origin = None
    with contextlib.suppress(VmclonerError):  # a controller needs no pool
        origin = images.origin(_pool(engine, storage), name)
    domain = template.domain
    return Holding(
        template=True,
        image=origin is not None or _makes(template),
        digest=origin.digest if origin is not None else "",
        memory=template.memory,
        why="domain.xml" if domain.xml else "domain.devices" if domain.devices else "",
    )


def _makes(template: Template) -> bool:
    """Tell whether a host imports a template's image by itself."""
    image = template.image
    if image.checksums is not None:
        return pulling.find(image) is not None  # it has to be pulled first
    return image.path.exists() if image.path is not None else image.captured is None


# --- sending ------------------------------------------------------------------------------------


def _pack(engine: Engine, name: str, storage: str, stack: contextlib.ExitStack) -> _Sending:
    """Open a template's files, and return them; ``stack`` closes them."""
    template = engine.template(name)
    image = _image(engine, template, storage, stack)
    paths = {IMAGE: image.path, **_others(template)}
    files: dict[str, int] = {}
    items = []
    for item, path in paths.items():
        with translated(path):
            files[item] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            stack.callback(os.close, files[item])
            items.append(_measured(item, files[item]))
    parcel = Parcel(
        template=name,
        keys=_keys(engine, template, image),
        digest=image.digest,
        format=image.format,
        items=tuple(items),
    )
    return _Sending(parcel, files)


def _measured(name: str, fd: int) -> Item:
    pieces = 0

    def counted(_done: int, _total: int) -> None:
        nonlocal pieces
        pieces += 1

    digest = hash_parts(fd, counted)
    return Item(name=name, size=length(fd), data=(pieces - 1) * GRANULE, digest=digest)


def _image(
    engine: Engine, template: Template, storage: str, stack: contextlib.ExitStack
) -> ImageFile:
    """Return a template's image, in a pool or else from its source."""
    from vmcloner_core import images

    host = engine._host
    with contextlib.suppress(VmclonerError):  # no pool, none in it, or it gives none out
        return stack.enter_context(host.images.lent(template.name, _pool(engine, storage)))

    with host.hold([f"template/{template.name}"], lambda: False):
        builder = host.images.builder(template)
        return stack.enter_context(images.obtained(template, builder, host.host, _unheard))


def _others(template: Template) -> dict[str, Path]:
    """Return the files of a template beside its image."""
    kernel = template.kernel
    found = {
        "vmlinuz": kernel and kernel.path and template.folder / kernel.path,
        "initrd": kernel and kernel.initrd and template.folder / kernel.initrd,
        "user_data": template.identity.user_data,
        "network_config": template.identity.network_config,
        "domain_xml": template.domain.xml,
    }
    return {name: path for name, path in found.items() if path}


def _keys(engine: Engine, template: Template, image: ImageFile) -> dict[str, Any]:
    """Return a template's keys as another host may have them: without this one's secrets."""
    from vmcloner_core.identity_rules import authorized_keys

    keys = engine._host.catalog.keys(template.name)
    keys.get("ssh", {}).pop("key", None)
    if "authorized_keys" in keys.get("identity", {}):
        keys["identity"]["authorized_keys"] = list(authorized_keys(template))
    source = keys["image"]
    for key in ("keyring", "signature"):
        source.pop(key, None)
    kind, _, digest = image.digest.partition(":")
    if "path" in source and kind == "sha256":
        source["sha256"] = digest  # a file of that name on another host may be another one
    return keys


# --- receiving ----------------------------------------------------------------------------------


@attrs.frozen
class Arrival:
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
        pool = _pool(self.engine, self.storage)
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
            for item in self.parcel.items:
                self._check(item)
            if not has.template:
                self._place()
            self._import()
            if not has.template:
                with translated(self._folder):
                    catalog.write(self._folder / f"{name}.toml", catalog.sent(self._placed_keys()))
            self._forget()
        return True

    def _check(self, item: Item) -> None:
        path = self._draft(item)
        with translated(path), _opened(path) as fd:
            if length(fd) == item.size and hash_parts(fd, _unheard) == item.digest:
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
        image = from_file(source, _unheard, self.parcel.digest)  # refuses what refers to others
        pool = _pool(self.engine, self.storage)

        def work(progress: Progress) -> Outcome[Origin]:
            return host.images.imported(pool, name, image, progress)

        host.images.told("import", name, "", time.monotonic(), work)

    def _forget(self) -> None:
        for item in self.parcel.items:
            self._draft(item).unlink(missing_ok=True)


def _unheard(_done: int, _total: int) -> None:
    """Ignore progress."""


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
