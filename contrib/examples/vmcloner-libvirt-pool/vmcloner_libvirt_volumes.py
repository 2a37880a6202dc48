"""The volumes of a libvirt storage pool, and what is known of them, by libvirt's volume API.

Beside each volume NAME is its record, the small volume NAME.vmcloner. It is made before NAME, and
removed after it. Once NAME is whole, its record is made larger: one step, and the mark of that.
"""

import contextlib
import functools
import json
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

import libvirt

from vmcloner_core import locks, model
from vmcloner_core.cancelling import pause
from vmcloner_core.copying import Target
from vmcloner_core.errors import (
    BackendError,
    Conflict,
    HostCommandError,
    NotEnoughResources,
    NotFound,
    VmclonerError,
    WrongState,
)
from vmcloner_core.full_copies import copy_one
from vmcloner_core.os_errors import allocated
from vmcloner_core.process import open_files, process_shown
from vmcloner_core.stored_ids import read_id

IMAGE, RECORD = ".image", ".vmcloner"  # how the names of templates' images end, and of records
SIZE, TABLES = 8192, 256 * 1024  # bytes of a record, and of a new overlay
TYPES = ("dir", "fs", "netfs")  # of pools whose volumes are files
DAEMONS = ("(libvirtd)", "(virtstoraged)")  # they look into the files of pools at any time


