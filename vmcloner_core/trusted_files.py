"""Use settings, templates and pools only if no other user could have written them.

Settings and templates are code: a template's XML or a backend's settings may run programs as the
user that reads them, often root. So a file and all folders above it must belong to root or to that
user, and must not be writable by others. Folders with the sticky bit (``/tmp``) may be, but not the
file's own. Under sudo the calling user is trusted too, as in git's ``safe.directory``. A group may
write if that user is its only member, as on systems where each user has a group.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vmcloner_core.errors import InvalidRequest

MAX_FILE = 1024**2
"""Bytes of a settings or template file."""


def read_file(path: Path, *, trusted: bool, limit: int = MAX_FILE) -> bytes:
    """Return the content of a regular file of ``limit`` bytes at most.

    :param trusted: refuse a file that another user could have written.
    :raises InvalidRequest: it can't be read; names it and the reason.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InvalidRequest(f"{path}: not a regular file")
            if trusted:
                _check(path, path, status, sticky=False)
                _check_folders(path)
            content = stream.read(limit + 1)
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from error
    if len(content) > limit:
        raise InvalidRequest(f"{path}: larger than {limit} bytes")
    return content


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that no other user can write there, whatever the umask.

    Idempotent. :raises OSError: it can't be made.
    """
    for place in reversed((folder, *folder.parents)):
        if not os.path.isdir(place):  # noqa: PTH112 - where it can't be told, mkdir says why
            place.mkdir(mode=0o755, exist_ok=True)


@contextlib.contextmanager
def replacing(file: Path, mode: int, *, lasting: bool = True) -> Iterator[BinaryIO]:
    """Open a draft that takes a file's name at the end. One process at a time does that.

    :param lasting: wait until it is on the disk. :raises OSError: it can't be written.
    """
    draft = file.with_name(f".{file.name}.draft")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        draft.unlink(missing_ok=True)  # left by a killed run
        handle = os.open(draft, flags, 0o600)
        with os.fdopen(handle, "w+b") as stream:
            os.fchmod(handle, mode)  # whatever the umask
            yield stream
            stream.flush()
            if lasting:
                os.fsync(handle)
        draft.rename(file)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def exists(path: Path) -> bool:
    """Tell whether there is a file.

    :raises InvalidRequest: that can't be known, for example without permission for its folder.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from error
    return True


def check_file(path: Path) -> None:
    """Check that no other user could have written a file; one that isn't there passes.

    :raises InvalidRequest: one could; names the file, the reason and the way out.
    """
    try:
        status = path.stat()
    except OSError:
        return
    _check(path, path, status, sticky=False)
    _check_folders(path)


def check_folder(folder: Path) -> None:
    """Check that no other user could have put anything into a folder.

    :raises InvalidRequest: one could; names the folder, the reason and the way out.
    """
    _check_folder(folder, _real(folder))


def check_owner(path: str | Path, status: os.stat_result, *, also: int | None = None) -> None:
    """Check that no other user could have written one file, whatever its folders.

    :param also: the id of one more user who may own it.
    :raises InvalidRequest: one could; names the file, the reason and the way out.
    """
    if not stat.S_ISREG(status.st_mode):
        raise InvalidRequest(f"{path}: not a regular file")
    if status.st_uid in (0, also) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return  # thousands of disks are checked at once
    _check(Path(path), Path(path), status, sticky=False, also=also)


def _check_folders(path: Path) -> None:
    """Check the folders of a file and of its link's target: changing a link changes the file."""
    for folder in {_real(path.parent), _real(path).parent}:
        _check_folder(path, folder)


def _real(path: Path) -> Path:
    """Return a path without links. Unlike Path.resolve(), raise nothing if these make a loop."""
    return Path(os.path.realpath(path))


def _check_folder(asked: Path, folder: Path) -> None:
    for place in (folder, *folder.parents):
        try:
            status = place.stat()
        except OSError as error:
            raise InvalidRequest(f"{place}: {error.strerror}") from error
        _check(asked, place, status, sticky=place != folder)


def _check(
    asked: Path, place: Path, status: os.stat_result, *, sticky: bool, also: int | None = None
) -> None:
    """Check one file or folder on the path to a file."""
    where = f"{asked}: not used, since {'it' if place == asked else place}"
    if status.st_uid != also and status.st_uid not in _users():
        raise InvalidRequest(
            f"{where} belongs to {_user(status.st_uid)}",
            hint=f"if you trust it: chown {_user(os.geteuid())} {place}",
        )
    if sticky and status.st_mode & stat.S_ISVTX:
        return
    if status.st_mode & stat.S_IWOTH or (
        status.st_mode & stat.S_IWGRP and (_has_acl(place) or not _private(status.st_gid))
    ):
        raise InvalidRequest(
            f"{where} can be written by other users", hint=f"if you trust it: chmod go-w {place}"
        )


def _users() -> set[int]:
    """Return the users whose files are trusted."""
    users = {0, os.geteuid()}
    caller = os.environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and caller.isdecimal():
        users.add(int(caller))
    return users


def _has_acl(path: Path) -> bool:
    """Tell whether a file has an ACL: its group's bits are then the most that any entry gives."""
    try:
        return "system.posix_acl_access" in os.listxattr(path)
    except OSError:  # no extended attributes here
        return False


def _private(group: int) -> bool:
    """Tell whether all members of a group are users whose files are trusted."""
    try:
        named = {pwd.getpwnam(name).pw_uid for name in grp.getgrgid(group).gr_mem}
    except KeyError:
        return False
    primary = {user.pw_uid for user in pwd.getpwall() if user.pw_gid == group}
    return named | primary <= _users()


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
