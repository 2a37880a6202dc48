"""What processes are making and removing in a pool, written down in the pool before they do it.

An object has a key for each image that is being made or removed, and a shared lock for each
process that is at work. So whatever a process that died left is known, also on other hosts: its
keys are there, and its lock has expired. What another process is at work on is never swept.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from vmcloner_core.errors import WrongState
from vmcloner_rbd.cluster import Cluster
from vmcloner_rbd.library import TimeVal, check, library

OBJECT = "vmcloner"
DRAFT = "vmcloner-draft."
"""How names of images begin that are being made; names of clones contain no dot."""
DURATION = 180
"""Seconds for which a lock holds unless it is renewed."""
_RENEWAL = 30
_NAMING = 60
"""Seconds for which a lock on a name holds; it is held for a few calls."""
_TRASH = "rbd_trash"
"""Where librbd lists images in the trash. It makes that at the first removal: in a full pool it
can't, and leaves an image that has neither a name nor a place in the trash."""
_LOCK = b"work"
_MAY_RENEW = 1
_MANY = 65536


@attrs.frozen(kw_only=True)
class Entry:
    """An image that a process makes or removes.

    :param key: of the entry. :param process: who does it. :param name: the image's final name.
    :param draft: the name of the image while it is made, "" if it is removed.
    :param id: of the image that is removed, "" if one is made.
    """

    key: str
    process: str
    name: str
    draft: str = ""
    id: str = ""

    def to_bytes(self) -> bytes:
        """Return its value."""
        return json.dumps(attrs.asdict(self)).encode()

    @classmethod
    def from_bytes(cls, key: str, content: bytes) -> Entry | None:
        """Return the entry of a key, None if the value isn't one."""
        try:
            entry = cls(**json.loads(content))
        except (ValueError, TypeError, RecursionError):
            return None
        texts = all(isinstance(value, str) for value in attrs.astuple(entry))
        ours = entry.draft.startswith(DRAFT) if entry.draft else bool(entry.id)
        return entry if texts and ours and entry.key == key else None


