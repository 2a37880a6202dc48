"""The half without privileges: a process that does all the reading of what the network sends.

The privileged half opens the packet sockets, forks, and listens. The worker gives up root before
the first packet is read; it answers with short messages of JSON and with open files, never with
names (unix(7), SCM_RIGHTS). A message is checked as what it is: written by somebody who may have
been taken over.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import pwd
import resource
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from typing import Any, BinaryIO

import attrs

from vmcloner_core.errors import VmclonerError
from vmcloner_pxe.dhcp import Client, Lease
from vmcloner_pxe.errors import NetbootError, reason, shown
from vmcloner_pxe.link import Link
from vmcloner_pxe.location import base_of
from vmcloner_pxe.resolver import Found, Guest, Resolver

MAX_THREADS = 32
MAX_MESSAGE = 65536
MAX_FILES = 17
MAX_MEMORY = 1024**3
"""Bytes of memory that the worker may have beyond those of the process that forked it."""
GRACE = 2.0
"""Seconds that the worker has, beyond its own deadline, to say so itself; and to end."""
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_PDEATHSIG, _NO_NEW_PRIVS = 1, 38  # linux/prctl.h


@attrs.frozen(kw_only=True)
class Order:
    """What is asked of the worker for each guest.

    :param kernel, ramdisk: names on the boot server, instead of what its configuration says.
    :param fetch: give the files too, not only say what there is.
    :param release: give the lease back: True, False, or None for where no use is made of it.
    :param configure: have the lease put on the namespace's interface before anything is fetched.
    """

    kernel: str | None = None
    ramdisk: str | None = None
    fetch: bool = True
    release: bool | None = None
    configure: bool = False


@attrs.frozen(kw_only=True)
class Answer:
    """What one guest boots, or ``error``.

    ``kernel`` and ``initrds`` name where the files came from; both are empty where it is to boot
    its own disk. ``files`` are open: the kernel, then the initrds.
    """

    index: int
    error: str | None = None
    address: str = ""
    server: str = ""
    config: str = ""
    label: str = ""
    kernel: str = ""
    initrds: tuple[str, ...] = ()
    arguments: str = ""
    warnings: tuple[str, ...] = ()
    files: tuple[BinaryIO, ...] = ()

    @property
    def local(self) -> bool:
        """Whether it is to boot its own disk."""
        return self.error is None and not self.kernel

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()


def uid_of(user: str) -> tuple[int, int]:
    """Return the ids of a user (by name or number) and of its group.

    :raises NetbootError: there is none of that name, or it is root.
    """
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
        ids = entry.pw_uid, entry.pw_gid
    except (KeyError, OverflowError) as error:
        if not user.isdecimal() or len(user) > 9:
            raise NetbootError(f"there is no user {shown(user)!r}") from error
        ids = int(user), int(user)  # libxl reserves ranges of numbers without names
    if 0 in ids:
        raise NetbootError(f"user {shown(user)!r} is root: nothing would be given up")
    return ids


def serve(
    resolver: Resolver,
    order: Order,
    guests: Sequence[Guest],
    link: Link,
    ids: tuple[int, int],
    take: Callable[[Answer], bool],
) -> None:
    """Find out what each guest boots, and hand it to ``take`` as soon as it is known.

    Forks: call it while there is no other thread. The worker is gone when this ends, however.

    :param ids: the user and group that the worker becomes; ignored where this isn't root.
    :param take: is given an answer, whose files are closed afterwards; answers come in any order.
        Returns whether the guest boots by it: if it doesn't, or whatever is raised, the guest's
        lease is given back.
    :raises NetbootError: the worker ended, or broke its protocol, before it had answered for all;
        and whatever ``take`` raises.
    """
    parent = os.getpid()  # asked before the fork: afterwards it may be gone already
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # From the fork until there is who sees to the worker's end, a signal has to wait; in the worker
    # for ever: it ends when the other half says so.
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with ours, theirs:
            with link.entered() if order.configure else contextlib.nullcontext():
                pid = os.fork()
                if pid == 0:  # it never leaves this block
                    give_up = functools.partial(
                        give_up_privileges, ids, resolver.fetcher.max_size, parent
                    )
                    made = _Worker(resolver, order, guests, link, _Channel(theirs))
                    _run([theirs, *link.sockets], give_up, made.run)
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
                theirs.close()
                _take_all(ours, resolver, order, len(guests), link, take)
            finally:
                _end(pid, ours)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


# --- the privileged half ------------------------------------------------------------------------


def _take_all(
    ours: socket.socket,
    resolver: Resolver,
    order: Order,
    count: int,
    link: Link,
    take: Callable[[Answer], bool],
) -> None:
    fetcher = resolver.fetcher
    waiting = set(range(count))
    while waiting:
        answer = _receive(ours, link, order, fetcher.max_size, fetcher.deadline + GRACE)
        if answer is None:
            continue
        with contextlib.closing(answer):
            if answer.index not in waiting:
                raise NetbootError("the worker answers what it wasn't asked")
            waiting.remove(answer.index)
            used = take(answer)
        _tell(ours, {"index": answer.index, "used": used})


def _tell(ours: socket.socket, message: dict[str, object]) -> None:
    with contextlib.suppress(OSError):  # it has ended: what is read from it next says so
        ours.send(json.dumps(message).encode())


def _end(pid: int, ours: socket.socket) -> None:
    """Have the worker give back the leases that nobody boots by, and see that it ends."""
    try:
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_WR)
            until = time.monotonic() + GRACE
            while (left := until - time.monotonic()) > 0:
                ours.settimeout(left)
                if not ours.recv(MAX_MESSAGE):  # it has ended
                    break
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _receive(
    ours: socket.socket, link: Link, order: Order, max_size: int, deadline: float
) -> Answer | None:
    """Return the next answer; None where the worker asked for its address."""
    ours.settimeout(max(0.001, deadline - time.monotonic()))
    try:
        data, fds, flags, _address = socket.recv_fds(ours, MAX_MESSAGE, MAX_FILES)
    except TimeoutError as error:
        raise NetbootError("timeout: it took too long") from error
    with contextlib.ExitStack() as stack:
        for fd in fds:
            stack.callback(os.close, fd)
        if not data:
            raise NetbootError("the worker ended before it had answered")
        try:
            message = _message(data, flags)
            if "configure" not in message:
                return _answer(message, _files(fds, max_size))
            _configure(message["configure"], link, order)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise NetbootError("the worker broke its protocol") from error
        _tell(ours, {})
    return None


def _files(fds: Sequence[int], max_size: int) -> tuple[BinaryIO, ...]:
    """Return open files for copies of descriptors.

    :raises ValueError: one isn't a regular file of at most ``max_size`` bytes. Another kind (a
        pipe, a device) could keep its reader waiting, or never end.
    """
    for fd in fds:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode) or state.st_size > max_size:
            raise ValueError("not a file of that size")
    return tuple(os.fdopen(os.dup(fd), "rb") for fd in fds)


def _configure(value: object, link: Link, order: Order) -> None:
    if not order.configure or not isinstance(value, list):
        raise TypeError("not asked for")
    address, prefix, router = value
    link.configure(IPv4Address(address), int(prefix), IPv4Address(router) if router else None)


def _message(data: bytes, flags: int) -> dict[str, Any]:
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise ValueError("longer than a message may be")
    message = json.loads(data)
    if not isinstance(message, dict):
        raise TypeError("not an object")
    return message


def _answer(message: dict[str, Any], files: tuple[BinaryIO, ...]) -> Answer:
    for name, value in message.items():
        known = attrs.fields_dict(Answer)[name]  # KeyError: not a field
        listed = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if name in ("initrds", "warnings") and listed:
            message[name] = tuple(value)
        elif not isinstance(value, int if name == "index" else str) or known.name == "files":
            raise TypeError(name)
    answer = Answer(**message, files=files)
    if files and len(files) != 1 + len(answer.initrds):
        raise ValueError("files")
    return answer


# --- the half without privileges ----------------------------------------------------------------


class _Channel:
    """The worker's end. Thread-safe; one thread receives."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()
        self.configured = threading.Event()

    def send(self, message: dict[str, object], files: Sequence[BinaryIO] = ()) -> None:
        """Send a message; one that is too long becomes an error of the same guest."""
        data = json.dumps(message).encode()
        if len(data) > MAX_MESSAGE:
            error = f"its boot server says too much: {len(data)} bytes, of {MAX_MESSAGE} at most"
            data, files = json.dumps({"index": message["index"], "error": error}).encode(), ()
        with self._lock:
            socket.send_fds(self._end, [data], [file.fileno() for file in files])

    def receive(self) -> dict[str, Any] | None:
        """Return what the privileged half says; None where it says no more."""
        data = self._end.recv(MAX_MESSAGE)
        return _message(data, 0) if data else None


