"""Serial consoles: the log that the hypervisor's daemon writes, and the live session."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import select
import termios
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmcloner_core.drivers import ConsoleInterface
from vmcloner_core.errors import BackendError, InvalidRequest, WrongState
from vmcloner_core.names import split_clone
from vmcloner_core.trusted_files import make_folder
from vmcloner_libvirt import operations, rotated
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.connection import Connections
from vmcloner_libvirt.errors import is_code

log = logging.getLogger(__name__)
ESCAPE = b"\x1d"
"""``^]``, which ends a console (as in telnet and virsh)."""
_CHUNK = 4096


class Consoles(ConsoleInterface):
    """The consoles of one host's domains. Thread-safe.

    :param folder: of their logs, on that host.
    """

    def __init__(self, connections: Connections, folder: Path) -> None:
        self._connections = connections
        self.folder = folder
        self._lock = threading.Lock()
        self._logs: dict[str, rotated.Log] = {}

    def prepare(self) -> None:
        """Make the folder that the hypervisor's daemon, which runs as root, writes the logs to.

        :raises BackendError: it can't be made.
        """
        try:
            make_folder(self.folder)
        except OSError as error:
            raise BackendError(
                f"can't make the folder for console logs, {self.folder}: {error.strerror}",
                hint="set hosts.HOST.state to a writable folder, or run as root (sudo)",
            ) from error

    def log(self, name: str) -> Path:
        """See :meth:`ConsoleInterface.log`.

        :raises InvalidRequest: not a clone's name, so it must not become part of a path.
        """
        if split_clone(name) is None:
            raise InvalidRequest(f"not a clone's name: {name!r}")
        return self.folder / f"{name}.log"

    def read(self, name: str, offset: int, limit: int) -> tuple[bytes, int]:
        """See :meth:`ConsoleInterface.read`.

        :raises BackendError: no permission to read the log.
        """
        path = self.log(name)
        try:
            with rotated.opened(path) as parts, self._lock:
                log = self._logs.get(name, rotated.EMPTY).followed(parts)
                self._logs[name] = log
                return log.read(parts, offset, limit)
        except OSError as error:
            raise BackendError(
                f"can't read the console log {path}: {error.strerror}",
                hint="console logs belong to root: run as root (sudo)",
            ) from error

    def attach(self, name: str, stdin: int, stdout: int) -> None:
        """See :meth:`ConsoleInterface.attach`."""

        def attach(connection: Any) -> None:
            domain = operations.running(connection, name)
            _attach(connection, domain, stdin, stdout, self.flags())

        self._connections.call(attach, about=name)

    def flags(self) -> int:
        """Return libvirt's flags for attaching: refuse a console that another session uses."""
        return int(libvirt().VIR_DOMAIN_CONSOLE_SAFE)

    def remove(self, name: str) -> None:
        """Remove a console's log."""
        remove_log(self.log(name))


def remove_log(file: Path) -> None:
    """Remove a log and its rotated parts, ``.0``, ``.1`` …, as far as that is permitted."""
    for path in log_files(file):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _left(path, error)


def _left(path: Path, error: OSError) -> None:
    """Tell of what may be left, unless this user never has access: a later run removes it."""
    if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM):
        log.warning("left behind: %s: %s", path, error.strerror)


def log_files(file: Path) -> list[Path]:
    """Return the existing log and its rotated parts; none if their folder can't be read."""
    parts = re.compile(rf"{re.escape(file.name)}(\.[0-9].*)?")
    try:
        names = os.listdir(file.parent)  # noqa: PTH208
    except OSError as error:
        _left(file.parent, error)
        return []
    return [file.parent / name for name in sorted(names) if parts.fullmatch(name)]


def _attach(connection: Any, domain: Any, stdin: int, stdout: int, flags: int) -> None:
    """Connect two descriptors to a running domain's console until either end closes.

    A terminal is in raw mode meanwhile. After the end of ``stdin`` the guest's output is copied
    until the guest closes it.

    :param flags: of ``virDomainOpenConsole``. :raises WrongState: another session is attached.
    """
    module = libvirt()
    stream = connection.newStream()
    try:
        domain.openConsole(None, stream, flags)
    except module.libvirtError as error:
        if is_code(error, "VIR_ERR_OPERATION_FAILED"):
            raise WrongState(
                f"{domain.name()}: its console is in use", hint="end the other session with ^]"
            ) from error
        raise
    ended, signal_end = os.pipe()
    reader = threading.Thread(
        target=_copy_out, args=(module, stream, stdout, signal_end), name="console", daemon=True
    )
    try:
        with _raw(stdin):
            reader.start()
            _copy_in(stream, stdin, ended)
    finally:
        # Wakes the reader, which then closes its end of the pipe.
        with contextlib.suppress(module.libvirtError):
            stream.abort()
        if reader.ident is None:
            os.close(signal_end)
        else:
            reader.join(timeout=5)
        os.close(ended)


@contextlib.contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)


def _copy_out(module: Any, stream: Any, stdout: int, signal_end: int) -> None:
    try:
        while data := stream.recv(_CHUNK):
            _write(stdout, data)
    except (module.libvirtError, OSError):
        return  # the guest ended, the stream was aborted, or the output is closed
    finally:
        os.close(signal_end)


def _copy_in(stream: Any, stdin: int, ended: int) -> None:
    sources = [stdin, ended]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if ended in ready:
            return
        data = os.read(stdin, _CHUNK)
        if not data:
            sources.remove(stdin)
        before, escape, _ = data.partition(ESCAPE)
        while before:
            sent = stream.send(before)
            before = before[sent:]
        if escape:
            return


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
