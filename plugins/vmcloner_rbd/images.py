"""Operations on the images of a pool. They raise OSError, as librbd's calls fail."""

from __future__ import annotations

import contextlib
import ctypes
import errno
from collections.abc import Iterator, Mapping

import attrs

from vmcloner_rbd.cluster import Cluster, number, text
from vmcloner_rbd.library import ImageSpec, SnapshotInfo, Watcher, check, library
from vmcloner_rbd.records import KEY

SNAPSHOT = "vmcloner"
"""The protected snapshot of a template's image, whose children are its clones."""
FEATURES = 1 | 4 | 8 | 16 | 32
"""layering, exclusive-lock, object-map, fast-diff, deep-flatten: without the map of its objects,
removing an image asks for each of them."""
_OPTION_FEATURES, _OPTION_CLONE_FORMAT = 1, 12  # rbd_image_options, librbd.h
_RECORD = f"metadata_{KEY}"
_MAX_IMAGES = 1_000_000


@attrs.frozen(kw_only=True)
class Header:
    """What an image's header object has. ``record``: the metadata of ours, b"" if there is none."""

    id: str
    size: int
    record: bytes
    has_snapshots: bool


class Image:
    """An open image. Thread-safe."""

    def __init__(self, handle: ctypes.c_void_p, name: str) -> None:
        self._handle = handle
        self.name = name

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes."""
        while data:
            count = library().rbd_write(self._handle, offset, len(data), data)
            check(count, self.name)
            offset, data = offset + count, data[count:]

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; fewer at the image's end."""
        buffer = ctypes.create_string_buffer(length)
        count = check(library().rbd_read(self._handle, offset, length, buffer), self.name)
        return buffer.raw[:count]

    def flush(self) -> None:
        """Wait until all of it is in the cluster."""
        check(library().rbd_flush(self._handle), self.name)

    def resize(self, size: int) -> None:
        """Make it larger or smaller."""
        check(library().rbd_resize(self._handle, size), self.name)

    def label(self, record: str) -> None:
        """Give it a record of ours."""
        check(library().rbd_metadata_set(self._handle, KEY.encode(), record.encode()), self.name)

    def protect(self) -> None:
        """Make the snapshot that clones are children of; one that is there is a success."""
        snapshot = SNAPSHOT.encode()
        for call, there in (("rbd_snap_create", errno.EEXIST), ("rbd_snap_protect", errno.EBUSY)):
            result = getattr(library(), call)(self._handle, snapshot)
            if result != -there:
                check(result, self.name)

    def unprotect(self) -> None:
        """Undo :meth:`protect`, except the snapshot; EBUSY while it has children."""
        result = library().rbd_snap_unprotect(self._handle, SNAPSHOT.encode())
        if result not in (-errno.ENOENT, -errno.EINVAL):  # no such snapshot; not protected
            check(result, self.name)

    def remove_snapshot(self) -> None:
        """Remove the snapshot that isn't protected (any more)."""
        result = library().rbd_snap_remove(self._handle, SNAPSHOT.encode())
        if result != -errno.ENOENT:
            check(result, self.name)

    def snapshots(self) -> list[str]:
        """Return the names of its snapshots."""
        count = ctypes.c_int(64)
        while True:
            found = (SnapshotInfo * max(1, count.value))()
            result = library().rbd_snap_list(self._handle, found, ctypes.byref(count))
            if result != -errno.ERANGE:
                break
        check(result, self.name)
        names = [each.name.decode(errors="replace") for each in found[:result]]
        if result:
            library().rbd_snap_list_end(found)
        return names

    def watchers(self) -> list[str]:
        """Return the addresses of those that have it open, without this process."""
        count = ctypes.c_size_t(16)
        while True:
            found = (Watcher * max(1, count.value))()
            result = library().rbd_watchers_list(self._handle, found, ctypes.byref(count))
            if result != -errno.ERANGE:
                break
        check(result, self.name)
        addresses = [each.address.decode(errors="replace") for each in found[: count.value]]
        library().rbd_watchers_list_cleanup(found, count.value)
        return addresses


