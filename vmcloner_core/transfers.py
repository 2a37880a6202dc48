"""Copy files to and from many clones at once, by scp over SFTP (OpenSSH 8.7 or later).

What guests send is hostile. scp writes into a folder of its own, that nothing else is in, two
levels deep: a name from a guest has no slash, so ``..`` leads no further than that folder's parent.
While scp runs, its files are counted. What is a plain file or folder at the end is moved to where
it belongs, name by name, without following links.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import attrs

from vmcloner_core import ssh
from vmcloner_core.errors import (
    BackendError,
    Conflict,
    DeadlineExceeded,
    HostCommandError,
    Interrupted,
    InvalidRequest,
    NotFound,
    VmclonerError,
    shown,
)
from vmcloner_core.model import Access
from vmcloner_core.os_errors import of_state
from vmcloner_core.units import format_seconds, format_size

TIMEOUT = 600.0
"""Seconds for each clone."""
MAX_SIZE = 4 * 1024**3
"""Bytes that are taken from one clone."""
MAX_FILES = 100_000
"""Files and folders that are taken from one clone."""
_REMOTE = re.compile(r"([^/:]+):(.*)", re.DOTALL)
_POLL = 0.1
_MAX_SAID = 64 * 1024


@attrs.frozen(kw_only=True)
class Copied:
    """What was copied to or from one clone.

    :param files: how many plain files. :param size: their bytes.
    :param path: where they are now: a folder of this host, or a path in the guest.
    :param error: why nothing was copied.
    """

    name: str
    files: int = 0
    size: int = 0
    path: str = ""
    error: VmclonerError | None = None


def split(word: str) -> tuple[str | None, str]:
    """Return (targets, path) of ``web-[1-3]:/etc/motd``; (None, path) of a path on this host.

    As for scp: what has a slash before its first colon is a path on this host.
    """
    match = _REMOTE.fullmatch(word)
    return (match[1], match[2]) if match else (None, word)


def put(
    accesses: Sequence[Access],
    files: Sequence[Path],
    to: str,
    *,
    recursive: bool = False,
    timeout: float = TIMEOUT,
    jobs: int,
) -> tuple[Copied, ...]:
    """Copy files of this host to all clones; return what became of each.

    :param to: a path in the guests; relative ones begin in the user's home.
    :raises NotFound: a file isn't there. :raises InvalidRequest: one is a folder, without
        ``recursive``; or neither file nor folder.
    """
    _check_path(to, empty=True)
    number = size = 0
    for file in files:
        more, bytes_ = _measured(file, recursive=recursive)
        number, size = number + more, size + bytes_
    sources = [os.path.abspath(file) for file in files]  # noqa: PTH100 - links stay links

    def copy(access: Access, stop: threading.Event) -> Copied:
        argv = _argv(access, *sources, f"{access.name}:{to}", recursive=recursive, timeout=timeout)
        _scp(argv, access.name, timeout, stop)
        return Copied(name=access.name, files=number, size=size, path=to or ".")

    return _each(accesses, copy, jobs)


def get(
    accesses: Sequence[Access],
    paths: Sequence[str],
    place: Callable[[str], tuple[Path, str | None]],
    *,
    recursive: bool = False,
    max_size: int = MAX_SIZE,
    timeout: float = TIMEOUT,
    jobs: int,
) -> tuple[Copied, ...]:
    """Copy files from all clones to this host; return what became of each.

    A file that is there already is replaced, a folder gets what is new. Of a clone that fails,
    nothing is kept. Files can be written and read by their owner, and run by nobody but as the
    guest says; never set-user-ID.

    :param paths: in the guests; wildcards are theirs.
    :param place: maps a clone's name to the folder for its files, and the new name of a single
        file, if it gets one.
    :param max_size: most bytes from one clone.
    """
    for path in paths:
        _check_path(path)

    def copy(access: Access, stop: threading.Event) -> Copied:
        folder, name = place(access.name)
        with _draft(folder, access.name) as draft:
            inner = draft / "in"
            inner.mkdir(mode=0o700)
            sources = [f"{access.name}:{path}" for path in paths]
            argv = _argv(access, *sources, f"{inner}/", recursive=recursive, timeout=timeout)
            # No file gets larger, not even between two looks at all of them.
            argv = ["prlimit", f"--fsize={max_size}", "--core=0", "--", *argv]
            limit = _Limit(access.name, draft, max_size)
            try:
                _scp(argv, access.name, timeout, stop, limit.look_again)
            except HostCommandError:
                limit.look()  # it may be why scp failed
                raise
            limit.look()
            return _taken(access.name, draft, folder, name)

    return _each(accesses, copy, jobs)


def _check_path(path: str, *, empty: bool = False) -> None:
    if (not path and not empty) or "\0" in path or "\n" in path:
        raise InvalidRequest(
            f"not a path in a guest: {shown(path)!r}", hint="like web-3:/var/log/messages"
        )


def _measured(file: Path, *, recursive: bool) -> tuple[int, int]:
    """Return how many plain files something is, and their bytes. Links are followed, as scp does.

    :raises NotFound: it isn't there. :raises InvalidRequest: it can't be copied.
    """
    try:
        status = file.stat()
        if stat.S_ISREG(status.st_mode):
            return 1, status.st_size
        if not stat.S_ISDIR(status.st_mode):
            raise InvalidRequest(f"{file}: neither a file nor a folder")
        if not recursive:
            raise InvalidRequest(f"{file}: a folder", hint="--recursive copies folders")
        inside = [Path(folder, name) for folder, _, names in os.walk(file) for name in names]
        return len(inside), sum(each.stat().st_size for each in inside)
    except FileNotFoundError as error:
        raise NotFound(f"{error.filename}: no such file") from error
    except OSError as error:
        raise InvalidRequest(f"{error.filename}: {error.strerror}") from error


# --- scp ----------------------------------------------------------------------------------------


def _argv(access: Access, *paths: str, recursive: bool, timeout: float) -> list[str]:
    """Return the argv of scp; paths of this host are absolute, so none is taken for a guest's."""
    values = {**ssh.options(access), **ssh.unattended(timeout)}
    pairs = [f"{key}={value}" for key, value in values.items()]
    pairs += [f"IdentityFile={value}" for value in ssh.identities(access)]
    options = [word for pair in pairs for word in ("-o", pair)]
    return ["scp", "-s", "-F", "none", *options, *("-r" for _ in range(recursive)), "--",
            *paths]  # fmt: skip