class _Leases:
    """The leases that no guest boots by yet: they are to be given back. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[int, tuple[Client, Lease]] = {}

    def hold(self, index: int, client: Client, lease: Lease) -> None:
        """Keep in mind a guest's lease, in place of the one that it had."""
        with self._lock:
            _client, before = self._held.get(index, (client, lease))
            self._held[index] = client, lease
        if (before.address, before.server) != (lease.address, lease.server):
            client.release(before)

    def settle(self, index: int, *, used: bool) -> None:
        """Let go of a guest's lease, given back if it isn't used. Idempotent."""
        with self._lock:
            client, lease = self._held.pop(index, (None, None))
        if client is not None and lease is not None and not used:
            client.release(lease)

    def give_back(self) -> None:
        """Give all back."""
        for index in list(self._held):
            self.settle(index, used=False)


def _run(
    kept: Sequence[socket.socket], give_up: Callable[[], None], work: Callable[[], None]
) -> None:
    """Do the worker's work in this process, which is a fork, and end it."""
    status = 1
    try:
        _close_all_but(kept)
        "host.example".encode("idna")  # loaded now: the user may not be able to read our modules
        give_up()
        work()
        status = 0
    finally:
        os._exit(status)  # never back into what the privileged half would do next


def _close_all_but(kept: Sequence[socket.socket]) -> None:
    """Close what the privileged half has open: above all the file that libxl reads."""
    numbers = {0, 1, 2, *(one.fileno() for one in kept)}
    for number in {int(name) for name in os.listdir("/proc/self/fd")} - numbers:  # noqa: PTH208
        with contextlib.suppress(OSError):  # the listing's own
            os.close(number)


