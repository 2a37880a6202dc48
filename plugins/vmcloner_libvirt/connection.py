"""A bounded pool of connections to one libvirt daemon, which survives the daemon's restarts.

The daemon serves a few calls per connection at once and queues the rest (libvirtd.conf:
``max_client_requests``, 5), and limits the number of connections. A call runs in its caller's
thread, on the connection with the fewest calls; where all are full it waits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from vmcloner_core.cancelling import pause
from vmcloner_core.errors import BackendError, VmclonerError
from vmcloner_core.process import CommandRunner
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.errors import ACCESS, is_disconnect, translate

T = TypeVar("T")
REQUESTS = 5
"""Parallel calls on one connection: libvirtd's default limit."""
KEEPALIVE = (10, 5)
"""Seconds between keepalive probes, and unanswered probes until the daemon counts as gone."""
RECONNECT = 30.0
"""Seconds for which a lost daemon is retried."""
_SLICE = 0.5


class Unreachable(BackendError):
    """The daemon can't be reached: no other call will succeed either."""


class _Lost(Exception):
    """The connection broke during a call, or can't be opened again yet."""

    def __init__(self, cause: VmclonerError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Slot:
    """One connection of the pool, opened when it is first needed."""

    def __init__(self) -> None:
        self.users = 0
        self.connection: Any = None
        self.opening = threading.Lock()


def is_local(uri: str) -> bool:
    """Tell whether a URI names a daemon on this host, reached by its socket.

    libvirt resolves words without ``:///`` as aliases, and gives the daemon the URI in the
    parameter ``name`` to open. See https://libvirt.org/uri.html
    """
    if re.fullmatch(r"[a-z]+(\+unix)?:///[^\s#]*", uri) is None:
        return False
    parameters = re.split("[&;]", uri.partition("?")[2])
    return all(unquote(item.partition("=")[0]) != "name" for item in parameters)


def is_session(uri: str) -> bool:
    """Tell whether a URI names a user's own daemon, which runs QEMU as that user."""
    return uri.partition("?")[0].endswith("/session")


class Connections:
    """Connections to ``uri``. Thread-safe; opens nothing before the first call.

    Connections stay open until :meth:`close`; libvirt's ``test:///default`` keeps its domains
    for as long as one is.
    """

    def __init__(self, uri: str, size: int, runner: CommandRunner) -> None:
        _all.add(self)
        self.uri = uri
        self._runner = runner
        self._slots = [_Slot() for _ in range(size)]
        self._changed = threading.Condition()
        self._was_connected = False

    def call(self, operation: Callable[[Any], T], *, about: str) -> T:
        """Return ``operation(connection)``; the operation is idempotent.

        If the connection breaks, the operation is run again on a new one: at least once, and
        for up to :data:`RECONNECT` seconds.

        :param about: the domain or the host, for messages.
        :raises Unreachable: no daemon answers. :raises VmclonerError: libvirt's error, translated.
        """
        give_up: float | None = None
        seconds = 0.1
        while True:
            try:
                return self._attempt(operation, about)
            except _Lost as lost:
                # The time before the first loss doesn't count: a hung daemon is detected late.
                now = time.monotonic()
                give_up = now + RECONNECT if give_up is None else give_up
                if now >= give_up:
                    raise Unreachable(
                        f"lost the connection to {self.uri}: {lost.cause.message}",
                        hint=lost.cause.hint,
                    ) from lost
            pause(seconds)
            seconds = min(2 * seconds, 2.0)

    def ask(self, operation: Callable[[Any], T]) -> T:
        """Return ``operation(connection)``, a question about the host; see :meth:`call`."""
        return self.call(operation, about=self.uri)

    def close(self) -> None:
        """Release all connections."""
        with self._changed:
            for slot in self._slots:
                slot.connection = None  # libvirt counts references: the last one closes it

    def disown(self) -> None:
        """Forget the connections without closing them: a process that was forked off has them.

        To close one would say goodbye to the daemon in the parent's name.
        """
        for slot in self._slots:
            if slot.connection is not None:
                slot.connection._o = None  # else its destructor closes it

    def _attempt(self, operation: Callable[[Any], T], about: str) -> T:
        module = libvirt()
        with self._borrow() as slot:
            connection = self._connect(slot)
            try:
                return operation(connection)
            except module.libvirtError as error:
                if is_disconnect(error) or not _alive(connection):
                    with slot.opening:
                        if slot.connection is connection:
                            slot.connection = None
                    raise _Lost(translate(error, about)) from error
                raise translate(error, about) from error

    @contextlib.contextmanager
    def _borrow(self) -> Iterator[_Slot]:
        with self._changed:
            while (slot := self._freest()).users >= REQUESTS:
                self._changed.wait(_SLICE)
                pause(0)  # unless the run is to end
            slot.users += 1
        try:
            yield slot
        finally:
            with self._changed:
                slot.users -= 1
                self._changed.notify()

    def _freest(self) -> _Slot:
        # Prefer an open one: sequential calls then use a single connection.
        return min(self._slots, key=lambda slot: (slot.users, slot.connection is None))

    def _connect(self, slot: _Slot) -> Any:
        module = libvirt()
        with slot.opening:
            if slot.connection is None:
                try:
                    connection = module.open(self.uri)
                except module.libvirtError as error:
                    failure = self._explain(error)
                    if self._was_connected and is_disconnect(error):
                        raise _Lost(failure) from error
                    raise failure from error
                # Drivers inside this process have no keepalive.
                with contextlib.suppress(module.libvirtError):
                    connection.setKeepAlive(*KEEPALIVE)
                slot.connection = connection
                self._was_connected = True
            return slot.connection

    def _explain(self, error: Any) -> Unreachable:
        """Return why the daemon can't be reached, and how to fix that."""
        failure = translate(error, self.uri)
        number = error.get_int1()
        forbidden = is_disconnect(error) and number in (errno.EACCES, errno.EPERM)
        if forbidden or failure.hint == ACCESS:
            session = self.uri.startswith("qemu")
            more = '; without either: uri = "qemu:///session" (docs/networks.md)' if session else ""
            return Unreachable(
                f"no permission to use libvirt at {self.uri}", hint=f"{ACCESS}{more}"
            )
        if not is_disconnect(error):
            return Unreachable(failure.message, hint=failure.hint)
        if number not in (errno.ENOENT, errno.ECONNREFUSED):
            return Unreachable(failure.message, hint="vmcloner host check")
        if not any(self._runner.which(daemon) for daemon in ("libvirtd", "virtqemud", "virtxend")):
            return Unreachable(
                f"libvirt's daemon is not installed ({self.uri})",
                hint="apt-get install libvirt-daemon-system",
            )
        booted = Path("/run/systemd/system").is_dir()  # sd_booted(3)
        return Unreachable(
            f"libvirt's daemon is not running ({self.uri})",
            hint="systemctl start libvirtd" if booted else "virtlogd -d; libvirtd -d",
        )


_all: weakref.WeakSet[Connections] = weakref.WeakSet()
"""All of this process."""


def _disown() -> None:
    for connections in list(_all):
        connections.disown()


os.register_at_fork(after_in_child=_disown)


def _alive(connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt().libvirtError:
        return False
