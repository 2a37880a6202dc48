"""The connection to a pool, and reading and writing small objects and keys in it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import stat
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vmcloner_core.errors import (
    BackendError,
    HostCommandError,
    InvalidRequest,
    NotEnoughResources,
    VmclonerError,
    WrongState,
)
from vmcloner_core.stored_ids import KnownPool, id_of
from vmcloner_core.trusted_files import check_file
from vmcloner_rbd.library import check, library
from vmcloner_rbd.settings import RbdSettings

MANY = 128
"""Reads that are under way at once."""
_PAGE = 1000
_MAX_KEYS = 1_000_000


class Cluster:
    """A pool of a cluster, or a namespace in it. Thread-safe; connects at the first call."""

    def __init__(self, settings: RbdSettings, known: KnownPool) -> None:
        self.settings = settings
        self._known = known
        self._connecting = threading.Lock()
        self._handle = ctypes.c_void_p()
        self._io: ctypes.c_void_p | None = None
        self._process = 0

    def __str__(self) -> str:
        return f"Ceph pool {self.settings.place}"

    @property
    def io(self) -> ctypes.c_void_p:
        """The handle of the pool, for librbd.

        :raises VmclonerError: the pool or its cluster can't be reached, or isn't the known one.
        """
        with self._connecting:
            if self._io is None or self._process != os.getpid():  # a fork shares no connection
                self._io = self._connected()
                self._process = os.getpid()
            return self._io

    def close(self) -> None:
        """Close the connection."""
        with self._connecting:
            if self._io is not None and self._process == os.getpid():
                library().rados_ioctx_destroy(self._io)
                library().rados_shutdown(self._handle)
            self._io = None

    @contextlib.contextmanager
    def translated(self, what: object = None) -> Iterator[None]:
        """Translate an OSError that the block raises."""
        try:
            yield
        except OSError as error:
            raise self.error(error, what) from error

    def error(self, error: OSError, what: object = None) -> VmclonerError:
        """Return the vmcloner error for an OSError of a call."""
        where = str(self) if what is None else f"{self}: {what}"
        user = self.settings.user
        if error.errno == errno.ETIMEDOUT:
            return BackendError(
                f"{where}: the cluster did not answer within {self.settings.timeout} s",
                hint="ceph -s: are its monitors and OSDs up, and is it not full?",
            )
        if error.errno in (errno.EACCES, errno.EPERM):
            return BackendError(
                f"{where}: user client.{user} may not do that ({error.filename})",
                hint=f"ceph auth get client.{user}; it needs the caps mon 'profile rbd' and "
                f"osd 'profile rbd pool={self.settings.pool}'",
            )
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return NotEnoughResources(
                f"{where}: the pool is full", hint="delete clones, or add OSDs; ceph df"
            )
        if error.errno == errno.EBUSY:
            return WrongState(f"{where}: in use ({error.filename})", hint="stop its user first")
        return HostCommandError(f"{where}: {error.filename}: {error.strerror}", hint="ceph -s")

    # --- connecting -----------------------------------------------------------------------------

    def _connected(self) -> ctypes.c_void_p:
        calls, settings = library(), self.settings
        handle = ctypes.c_void_p()
        name = f"client.{settings.user}".encode()
        check(calls.rados_create2(ctypes.byref(handle), b"ceph", name, 0), "rados_create")
        try:
            self._configure(handle)
            self._connect(handle)
            io = self._pool(handle)
        except BaseException:
            calls.rados_shutdown(handle)
            raise
        self._handle = handle
        return io

    def _configure(self, handle: ctypes.c_void_p) -> None:
        calls, settings = library(), self.settings
        if settings.conf_file is not None:
            found = calls.rados_conf_read_file(handle, os.fsencode(settings.conf_file))
            if found < 0:
                raise BackendError(
                    f"{self}: can't read {settings.conf_file}: {os.strerror(-found)}",
                    hint="copy it from the cluster's administrator, or set monitors",
                )
        options = {
            key_option(settings.key_file): str(settings.key_file),
            "client_mount_timeout": str(settings.timeout),
            "rados_mon_op_timeout": str(settings.timeout),
            "rados_osd_op_timeout": str(settings.timeout),
            "log_to_stderr": "false",
            "err_to_stderr": "false",
            # Each command is a client; a log and a socket of each would pile up.
            "log_file": "",
            "admin_socket": "",
        }
        if settings.monitors:
            options["mon_host"] = ",".join(settings.monitors)
        for option, value in options.items():
            check(calls.rados_conf_set(handle, option.encode(), value.encode()), option)

    def _connect(self, handle: ctypes.c_void_p) -> None:
        result, settings = library().rados_connect(handle), self.settings
        if result >= 0:
            return
        error = OSError(-result, os.strerror(-result), "connect")
        if error.errno in (errno.EACCES, errno.EPERM):
            raise BackendError(
                f"{self}: the cluster refuses user client.{settings.user}",
                hint=f"is the key in {settings.key_file} the user's? "
                f"ceph auth get client.{settings.user}",
            ) from error
        if error.errno == errno.ENOENT:
            raise BackendError(
                f"{self}: no monitors are known, or the configuration names a missing file",
                hint=f"set conf or monitors; see mon_host in {settings.conf_file}",
            ) from error
        raise self.error(error) from error

    def _pool(self, handle: ctypes.c_void_p) -> ctypes.c_void_p:
        """Return the handle of the pool, which is the one that this host knows by its name."""
        calls, settings = library(), self.settings
        io = ctypes.c_void_p()
        pool = settings.pool
        result = calls.rados_ioctx_create(handle, pool.encode(), ctypes.byref(io))
        if result == -errno.ENOENT:
            raise BackendError(
                f"the cluster has no pool {pool!r}",
                hint=f"ceph osd pool create {pool} && rbd pool init {pool}",
            )
        with self.translated():
            check(result, "open the pool")
        try:
            with self.translated():
                self._enter_namespace(io)
                # Else calls wait while the pool is full: nothing could be removed from it.
                calls.rados_set_pool_full_try(io)
                fsid = ctypes.create_string_buffer(64)
                check(calls.rados_cluster_fsid(handle, fsid, len(fsid)), "fsid")
                number = str(calls.rados_ioctx_get_id(io))
            # The same on all hosts that use the pool, whatever they call it.
            found = id_of("rbd", fsid.value.decode(), number, settings.namespace or "")
            self._known.check(self, found)
            self._known.remember(found)
        except BaseException:
            calls.rados_ioctx_destroy(io)
            raise
        return io

    def _enter_namespace(self, io: ctypes.c_void_p) -> None:
        namespace = self.settings.namespace
        if namespace is None:
            return
        there = ctypes.c_bool()
        result = library().rbd_namespace_exists(io, namespace.encode(), ctypes.byref(there))
        check(result, "namespace")
        if not there.value:
            raise BackendError(
                f"pool {self.settings.pool} has no namespace {namespace!r}",
                hint=f"rbd namespace create {self.settings.place}",
            )
        library().rados_ioctx_set_namespace(io, namespace.encode())

    # --- the monitors' knowledge ----------------------------------------------------------------

    def space(self) -> tuple[int, int]:
        """Return the bytes that the pool could hold, and how many more, after replication.

        :raises VmclonerError: the cluster has no statistics.
        """
        _ = self.io
        with self.translated("statistics"):
            pools = self._command({"prefix": "df", "format": "json"}).get("pools", ())
        for pool in pools:
            if pool.get("name") == self.settings.pool:
                free = int(pool["stats"]["max_avail"])
                return int(pool["stats"]["stored"]) + free, free
        raise BackendError(
            f"{self}: the cluster has no statistics of it", hint="is a ceph-mgr up? ceph -s"
        )

    def _command(self, command: Mapping[str, str]) -> Any:
        calls = library()
        text = (ctypes.c_char_p * 1)(json.dumps(command).encode())
        out, status = ctypes.c_void_p(), ctypes.c_void_p()
        length, status_length = ctypes.c_size_t(), ctypes.c_size_t()
        result = calls.rados_mon_command(
            self._handle, text, 1, None, 0,
            ctypes.byref(out), ctypes.byref(length),
            ctypes.byref(status), ctypes.byref(status_length),
        )  # fmt: skip
        try:
            check(result, command["prefix"])
            return json.loads(_bytes(out, length.value))
        finally:
            for buffer in (out, status):
                if buffer:
                    calls.rados_buffer_free(buffer)

    # --- objects --------------------------------------------------------------------------------

    def read_object(self, name: str) -> bytes | None:
        """Return the first bytes of a small object, None if there is none."""
        buffer = ctypes.create_string_buffer(4096)
        result = library().rados_read(self.io, name.encode(), buffer, len(buffer), 0)
        return None if result == -errno.ENOENT else buffer.raw[: check(result, name)]

    def remove_object(self, name: str) -> None:
        """Remove an object; one that is gone is a success."""
        result = library().rados_remove(self.io, name.encode())
        if result != -errno.ENOENT:
            check(result, name)

    def keys_of(self, objects: Sequence[str], keys: Sequence[str]) -> Iterator[dict[str, bytes]]:
        """Yield the values that each of many objects has for keys, in their order.

        Many reads are under way at once. An object that is gone has none.
        """
        for start in range(0, len(objects), MANY):
            reads = [_Read(self.io, name, keys) for name in objects[start : start + MANY]]
            yield from [read.result() for read in reads]

    def all_keys(self, name: str) -> dict[str, bytes]:
        """Return all keys of an object with their values."""
        calls, found, after = library(), dict[str, bytes](), b""
        more = True
        while more and len(found) < _MAX_KEYS:
            op = ctypes.c_void_p(calls.rados_create_read_op())
            found_more, result, keys = ctypes.c_uint8(), ctypes.c_int(), ctypes.c_void_p()
            calls.rados_read_op_omap_get_vals2(
                op, after, b"", _PAGE, ctypes.byref(keys), ctypes.byref(found_more),
                ctypes.byref(result),
            )  # fmt: skip
            try:
                done = calls.rados_read_op_operate(op, self.io, name.encode(), 0)
                if done == -errno.ENOENT:
                    return {}
                check(done, name)
                page = _pairs(keys)
            finally:
                calls.rados_release_read_op(op)
            found.update(page)
            more = bool(found_more.value) and bool(page)
            after = max(page, default="").encode()
        return found

    def set_keys(self, name: str, values: Mapping[str, bytes]) -> None:
        """Set keys of an object, which is made if it isn't there. All of them, or none."""
        calls = library()
        op = ctypes.c_void_p(calls.rados_create_write_op())
        keys, key_sizes = _texts([key.encode() for key in values])
        texts, sizes = _texts(list(values.values()))
        calls.rados_write_op_omap_set2(op, keys, texts, key_sizes, sizes, len(values))
        self._write(op, name)

    def remove_keys(self, name: str, keys: Sequence[str]) -> None:
        """Remove keys of an object."""
        calls = library()
        op = ctypes.c_void_p(calls.rados_create_write_op())
        texts, sizes = _texts([key.encode() for key in keys])
        calls.rados_write_op_omap_rm_keys2(op, texts, sizes, len(keys))
        self._write(op, name)

    def _write(self, op: ctypes.c_void_p, name: str) -> None:
        try:
            check(library().rados_write_op_operate(op, self.io, name.encode(), None, 0), name)
        finally:
            library().rados_release_write_op(op)


