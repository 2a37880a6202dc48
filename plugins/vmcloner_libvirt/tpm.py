"""Emulated TPMs of QEMU's guests: whether swtpm can make new ones on this host, and why it failed.

libvirt runs ``swtpm_setup`` as a user of its own, and that signs a new TPM's certificates with keys
that all share (swtpm_localca(8)). A libvirtd that was started before swtpm was installed found no
such user and ran it as root; the keys that it made are closed to that user after its next start.
"""

from __future__ import annotations

import math
import os
import pwd
import re
import stat
from pathlib import Path

import attrs

from vmcloner_core.errors import HostCommandError, VmclonerError, shown
from vmcloner_core.model import Outcome
from vmcloner_libvirt import firmware
from vmcloner_libvirt.users import User

KEYS = Path("/var/lib/swtpm-localca")
QEMU_CONF = Path("/etc/libvirt/qemu.conf")
DAEMONS = (Path("/run/libvirtd.pid"), Path("/run/virtqemud.pid"))
USERS = ("tss", "swtpm")
"""By default swtpm is run as the first of them that there is; it depends on the distribution."""
_WRITTEN = (".lock.swtpm-localca", "certserial")
_SEARCH, _READ, _WRITE = 1, 4, 2
_SETTING = re.compile(r'^\s*swtpm_user\s*=\s*"\+?([^"]+)"', re.MULTILINE)
_FRAME = ("Starting vTPM", "Ending vTPM", "Successfully", "Invoking")
_TAIL = 16 * 1024
_LINES = 4


def closed_keys(before: float | None = None) -> tuple[str, str] | None:
    """Return why swtpm can make no TPM of the system's guests, and the way out.

    None if it can, or if this user can't see that.

    :param before: only files that are older count, as :func:`time.time`; by default those that are
        older than the daemon: with others it works until the daemon's next start.
    """
    try:
        if before is None:
            before = max(file.stat().st_mtime for file in DAEMONS if file.exists())
        user = _user()
        if user is None:
            return None
        files = [(KEYS, _SEARCH), *((file, _needed(file)) for file in sorted(KEYS.iterdir()))]
        for file, needed in files:
            if _counts(file, before) and not user.may(file, needed):
                why = f"user {user.name}, whom swtpm runs as, has no access to {file}"
                return why, f"chown -R {user.name} {KEYS}"
    except (OSError, ValueError):
        return None
    return None


def _needed(file: Path) -> int:
    return _READ | _WRITE if file.name in _WRITTEN else _READ


def _counts(file: Path, before: float) -> bool:
    status = file.lstat()
    return stat.S_ISDIR(status.st_mode) or (
        stat.S_ISREG(status.st_mode) and status.st_mtime < before
    )


def _user() -> User | None:
    """Return the user that libvirt runs swtpm as; None if it has none of its own.

    :raises OSError: libvirt's settings can't be read.
    """
    text = QEMU_CONF.read_text() if QEMU_CONF.exists() else ""
    found = _SETTING.search(text)
    for name in (found[1],) if found is not None else USERS:
        try:
            return User.of(int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid)
        except KeyError:
            continue
    return None


def explained(outcome: Outcome[None], uri: str) -> Outcome[None]:
    """Return the outcome of a start with what swtpm wrote to its log, if that made it fail."""
    error, name = outcome.error, outcome.key
    if error is None or "swtpm" not in error.message:
        return outcome
    log = firmware.tpm_log(name, uri)
    said = _last_words(log)
    if not said:
        return outcome
    closed = closed_keys(math.inf) if uri == "qemu:///system" else None
    way_out = closed[1] if closed is not None else f"see {log}"
    better: VmclonerError = HostCommandError(f"{name}: its TPM failed: {said}", hint=way_out)
    better.__cause__ = error
    return attrs.evolve(outcome, error=better)


def _last_words(log: Path) -> str:
    """Return the last lines of a log of swtpm that say something, empty if it can't be read."""
    try:
        fd = os.open(log, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return ""
        text = os.pread(fd, _TAIL, max(0, status.st_size - _TAIL)).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(fd)
    last = text.rpartition(_FRAME[0])[2]  # of several starts
    lines = [line.strip(" .:") for line in last.splitlines()[1:]]
    told = [line for line in lines if line and not line.startswith(_FRAME)]
    return "; ".join(shown(line, 200) for line in told[-_LINES:])
