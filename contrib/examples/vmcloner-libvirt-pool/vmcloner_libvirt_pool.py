"""Storage backend libvirt-pool for vmcloner: the volumes of a storage pool of libvirt.

Beside each volume NAME is its record, the small volume NAME.vmcloner. It is made before NAME, and
removed after it. Once NAME is whole, its record is made larger: one step, and the mark of that.
"""

import contextlib
import json
import threading
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

import attrs
import libvirt

from vmcloner_core import errors, model
from vmcloner_core.cancelling import pause
from vmcloner_core.drivers.stores import Kept, Store, StoreDriver
from vmcloner_core.hooks import StorageBackend, hookimpl

RECORD, SIZE = ".vmcloner", 8192  # how the names of records end, and their bytes
TYPES = ("dir", "fs", "netfs")  # of pools whose volumes are files
DAEMONS = ("(libvirtd)", "(virtstoraged)")  # they look into the files of pools at any time


@attrs.frozen(kw_only=True)
class LibvirtPoolSettings:
    """The table [hosts.HOST.storage.NAME] of the settings file."""

    pool: str
    uri: str = "qemu:///system"


class LibvirtPool(Store):
    """A pool of libvirt; its public methods are those of vmcloner's contract."""

    def __init__(self, settings):
        self._uri, self._pool, self._connection = settings.uri, settings.pool, None
        self._opening = threading.Lock()

    @contextlib.contextmanager
    def _asked(self, *, refreshed=False):
        """Yield libvirt's pool. libvirt's errors become vmcloner's."""
        try:
            with self._opening:  # all threads use one: a stream and its volume must have the same
                if self._connection is None or not self._connection.isAlive():
                    libvirt.registerErrorHandler(lambda *_: None, None)  # else it prints them
                    self._connection = None
                    self._connection = libvirt.open(self._uri)
            pool = self._connection.storagePoolLookupByName(self._pool)
            if refreshed:
                with contextlib.suppress(libvirt.libvirtError):  # while others make volumes in it
                    pool.refresh()
            yield pool
        except libvirt.libvirtError as error:
            text, kind = f"libvirt's pool {self._pool}: {error}", errors.HostCommandError
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
                kind = errors.NotFound  # removed by another process meanwhile
            elif "No space left" in text:
                kind = errors.NotEnoughResources
            elif not self._connection or "pool not found" in text or "not active" in text:
                kind = errors.BackendError
            raise kind(text, hint=f"see virsh -c {self._uri} pool-list --all") from error

    def capacity(self):
        with self._asked(refreshed=True) as pool:
            (_, kind, _), (_, total, _, free) = pool.XMLDesc().split("'", 2), pool.info()
        if kind not in TYPES:
            text = f"libvirt's pool {self._pool} is of type {kind}: its volumes aren't files"
            raise errors.BackendError(text, hint=f"use a pool of type {', '.join(TYPES)}")
        return model.Capacity(total=total, free=free)

    def names(self):
        with self._asked(refreshed=True) as pool:
            return [n.removesuffix(RECORD) for n in pool.listVolumes() if n.endswith(RECORD)]

    def find(self, name):
        with self._asked() as pool:
            record, volume = _found(pool, name + RECORD), _found(pool, name)
            text = self._text(record) if record else ""
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                known = dict(json.loads(text)["vmcloner"])
                whole = volume is not None and record.info()[1] > SIZE
                return Kept(path=Path(record.path()[: -len(RECORD)]), known=known, whole=whole)
            if volume or text or (record and record.info()[1] != SIZE):
                raise errors.Conflict(f"volume {name} of libvirt's pool {self._pool} isn't ours")
            return None  # at most a record of a killed call in which nothing was written yet

    def _text(self, record):
        stream, found = self._connection.newStream(), bytearray()
        record.download(stream, 0, SIZE)
        stream.recvAll(lambda _stream, piece, _more: found.extend(piece), None)
        stream.finish()
        return found.rstrip(b"\0").decode(errors="replace")

    def make(self, name, known, size, below):
        with self._asked() as pool:
            record, stream = pool.createXML(_xml(name + RECORD, SIZE)), self._connection.newStream()
            record.upload(stream, 0, SIZE)
            stream.send(json.dumps({"vmcloner": known}).encode())
            stream.finish()
            return Path(pool.createXML(_xml(name, size, below)).path())

    def finish(self, name):
        with self._asked() as pool:
            pool.storageVolLookupByName(name + RECORD).resize(2 * SIZE)

    def remove(self, name):
        with self._asked() as pool:
            for each in (name, name + RECORD):
                while volume := _found(pool, each):
                    try:
                        volume.delete()
                    except libvirt.libvirtError as error:
                        if "still being allocated" not in str(error):  # for a killed call
                            raise
                        pause(0.1)


def _found(pool, name):
    try:
        return pool.storageVolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise


def _xml(name, size, below=None):
    volume, store = Element("volume"), Element("backingStore")
    for tag, text in (("name", name), ("capacity", str(size)), ("allocation", "0")):
        SubElement(volume, tag).text = text
    SubElement(SubElement(volume, "target"), "format", type="qcow2" if below else "raw")
    if below:
        SubElement(store, "path").text = str(below)
        SubElement(store, "format", type="raw")
        volume.append(store)
    return tostring(volume, encoding="unicode")


@hookimpl
def vmcloner_storage_backend():
    return StorageBackend(
        api=1,
        name="libvirt-pool",
        description="volumes of a storage pool that libvirt manages",
        factory=lambda context, s: StoreDriver(context, LibvirtPool(s), ignored=DAEMONS),
        settings=LibvirtPoolSettings,
    )