def _each(
    accesses: Sequence[Access], copy: Callable[[Access, threading.Event], Copied], jobs: int
) -> tuple[Copied, ...]:
    """Copy for all clones, so many at once; an error is that clone's. Ctrl-C ends all of them."""
    for program in ("scp", "ssh"):
        if shutil.which(program) is None:
            raise BackendError(f"{program} isn't installed", hint="install openssh-client")
    stop = threading.Event()

    def guarded(access: Access) -> Copied:
        try:
            if stop.is_set():
                raise Interrupted(f"{access.name}: not copied")
            return copy(access, stop)
        except VmclonerError as error:
            return Copied(name=access.name, error=error)
        except OSError as error:
            return Copied(name=access.name, error=of_state(error, error.filename or access.name))

    with ThreadPoolExecutor(jobs, thread_name_prefix="copies") as pool:
        try:
            return tuple(pool.map(guarded, accesses))
        finally:
            stop.set()  # after an interrupt, for those that run and those that wait


def _scp(
    argv: Sequence[str],
    name: str,
    timeout: float,
    stop: threading.Event,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Run scp until it ends, and look meanwhile whether it may go on.

    :param check: called now and then; what it raises ends scp.
    :raises HostCommandError: scp failed. :raises DeadlineExceeded: it didn't end in time.
    """
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,  # a Ctrl-C is for vmcloner, which ends all of them
        )
        try:
            while process.poll() is None:
                _wait(process, _POLL)
                check()
                if os.fstat(said.fileno()).st_size > _MAX_SAID:
                    raise HostCommandError(f"{name}: scp says more than {format_size(_MAX_SAID)}")
                if stop.is_set():
                    raise Interrupted(f"{name}: stopped")
                if time.monotonic() > deadline:
                    raise DeadlineExceeded(
                        f"{name}: not copied within {format_seconds(timeout)}",
                        hint="--timeout S gives it longer",
                    )
        finally:
            _end(process)
        if process.returncode != 0:
            raise _failed(name, said, process.returncode)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill scp and the ssh that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def _failed(name: str, said: IO[bytes], code: int) -> HostCommandError:
    said.seek(0)
    text = said.read(_MAX_SAID).decode(errors="replace")
    # What ssh says comes before "scp: Connection closed", and says why.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if line not in ("scp: Connection closed", "Connection closed")]
    hint = None
    if "subsystem request failed" in text:
        hint = "the guest has no sftp-server: install openssh-sftp-server there"
    reason = shown((told or lines or [f"scp exited with {code}"])[-1].removeprefix("scp: "))
    return HostCommandError(f"{name}: {reason}", hint=hint)


# --- what comes from guests -----------------------------------------------------------------------


@contextlib.contextmanager
def _draft(folder: Path, name: str) -> Iterator[Path]:
    """Make an empty folder beside a clone's files, for one process; remove it with its contents.

    What a killed process left in it is removed first.

    :raises Conflict: another process uses it.
    """
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103 - a link of the user's may lead elsewhere
    draft = folder / f".{name}.copying"
    with contextlib.suppress(FileExistsError):
        draft.mkdir(mode=0o700)
    handle = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            raise Conflict(f"{draft}: belongs to another user")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"{name}: another process copies to {folder}", hint="wait until it has ended"
            ) from error
        _remove_inside(draft)
        try:
            yield draft
        finally:
            _remove_inside(draft)
            draft.rmdir()
    finally:
        os.close(handle)


def _remove_inside(folder: Path) -> None:
    """Remove what is in a folder. A folder that a guest made unreadable is made readable first."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            os.chmod(entry.path, 0o700)  # noqa: PTH101
            _remove_inside(Path(entry.path))
            os.rmdir(entry.path)  # noqa: PTH106
        else:
            os.unlink(entry.path)  # noqa: PTH108


class _Limit:
    """Looks whether too much has come from a clone."""

    def __init__(self, name: str, folder: Path, size: int) -> None:
        self._name = name
        self._folder = folder
        self._size = size
        self._next = 0.0

    def look_again(self) -> None:
        """Look, unless it is so soon again that looking would take over a tenth of the time."""
        begun = time.monotonic()
        if begun >= self._next:
            self.look()
            now = time.monotonic()
            self._next = now + 9 * (now - begun)

    def look(self) -> None:
        """Raise InvalidRequest if it has."""
        number = size = 0
        for status in _inside(self._folder):
            number, size = number + 1, size + status.st_size * stat.S_ISREG(status.st_mode)
            if number > MAX_FILES:
                raise InvalidRequest(f"{self._name}: more than {MAX_FILES} files")
        # A file that reached the limit was cut there.
        if size >= self._size:
            raise InvalidRequest(
                f"{self._name}: {format_size(self._size)} or more", hint="--max-size SIZE"
            )


def _inside(folder: Path) -> Iterator[os.stat_result]:
    """Yield the status of all that is in a folder, as far as it can be read."""
    waiting = [os.fspath(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    yield entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)


def _taken(name: str, draft: Path, folder: Path, renamed: str | None) -> Copied:
    """Move what came from a clone to where it belongs.

    :raises HostCommandError: the guest sent something else than plain files and folders.
    """
    if os.listdir(draft) != ["in"]:  # noqa: PTH208
        raise _hostile(name, "a name that leads elsewhere")
    inner = draft / "in"
    number, size = _checked(name, inner)
    _check_places(name, inner, folder)
    found = os.listdir(inner)  # noqa: PTH208
    if renamed is not None and len(found) == 1:
        (inner / found[0]).rename(inner / f".{renamed}.")  # its own name may be another's
        (inner / f".{renamed}.").rename(inner / renamed)
    _move(inner, folder)
    path = folder / renamed if renamed is not None and len(found) == 1 else folder
    return Copied(name=name, files=number, size=size, path=str(path))


def _checked(name: str, folder: Path) -> tuple[int, int]:
    """Check a tree, and let its owner read it; returns the number of files, and their bytes."""
    number = size = 0
    for entry in list(os.scandir(folder)):
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            os.chmod(entry.path, status.st_mode & 0o777 | 0o700)  # noqa: PTH101
            more, bytes_ = _checked(name, Path(entry.path))
            number, size = number + more, size + bytes_
        elif stat.S_ISREG(status.st_mode):
            os.chmod(entry.path, status.st_mode & 0o777 | 0o600)  # noqa: PTH101
            number, size = number + 1, size + status.st_size
        else:
            raise _hostile(name, f"{entry.name}, which is neither a file nor a folder")
    return number, size


def _hostile(name: str, what: str) -> HostCommandError:
    return HostCommandError(f"{name}: the guest sent {shown(what)}; nothing was kept")


def _check_places(name: str, source: Path, target: Path) -> None:
    """Check that no file would replace a folder.

    :raises Conflict: one would; nothing was moved.
    """
    for entry in os.scandir(source):
        there = target / entry.name
        if there.is_dir() and not there.is_symlink():
            if not entry.is_dir(follow_symlinks=False):
                raise Conflict(
                    f"{name}: {shown(str(there))} is a folder here, and a file in the guest",
                    hint="remove it, or copy to another place",
                )
            _check_places(name, Path(entry.path), there)


def _move(source: Path, target: Path) -> None:
    """Move what is in a folder into another: files replace files, folders are merged.

    A link in the other's place is replaced like a file, never followed.
    """
    for entry in list(os.scandir(source)):
        there = target / entry.name
        if entry.is_dir(follow_symlinks=False) and there.is_dir() and not there.is_symlink():
            _move(Path(entry.path), there)
            continue
        if entry.is_dir(follow_symlinks=False):
            there.unlink(missing_ok=True)
        os.rename(entry.path, there)  # noqa: PTH104
