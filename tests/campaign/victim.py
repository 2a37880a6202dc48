"""The command ``vmcloner``, which is hit at one of its calls to the system, libvirt or a program.

``python victim.py FATE WORD…`` runs ``vmcloner WORD…``. FATE is JSON: ``how`` (``count``, ``kill``,
``within``, ``term``, ``hup`` or ``fault``), ``at`` (the number of the call that is hit), ``kinds``
(which calls count: ``write``, ``read``), ``log`` (a file for what was hit, or all calls that were
counted), ``error`` (of a fault), ``lasting`` (whether such calls go on failing). The calls are seen
by an audit hook of the interpreter and by wrapped functions: nothing in vmcloner knows of this.
"""

import errno
import functools
import json
import os
import signal
import sys
import threading
from pathlib import Path

import libvirt

from vmcloner_core.errors import HostCommandError
from vmcloner_core.process import LocalRunner

AUDITED = {
    "fcntl.fcntl": "write",
    "fcntl.ioctl": "write",
    "os.chmod": "write",
    "os.chown": "write",
    "os.getxattr": "read",
    "os.link": "write",
    "os.listdir": "read",
    "os.listxattr": "read",
    "os.mkdir": "write",
    "os.remove": "write",
    "os.removexattr": "write",
    "os.rename": "write",
    "os.rmdir": "write",
    "os.scandir": "read",
    "os.setxattr": "write",
    "os.symlink": "write",
    "os.truncate": "write",
    "os.utime": "write",
    "socket.connect": "read",
}
"""Audit events, beside ``open``."""
WRAPPED = {
    "copy_file_range": "write",
    "fdatasync": "write",
    "fsync": "write",
    "lstat": "read",
    "posix_fallocate": "write",
    "pread": "read",
    "pwrite": "write",
    "sendfile": "write",
    "stat": "read",
    "statvfs": "read",
    "write": "write",
}
"""Functions of :mod:`os` without an audit event."""
CHANGES = (
    "Create",
    "Define",
    "Destroy",
    "Freeze",
    "ManagedSave",
    "Restore",
    "Resume",
    "Set",
    "Shutdown",
    "Suspend",
    "Thaw",
    "Undefine",
)
"""In the names of libvirt's calls that change something."""
ALONE = (
    "Close",
    "Error",
    "Event",
    "Free",
    "GetName",
    "GetUUID",
    "Initialize",
    "_pointer",
    "SetKeepAlive",
)
"""In the names of libvirt's functions that call no daemon."""
TOP = str(Path(__file__).parents[2])
CODE = tuple({*filter(None, sys.path), TOP, sys.prefix, sys.base_prefix, "/usr/lib", "/proc/self"})
"""Where the program itself is read from: not what is tested."""
LIBVIRT_ERRORS = {
    "timeout": (
        libvirt.VIR_ERR_OPERATION_TIMEOUT,
        libvirt.VIR_FROM_QEMU,
        "cannot acquire state change lock",
    ),
    "internal": (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_QEMU, "injected: process exited"),
    "failed": (libvirt.VIR_ERR_OPERATION_FAILED, libvirt.VIR_FROM_QEMU, "injected: failed"),
    "lost": (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC, "client socket is closed"),
}


class Fate:
    """Counts calls, and hits the one that is meant."""

    def __init__(
        self,
        how,
        log,
        *,
        at=0,
        kinds=("write",),
        error="EIO",
        libvirt="internal",
        delay=0.0,
        lasting=False,
    ):
        self.how, self.kinds, self.delay = how, kinds, delay
        self.error, self.libvirt, self.lasting = error, libvirt, lasting
        self._failing = None
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._write = os.write
        self._lock = threading.Lock()
        self._left = at
        self._busy = threading.local()

    def call(self, kind, what, raised):
        """Note a call that is about to be made.

        :param raised: returns the exception that a fault raises.
        """
        if kind not in self.kinds or getattr(self._busy, "it", False):
            return
        self._busy.it = True
        try:
            with self._lock:
                self._left -= 1
                hit = self._left == 0
                if hit and self.lasting:
                    self._failing = _same(what)
                again = not hit and self._failing == _same(what)
            if hit or self.how == "count":
                self._write(self._log, f"{kind} {what}\n".encode(errors="replace"))
        finally:
            self._busy.it = False
        if hit:
            self._hit(raised)
        elif again:
            raise raised(self)

    def _hit(self, raised):
        if self.how == "fault":
            raise raised(self)
        if self.how == "within":
            threading.Timer(self.delay, _die).start()
        elif self.how == "kill":
            _die()
        elif self.how in ("term", "hup"):
            os.kill(os.getpid(), getattr(signal, f"SIG{self.how.upper()}"))


def _same(what):
    """Return what calls have in common that a lasting fault fails: function, and path if any."""
    return what.partition("<")[0]


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _os_error(path=None):
    """Return what makes the error of a call, with its path as the system's own has it."""

    def error(fate):
        number = getattr(errno, fate.error)
        return OSError(number, os.strerror(number), *([path] if isinstance(path, str) else []))

    return error


def _libvirt_error(_first):
    return _libvirt_fault


def _libvirt_fault(fate):
    code, domain, message = LIBVIRT_ERRORS[fate.libvirt]
    error = libvirt.libvirtError(message)
    error.err = (code, domain, message, libvirt.VIR_ERR_ERROR, message, None, None, -1, -1)
    return error


def audit(fate):
    """Count what the interpreter reports."""

    def heard(event, args):
        if event == "open":
            path, _mode, flags = args
            if isinstance(path, str) and not path.startswith(CODE):
                writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                fate.call("write" if writes else "read", f"open {path}", _os_error(path))
        elif event in AUDITED and not str(args[0]).startswith(CODE):
            fate.call(
                AUDITED[event], f"{event} {' '.join(map(str, args))[:150]}", _os_error(args[0])
            )

    sys.addaudithook(heard)


def wrap(fate):
    """Count the calls of the system, of libvirt and of programs that no audit event tells of."""

    def counted(kind, name, function, raised):
        @functools.wraps(function)
        def call(*args, **options):
            first = (
                os.fspath(args[0]) if args and isinstance(args[0], os.PathLike) else (*args, "")[0]
            )
            if not str(first).startswith(CODE):
                fate.call(kind, f"{name} {first!s:.150}", raised(first))
            return function(*args, **options)

        return call

    for name, kind in WRAPPED.items():
        setattr(os, name, counted(kind, name, getattr(os, name), _os_error))
    module = libvirt.libvirtmod
    for name in dir(module):
        if name.startswith("vir") and not any(word in name for word in ALONE):
            kind = "write" if any(word in name for word in CHANGES) else "read"
            setattr(module, name, counted(kind, name, getattr(module, name), _libvirt_error))

    run = LocalRunner.run

    def command(self, argv, **options):
        def failed(_fate):
            return HostCommandError(f"{argv[0]} exited with 1: injected")

        fate.call("write", f"run {' '.join(argv)[:150]}", failed)
        return run(self, argv, **options)

    LocalRunner.run = command


def main():
    fate = Fate(**json.loads(sys.argv[1]))
    from vmcloner_core.cli.app import main as vmcloner

    audit(fate)
    wrap(fate)
    return vmcloner(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