class _Read:
    """Keys of one object, being read."""

    def __init__(self, io: ctypes.c_void_p, name: str, keys: Sequence[str]) -> None:
        calls = library()
        self._name = name
        self._op = ctypes.c_void_p(calls.rados_create_read_op())
        self._found, self._result = ctypes.c_void_p(), ctypes.c_int()
        texts, _sizes = _texts([key.encode() for key in keys])
        calls.rados_read_op_omap_get_vals_by_keys(
            self._op, texts, len(keys), ctypes.byref(self._found), ctypes.byref(self._result)
        )
        self._done = ctypes.c_void_p()
        calls.rados_aio_create_completion2(None, None, ctypes.byref(self._done))
        calls.rados_aio_read_op_operate(self._op, io, self._done, name.encode(), 0)

    def result(self) -> dict[str, bytes]:
        calls = library()
        try:
            calls.rados_aio_wait_for_complete(self._done)
            result = calls.rados_aio_get_return_value(self._done)
            if result == -errno.ENOENT:
                return {}
            check(result, self._name)
            return _pairs(self._found)
        finally:
            calls.rados_aio_release(self._done)
            calls.rados_release_read_op(self._op)


def _texts(values: Sequence[bytes]) -> tuple[Any, Any]:
    """Return arrays of texts and of their lengths."""
    texts = (ctypes.c_char_p * len(values))(*values)
    return texts, (ctypes.c_size_t * len(values))(*map(len, values))


