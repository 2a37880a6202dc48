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
from collections.abc import Callable, Iterator, Sequence
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
GRACE = 2.0
"""Seconds that the worker has, beyond its own deadline, to say so itself."""
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


def answers(
    resolver: Resolver, order: Order, guests: Sequence[Guest], link: Link, ids: tuple[int, int]
) -> Iterator[Answer]:
    """Yield what each guest boots, in any order, as soon as it is known; close what you get.

    Forks: call it while there is no other thread. The worker is gone when this ends, however.

    :param ids: the user and group that the worker becomes; ignored where this isn't root.
    :raises NetbootError: the worker ended, or broke its protocol, before it had answered for all.
    """
    parent = os.getpid()  # asked before the fork: afterwards it may be gone already
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        with link.entered() if order.configure else contextlib.nullcontext():
            pid = os.fork()
            if pid == 0:  # it never leaves this block
                _close_all_but([theirs, *link.sockets])
                give_up = functools.partial(
                    give_up_privileges, ids, resolver.fetcher.max_size, parent
                )
                _run(give_up, lambda: _work(_Channel(theirs), resolver, order, guests, link))
        theirs.close()
        try:
            deadline = resolver.fetcher.deadline + GRACE
            waiting = set(range(len(guests)))
            while waiting:
                answer = _receive(ours, link, order, resolver.fetcher.max_size, deadline)
                if answer is None:
                    continue
                if answer.index not in waiting:
                    answer.close()
                    raise NetbootError("the worker answers what it wasn't asked")
                waiting.remove(answer.index)
                yield answer
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


# --- the privileged half ------------------------------------------------------------------------


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
        except (ValueError, TypeError, KeyError) as error:
            raise NetbootError("the worker broke its protocol") from error
        ours.send(b"{}")
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
    """The worker's end. Thread-safe."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()

    def send(self, message: dict[str, object], files: Sequence[BinaryIO] = ()) -> None:
        """Send a message; one that is too long becomes an error of the same guest."""
        data = json.dumps(message).encode()
        if len(data) > MAX_MESSAGE:
            error = f"its boot server says too much: {len(data)} bytes, of {MAX_MESSAGE} at most"
            data, files = json.dumps({"index": message["index"], "error": error}).encode(), ()
        with self._lock:
            socket.send_fds(self._end, [data], [file.fileno() for file in files])

    def ask(self, message: dict[str, object]) -> None:
        with self._lock:
            self._end.send(json.dumps(message).encode())
            if not self._end.recv(MAX_MESSAGE):
                raise NetbootError("the privileged half is gone")


def _run(give_up: Callable[[], None], work: Callable[[], None]) -> None:
    """Do the worker's work in this process, which is a fork, and end it."""
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
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
        resource.RLIMIT_DATA: MAX_MEMORY,
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


def _work(
    channel: _Channel, resolver: Resolver, order: Order, guests: Sequence[Guest], link: Link
) -> None:
    def one(index: int) -> None:
        message: dict[str, object]
        files: tuple[BinaryIO, ...] = ()
        try:
            found, files = _resolve(channel, resolver, order, guests[index], link.sockets[index])
            message = _described(found)
        except VmclonerError as error:
            message = {"error": str(error)}
        except OSError as error:
            message = {"error": reason(error)}
        except Exception as error:  # one line, whatever the network sent
            message = {"error": f"internal error: {type(error).__name__}: {shown(str(error))}"}
        try:
            channel.send({"index": index, **message}, files)
        except OSError as error:  # of the files: too many are open
            channel.send({"index": index, "error": reason(error)})
        finally:
            for file in files:
                file.close()

    with ThreadPoolExecutor(max(1, min(MAX_THREADS, len(guests)))) as pool:
        list(pool.map(one, range(len(guests))))


def _resolve(
    channel: _Channel, resolver: Resolver, order: Order, guest: Guest, where: socket.socket
) -> tuple[Found, tuple[BinaryIO, ...]]:
    lease = resolver.lease(guest, where)
    keep = False
    try:
        if order.configure:
            channel.ask({"configure": _interface(lease)})
        found = _named(order, lease) or resolver.find(guest, lease)
        files: tuple[BinaryIO, ...] = ()
        if order.fetch and found.kernel is not None:
            files = resolver.fetch(found)
        unused = found.kernel is None or not order.fetch
        keep = not (unused if order.release is None else order.release)
        return found, files
    finally:
        if not keep:
            with contextlib.suppress(OSError):  # it mustn't hide why nothing is booted
                Client(where, guest.mac, deadline=resolver.fetcher.deadline).release(lease)


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