class Journal:
    """A process's view of the journal of a pool. Thread-safe."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._process = f"{this_process()}:{uuid.uuid4().hex}"
        self._users = 0
        self._held_at = 0.0
        self._changing = threading.Lock()
        self._ended: threading.Event | None = None

    def draft(self, name: str) -> Entry:
        """Return the entry of an image that is to be made, under a draft's name first."""
        draft = f"{DRAFT}{uuid.uuid4().hex}"
        return Entry(key=draft, process=self._process, name=name, draft=draft)

    def removal(self, name: str, known: str) -> Entry:
        """Return the entry of an image that is to be removed."""
        key = f"remove.{known}.{uuid.uuid4().hex}"
        return Entry(key=key, process=self._process, name=name, id=known)

    @contextlib.contextmanager
    def written(self, entries: Sequence[Entry]) -> Iterator[set[str]]:
        """Write entries down during the block, and hold the lock.

        Yields the keys of those that are to stay: what they name could not be made or removed.
        """
        if not entries:
            yield set()
            return
        self._enter()
        try:
            values = {entry.key: entry.to_bytes() for entry in entries}
            self._cluster.set_keys(OBJECT, values)
            self._cluster.set_keys(_TRASH, {})
            left: set[str] = set()
            yield left
            done = [entry.key for entry in entries if entry.key not in left]
            self._cluster.remove_keys(OBJECT, done)
        finally:
            self._leave()

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[Callable[[], None]]:
        """Keep other processes from naming or removing an image of that name during the block.

        Yields what is called right before the name is given or taken away: it raises WrongState if
        the calls before took so long that another process may soon be at it.

        librbd's rename replaces an image that another process has just given the name. The names
        share a few locks, as each lock leaves an attribute on the object. Who was killed on this
        host loses its lock at once, on another one after a minute.
        """
        lock = f"name.{zlib.crc32(name.encode()) % 64}".encode()
        cookie = f"{self._process}:{uuid.uuid4().hex}".encode()
        until = time.monotonic() + 2 * _NAMING
        while True:
            held_at = _now()
            result = library().rados_lock_exclusive(
                self._cluster.io, OBJECT.encode(), lock, cookie, b"",
                ctypes.byref(TimeVal(_NAMING, 0)), 0,
            )  # fmt: skip
            if result != -errno.EBUSY or time.monotonic() > until:
                break
            self._break(lock)
            time.sleep(0.02)
        check(result, name)
        try:
            yield lambda: self._check_age(held_at, _NAMING)
        finally:
            library().rados_unlock(self._cluster.io, OBJECT.encode(), lock, cookie)

    def _break(self, lock: bytes) -> None:
        """Break a lock if its holder is known to be dead."""
        for client, cookie in self._lockers(lock):
            if is_dead(cookie):
                result = library().rados_break_lock(
                    self._cluster.io, OBJECT.encode(), lock, client.encode(), cookie.encode()
                )
                if result != -errno.ENOENT:
                    check(result, OBJECT)

    def check_held(self) -> None:
        """Check that no other host takes this process for dead: a host may have slept.

        :raises WrongState: it may.
        """
        self._check_age(self._held_at, DURATION)

    def _check_age(self, held_at: float, duration: float) -> None:
        if _now() - held_at > duration / 2:
            raise WrongState(
                f"{self._cluster}: this host lost its lock while it was at work",
                hint="run the same command again",
            )

    def dead(self) -> list[Entry]:
        """Return the entries of processes that are no longer at work."""
        found = [
            Entry.from_bytes(key, value) for key, value in self._cluster.all_keys(OBJECT).items()
        ]
        entries = [entry for entry in found if entry is not None]
        if not entries:
            return []
        holders = {cookie for _client, cookie in self._lockers(_LOCK)}
        return [e for e in entries if e.process not in holders or is_dead(e.process)]

    def forget(self, entries: Sequence[Entry]) -> None:
        """Remove entries."""
        if entries:
            self._cluster.remove_keys(OBJECT, [entry.key for entry in entries])

    # --- the lock -------------------------------------------------------------------------------

    def _enter(self) -> None:
        with self._changing:
            if not self._users:
                self._take()
                self._ended = threading.Event()
                threading.Thread(
                    target=self._renew, args=(self._ended,), name="rbd-lock", daemon=True
                ).start()
            self._users += 1

    def _leave(self) -> None:
        with self._changing:
            self._users -= 1
            if self._users:
                return
            assert self._ended is not None  # noqa: S101 - set as the first one entered
            self._ended.set()
            result = library().rados_unlock(
                self._cluster.io, OBJECT.encode(), _LOCK, self._process.encode()
            )
            if result != -errno.ENOENT:
                check(result, OBJECT)

    def _take(self) -> None:
        before = _now()
        result = library().rados_lock_shared(
            self._cluster.io, OBJECT.encode(), _LOCK, self._process.encode(), b"", b"",
            ctypes.byref(TimeVal(DURATION, 0)), _MAY_RENEW,
        )  # fmt: skip
        check(result, OBJECT)
        self._held_at = before

    def _renew(self, ended: threading.Event) -> None:
        while not ended.wait(_RENEWAL):
            with self._changing, contextlib.suppress(OSError):  # check_held says what is lost
                if not ended.is_set() and _now() - self._held_at < DURATION:
                    self._take()

    def _lockers(self, lock: bytes) -> list[tuple[str, str]]:
        """Return who holds a lock: clients with their cookies."""
        exclusive = ctypes.c_int()
        places = [ctypes.create_string_buffer(_MANY) for _ in range(3)]
        tag = ctypes.create_string_buffer(64)
        sizes = [ctypes.c_size_t(len(place)) for place in (tag, *places)]
        texts = [
            each for pair in zip((tag, *places), map(ctypes.byref, sizes), strict=True)
            for each in pair
        ]  # fmt: skip
        found = library().rados_list_lockers(
            self._cluster.io, OBJECT.encode(), lock, ctypes.byref(exclusive), *texts
        )
        if found == -errno.ENOENT:
            return []
        count = check(found, OBJECT)
        clients, cookies = (
            [each.decode() for each in place.raw.split(b"\0")[:count]] for place in places[:2]
        )
        return list(zip(clients, cookies, strict=True))


def this_process() -> str:
    """Return what a process is known by on its host: boot, pid namespace, pid and start."""
    names = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - not a path
    return f"{_boot()}:{names.strip('pid:[]')}:{os.getpid()}:{_start('self')}"


def is_dead(process: str) -> bool:
    """Tell whether a process of this host is known to have ended."""
    boot, names, pid, start, *_ = [*process.split(":"), "", "", "", ""]
    own_boot, own_names, *_ = this_process().split(":")
    if (boot, names) != (own_boot, own_names) or not pid.isdecimal():
        return False
    return _start(pid) != start


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _start(pid: str) -> str:
    """Return when a process was started, "" if it has ended (proc_pid_stat(5), field 22)."""
    try:
        words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if words[0] in (b"Z", b"X") else words[19].decode()


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