def _pairs(found: ctypes.c_void_p) -> dict[str, bytes]:
    """Return the keys and values of an iterator, which is ended."""
    calls, pairs = library(), dict[str, bytes]()
    key, value = ctypes.c_void_p(), ctypes.c_void_p()
    key_size, size = ctypes.c_size_t(), ctypes.c_size_t()
    places = [ctypes.byref(place) for place in (key, value, key_size, size)]
    try:
        while calls.rados_omap_get_next2(found, *places) == 0 and key:
            pairs[_bytes(key, key_size.value).decode(errors="replace")] = _bytes(value, size.value)
    finally:
        if found:
            calls.rados_omap_get_end(found)
    return pairs


def _bytes(place: ctypes.c_void_p, size: int) -> bytes:
    return ctypes.string_at(place, size) if place and size else b""


def number(value: bytes) -> int:
    """Return a number as Ceph stores it."""
    return int(struct.unpack("<Q", value)[0]) if len(value) == 8 else 0


def text(value: bytes | None) -> str:
    """Return a text as Ceph stores it, "" if it isn't one."""
    if value is None or len(value) < 4:
        return ""
    size = int(struct.unpack_from("<I", value)[0])
    return value[4 : 4 + size].decode(errors="replace")


def key_option(file: Path) -> str:
    """Return the name of Ceph's option for a file with a key: a keyring, or the key alone.

    :raises VmclonerError: it can't be read, or other users could read or write it.
    """
    try:
        status = file.stat()
        with file.open("rb") as stream:
            head = stream.read(65536)
    except OSError as error:
        raise BackendError(
            f"can't read the key file {file}: {error.strerror}",
            hint="run as root (sudo), or set user and keyring",
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise InvalidRequest(f"{file}: not a regular file")
    check_file(file)
    if status.st_mode & stat.S_IROTH:
        raise InvalidRequest(f"{file}: everybody can read this key", hint=f"chmod o-rwx {file}")
    return "keyring" if b"[" in head else "keyfile"