def give_up_privileges(ids: tuple[int, int], max_size: int, parent: int) -> None:
    """Become another user for good, with limits on memory and file size, and die with the parent.

    :param max_size: bytes of a file. :param parent: its process id; where it has died already,
        this process ends here.
    """
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: _data() + MAX_MEMORY,
        resource.RLIMIT_FSIZE: max_size + MAX_MESSAGE,
    }
    for limit, value in limits.items():
        _soft, hard = resource.getrlimit(limit)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (most, most))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(ids[1], ids[1], ids[1])
        os.setresuid(ids[0], ids[0], ids[0])
    prctl = ctypes.CDLL(None).prctl
    prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after setuid, which clears it
    if os.getppid() != parent:
        os._exit(1)


def _data() -> int:
    """Return the bytes that count for RLIMIT_DATA in this process; see proc(5), statm."""
    with open("/proc/self/statm", encoding="ascii") as stream:  # noqa: PTH123
        return int(stream.read().split()[5]) * resource.getpagesize()


@attrs.frozen
class _Worker:
    resolver: Resolver
    order: Order
    guests: Sequence[Guest]
    link: Link
    channel: _Channel
    leases: _Leases = attrs.field(factory=_Leases)

    def run(self) -> None:
        """Answer for all guests; end when the privileged half says no more."""
        pool = ThreadPoolExecutor(max(1, min(MAX_THREADS, len(self.guests))))
        for index in range(len(self.guests)):
            pool.submit(self._answer, index)
        while (said := self.channel.receive()) is not None:
            if "used" in said:
                self.leases.settle(said["index"], used=said["used"])
            else:
                self.channel.configured.set()
        self.leases.give_back()  # who is still at work ends with the process

    def _answer(self, index: int) -> None:
        message: dict[str, object]
        files: tuple[BinaryIO, ...] = ()
        try:
            found, files = self._found(index)
            message = _described(found)
        except VmclonerError as error:
            message = {"error": str(error)}
        except OSError as error:
            message = {"error": reason(error)}
        except Exception as error:  # one line, whatever the network sent
            message = {"error": f"internal error: {type(error).__name__}: {shown(str(error))}"}
        try:
            self.channel.send({"index": index, **message}, files)
        except OSError as error:  # of the files: too many are open
            self.channel.send({"index": index, "error": reason(error)})
        finally:
            for file in files:
                file.close()

    def _found(self, index: int) -> tuple[Found, tuple[BinaryIO, ...]]:
        guest, where, order = self.guests[index], self.link.sockets[index], self.order
        client = Client(where, guest.mac, deadline=self.resolver.fetcher.deadline)
        for lease in self.resolver.leases(guest, where):
            self.leases.hold(index, client, lease)
        if order.configure:
            self.channel.send({"configure": _interface(lease)})
            self.channel.configured.wait()
        found = _named(order, lease) or self.resolver.find(guest, lease)
        files: tuple[BinaryIO, ...] = ()
        if order.fetch and found.kernel is not None:
            files = self.resolver.fetch(found)
        unused = found.kernel is None or not order.fetch
        if unused if order.release is None else order.release:
            self.leases.settle(index, used=False)
        return found, files


def _interface(lease: Lease) -> list[str | int]:
    """Return address, prefix length and router of a lease."""
    mask = int(lease.netmask) if lease.netmask is not None else 0xFFFFFF00
    return [str(lease.address), mask.bit_count(), str(lease.router or "")]


def _named(order: Order, lease: Lease) -> Found | None:
    """Return what was asked for by name instead of by a configuration."""
    if order.kernel is None:
        return None
    base = base_of(lease.boot_server, lease.boot_file, lease.path_prefix)
    kernel = base.locate(order.kernel)
    return Found(
        lease=lease,
        config=kernel,
        label="--kernel",
        kernel=kernel,
        initrds=() if order.ramdisk is None else (base.locate(order.ramdisk),),
    )


def _described(found: Found) -> dict[str, object]:
    return {
        "address": str(found.lease.address),
        "server": found.lease.boot_server,
        "config": str(found.config),
        "label": shown(found.label),
        "kernel": "" if found.kernel is None else str(found.kernel),
        "initrds": [str(location) for location in found.initrds],
        "arguments": found.arguments,
        "warnings": [shown(warning) for warning in found.warnings[:8]],
    }