class Volumes:
    """The volumes of one pool. Whoever makes or removes one has its name locked."""

    def __init__(self, context, uri, pool):
        self._name, self._host = context.name, context.host
        self._uri, self._pool, self._connection = uri, pool, None

    def locked(self, *names):
        """Lock names, for the processes with this state folder."""
        ended = functools.partial(pause, 0)  # raises Interrupted
        return locks.hold(self._host.state / "libvirt-pool", names, cancelled=ended)

    @contextlib.contextmanager
    def _asked(self):
        """Yield libvirt's pool. libvirt's errors become vmcloner's."""
        try:
            if self._connection is None or not self._connection.isAlive():
                libvirt.registerErrorHandler(lambda *_: None, None)  # else it prints them
                self._connection = None
                self._connection = libvirt.open(self._uri)
            yield self._connection.storagePoolLookupByName(self._pool)
        except libvirt.libvirtError as error:
            text, kind = f"libvirt's pool {self._pool}: {error}", HostCommandError
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
                kind = NotFound  # removed by another process meanwhile
            elif "No space left" in text:
                kind = NotEnoughResources
            elif not self._connection or "pool not found" in text or "not active" in text:
                kind = BackendError
            raise kind(text, hint=f"see virsh -c {self._uri} pool-list --all") from error

    @contextlib.contextmanager
    def _refreshed(self):
        """Yield libvirt's pool, as its folder is now."""
        with self._asked() as pool:
            with contextlib.suppress(libvirt.libvirtError):  # while others make volumes in it
                pool.refresh()
            yield pool

    def capacity(self):
        """Return the pool's space.

        :raises BackendError: its volumes aren't files.
        """
        with self._refreshed() as pool:
            _, kind, _ = pool.XMLDesc().split("'", 2)
            _, total, _, free = pool.info()
        if kind not in TYPES:
            raise BackendError(
                f"libvirt's pool {self._pool} is of type {kind}: its volumes aren't files",
                hint=f"use a pool of type {', '.join(TYPES)}",
            )
        return model.Capacity(total=total, free=free)

    def names(self):
        """Return the names of the volumes that have records."""
        with self._refreshed() as pool:
            return [n.removesuffix(RECORD) for n in pool.listVolumes() if n.endswith(RECORD)]

    def known(self, name):
        """Return what a volume's record says, {} if there is neither. Without one: a Conflict.

        Added to what made() was given are its "path", and whether it is "whole".
        """
        with self._asked() as pool:
            record = _found(pool, name + RECORD)
            text = self._text(record) if record else ""
            volume = _found(pool, name)
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                known = json.loads(text)["vmcloner"]
                whole = volume is not None and record.info()[1] > SIZE
                return known | {"path": Path(record.path().removesuffix(RECORD)), "whole": whole}
            if volume or text or (record and record.info()[1] != SIZE):
                raise Conflict(f"volume {name} of libvirt's pool {self._pool} isn't vmcloner's")
            return {}

    def _text(self, record):
        """Return what is in a record, "" if nothing was written yet."""
        stream, found = self._connection.newStream(), bytearray()
        record.download(stream, 0, SIZE)
        stream.recvAll(lambda _stream, piece, _more: found.extend(piece), None)
        stream.finish()
        return found.rstrip(b"\0").decode(errors="replace")

    def origin(self, name):
        """Return an image, None if it isn't there or isn't whole."""
        known = self.known(name)
        if "digest" not in known or not known["whole"]:
            return None
        return model.Origin(
            template=name.removesuffix(IMAGE),
            pool=self._name,
            size=known["size"],
            allocated=allocated(known["path"]),
            digest=known["digest"],
        )

    def disk(self, name):
        """Return a clone's disk, None if there is none."""
        known = self.known(name)
        labels, below = model.Labels.from_mapping(known.get("labels", {})), known.get("below")
        return labels and model.Volume(
            name=name,
            pool=self._name,
            labels=labels,
            path=known["path"],
            size=known["size"],
            format="qcow2" if below else "raw",
            backing=Path(below) if below else None,
            complete=known["whole"],
        )

    def users(self, volumes):
        """Return which processes have volumes open, by the volumes' names."""
        files, users = {}, {}
        for volume in volumes:
            with contextlib.suppress(OSError):  # it isn't there
                status = volume.path.stat()
                files[status.st_dev, status.st_ino] = volume.name
        for pid, status in open_files() if files else ():
            name = files.get((status.st_dev, status.st_ino))
            if name and not (user := process_shown(pid)).endswith(DAEMONS):
                users[name] = user
        return users

    @contextlib.contextmanager
    def made(self, name, known):
        """Make a volume, which reads as zeros or as what is below; yield its path, to be filled.

        :param known: for its record: its "size", the file "below" an overlay, and more.
        :raises WrongState: another state folder, whose locks are others, hasn't finished it.
        """
        state, held = read_id(self._host.state_id), self.known(name)
        if held and not held["whole"] and held["state"] != state:
            raise WrongState(f"volume {held['path']} is another state folder's, and unfinished")
        self.remove(name)  # what a killed call left
        with self._asked() as pool:
            record, stream = pool.createXML(_xml(name + RECORD, SIZE)), self._connection.newStream()
            record.upload(stream, 0, SIZE)
            stream.send(json.dumps({"vmcloner": known | {"state": state}}).encode())
            stream.finish()
            try:
                yield Path(pool.createXML(_xml(name, known["size"], known.get("below"))).path())
            except BaseException:
                with contextlib.suppress(VmclonerError):  # the same call makes it anew
                    self.remove(name)
                raise
            record.resize(2 * SIZE)

    def remove(self, name):
        """Remove a volume, then its record. Wait for what libvirt makes for a killed call."""
        with self._asked() as pool:
            for each in (name, name + RECORD):
                while volume := _found(pool, each):
                    try:
                        volume.delete()
                    except libvirt.libvirtError as error:
                        if "still being allocated" not in str(error):
                            raise
                        pause(0.1)


def fill(source, path, size, options, progress):
    """Copy a raw image into a volume of zeros that was made just now."""
    target = Target(path=path, size=size, blank=True, progress=progress)
    with source.open("rb") as file:
        copy_one(file.fileno(), target, options)


def _found(pool, name):
    try:
        return pool.storageVolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise
        return None


def _xml(name, size, below=None):
    volume, store = Element("volume"), Element("backingStore")
    for tag, text in (("name", name), ("capacity", str(size)), ("allocation", "0")):
        SubElement(volume, tag).text = text
    SubElement(SubElement(volume, "target"), "format", type="qcow2" if below else "raw")
    if below:
        SubElement(store, "path").text = below
        SubElement(store, "format", type="raw")
        volume.append(store)
    return tostring(volume, encoding="unicode")