class Images:
    """The images of a pool. Thread-safe."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    # --- reading --------------------------------------------------------------------------------

    def names(self) -> dict[str, str]:
        """Return the ids of all images, by their names."""
        count = ctypes.c_size_t(1024)
        while True:
            found = (ImageSpec * max(1, count.value))()
            result = library().rbd_list2(self._cluster.io, found, ctypes.byref(count))
            if result != -errno.ERANGE or count.value > _MAX_IMAGES:
                break
        check(result, "list")
        names = {
            each.name.decode(errors="replace"): each.id.decode(errors="replace")
            for each in found[: count.value]
        }
        library().rbd_image_spec_list_cleanup(found, count.value)
        return names

    def headers(self, ids: Mapping[str, str]) -> dict[str, Header]:
        """Return the headers of images by name: one read each, and many at once.

        Opening an image takes a hundred times as long. One without a header has an empty one: its
        removal was begun.
        """
        objects = [f"rbd_header.{each}" for each in ids.values()]
        keys = (_RECORD, "size", "snap_seq")
        found = self._cluster.keys_of(objects, keys)
        return {
            name: Header(
                id=ids[name],
                size=number(values.get("size", b"")),
                record=values.get(_RECORD, b""),
                has_snapshots=number(values.get("snap_seq", b"")) != 0,
            )
            for name, values in zip(ids, found, strict=True)
        }

    def id_of(self, name: str) -> str:
        """Return the id in the object that leads from a name to its image, "" if there is none."""
        return text(self._cluster.read_object(f"rbd_id.{name}"))

    def forget_name(self, name: str) -> None:
        """Remove the object that leads from a name to an image."""
        self._cluster.remove_object(f"rbd_id.{name}")

    @contextlib.contextmanager
    def open(self, name: str, *, writable: bool = False) -> Iterator[Image]:
        """Open an image. Who only reads is not among its watchers."""
        call = library().rbd_open if writable else library().rbd_open_read_only
        with self._opened(call, name, name) as image:
            yield image

    @contextlib.contextmanager
    def open_known(self, known: str, name: str) -> Iterator[Image]:
        """Open the image with an id to change it: another one may have its name by now.

        :param name: for messages.
        """
        with self._opened(library().rbd_open_by_id, known, name) as image:
            yield image

    @contextlib.contextmanager
    def _opened(self, call: ctypes._NamedFuncPointer, key: str, name: str) -> Iterator[Image]:
        handle = ctypes.c_void_p()
        check(call(self._cluster.io, key.encode(), ctypes.byref(handle), None), name)
        try:
            yield Image(handle, name)
        finally:
            result = library().rbd_close(handle)
        check(result, name)

    # --- changing -------------------------------------------------------------------------------

    def create(self, name: str, size: int) -> None:
        """Make an image of zeros."""
        with _options({_OPTION_FEATURES: FEATURES}) as options:
            check(library().rbd_create4(self._cluster.io, name.encode(), size, options), name)

    def clone(self, parent: str, name: str) -> None:
        """Make a child of an image's protected snapshot.

        Children of format 1 keep that from being removed, which is what we want.
        """
        io = self._cluster.io
        with _options({_OPTION_FEATURES: FEATURES, _OPTION_CLONE_FORMAT: 1}) as options:
            result = library().rbd_clone3(
                io, parent.encode(), SNAPSHOT.encode(), io, name.encode(), options
            )
        check(result, name)

    def rename(self, name: str, target: str) -> None:
        """Give an image another name; EEXIST if another image has that."""
        check(library().rbd_rename(self._cluster.io, name.encode(), target.encode()), target)

    def remove(self, name: str) -> bool:
        """Remove an image; tell whether there was one. EBUSY: somebody has it open."""
        return _was_there(library().rbd_remove(self._cluster.io, name.encode()), name)

    def move_to_trash(self, name: str) -> bool:
        """Take an image's name away; tell whether there was one. EBUSY: somebody has it open."""
        return _was_there(library().rbd_trash_move(self._cluster.io, name.encode(), 0), name)

    def remove_trashed(self, known: str) -> bool:
        """Remove an image by its id from the trash; tell whether it was there."""
        result = library().rbd_trash_remove(self._cluster.io, known.encode(), True)
        return _was_there(result, known)


def _was_there(result: int, name: str) -> bool:
    if result == -errno.ENOENT:
        return False
    check(result, name)
    return True


@contextlib.contextmanager
def _options(values: Mapping[int, int]) -> Iterator[ctypes.c_void_p]:
    """Yield the options of a new image, the same whatever the client's configuration says."""
    calls, options = library(), ctypes.c_void_p()
    calls.rbd_image_options_create(ctypes.byref(options))
    try:
        for option, value in values.items():
            check(calls.rbd_image_options_set_uint64(options, option, value), "options")
        yield options
    finally:
        calls.rbd_image_options_destroy(options)
