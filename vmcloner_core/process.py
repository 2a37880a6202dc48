"""Run host commands: argv lists with a deadline, no shell, the C locale, bounded output.

Also find out which processes have which files open.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Protocol

import attrs

from vmcloner_core.cancelling import check_interrupted
from vmcloner_core.errors import BackendError, DeadlineExceeded, HostCommandError, Interrupted

log = logging.getLogger(__name__)
_SLICE = 0.5
_DYING = 10.0
"""Seconds that a killed command is waited for."""
MAX_OUTPUT = 64 * 1024**2
"""Bytes of standard output that are read back; more is an error, not a memory leak."""


@attrs.frozen(kw_only=True)
class CommandResult:
    """The output of a command that exited with 0."""

    stdout: bytes
    stderr: bytes


class CommandRunner(Protocol):
    """Runs commands on one host. Thread-safe."""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 60.0,
        input: bytes = b"",  # noqa: A002 - the name that subprocess uses
        env: Mapping[str, str] | None = None,
    ) -> CommandResult:
        """Run ``argv`` and return its output. It doesn't outlive the calling process.

        :param timeout: seconds after which the command and its children are killed.
        :param env: variables added to a minimal environment.
        :raises BackendError: the program is not installed.
        :raises DeadlineExceeded: it did not finish in time.
        :raises Interrupted: the run is to end (see :func:`cancelling.interruptible`).
        :raises HostCommandError: it exited with a status other than 0; the message contains the
            last line of its standard error, ``output`` all of it.
        """
        ...

    def which(self, program: str) -> str | None:
        """Return the absolute path of a program, or None if it is not installed."""
        ...


_KEPT = (
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "SSH_AUTH_SOCK",
    *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
)
_UNLESS_ORPHANED = 'test "$PPID" = "$0" && exec "$@"'
"""The parent may have ended before the signal was requested: so its process id is compared."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class LocalRunner:
    """Runs commands on this machine."""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 60.0,
        input: bytes = b"",  # noqa: A002
        env: Mapping[str, str] | None = None,
    ) -> CommandResult:
        """See :meth:`CommandRunner.run`."""
        try:
            return self._run(argv, timeout, input, env)
        except OSError as error:  # of the temporary files
            raise HostCommandError(
                f"{argv[0]}: can't be run: {error.strerror}",
                hint="free space for temporary files, or set TMPDIR",
            ) from error

    @staticmethod
    def _run(
        argv: Sequence[str], timeout: float, stdin_content: bytes, env: Mapping[str, str] | None
    ) -> CommandResult:
        environment = {k: v for k in _KEPT if (v := os.environ.get(k))}
        environment |= {"PATH": _PATH, "LC_ALL": "C.UTF-8", **(env or {})}
        if shutil.which(argv[0], path=environment["PATH"]) is None:
            raise BackendError(f"{argv[0]}: not installed", hint="vmcloner host check")
        # Files instead of pipes: a grandchild that keeps a pipe open would block us.
        with (
            tempfile.TemporaryFile() as stdin,
            tempfile.TemporaryFile() as stdout,
            tempfile.TemporaryFile() as stderr,
        ):
            stdin.write(stdin_content)
            stdin.seek(0)
            try:
                process = subprocess.Popen(
                    bound(argv),
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    env=environment,
                    cwd="/",
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise BackendError(
                    "setpriv: not installed", hint="apt-get install util-linux"
                ) from error
            except OSError as error:
                raise HostCommandError(f"{argv[0]}: {error.strerror}") from error
            begun = time.monotonic()
            _wait(process, argv[0], timeout)
            seconds = time.monotonic() - begun
            log.debug("%s: %d after %.3f s", shlex.join(argv), process.returncode, seconds)
            errors = _read(stderr, argv[0])
            if process.returncode != 0:
                output = errors.decode(errors="replace")
                lines = output.strip().splitlines() or ["no message"]
                raise HostCommandError(
                    f"{argv[0]} failed with {process.returncode}: {lines[-1][:500]}", output=output
                )
            return CommandResult(stdout=_read(stdout, argv[0]), stderr=errors)

    def which(self, program: str) -> str | None:
        """See :meth:`CommandRunner.which`."""
        return shutil.which(program, path=_PATH)


def bound(argv: Sequence[str]) -> list[str]:
    """Return a command line that gets SIGTERM when the calling thread or its process ends.

    Not SIGKILL: LVM's commands finish what they are writing. See prctl(2), PR_SET_PDEATHSIG. The
    shell's script is constant; the command is its arguments.
    """
    alive = ("sh", "-c", _UNLESS_ORPHANED, str(os.getpid()))
    return ["setpriv", "--pdeathsig", "TERM", *alive, *argv]


def _wait(process: subprocess.Popen[bytes], program: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    try:
        while True:
            left = deadline - time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, min(left, _SLICE)))
                return
            if left <= 0:
                raise DeadlineExceeded(f"{program}: no answer within {timeout:g} s")
            check_interrupted()
    except Interrupted:
        _end(process)
        raise
    except BaseException:
        _kill(process)
        raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a command and its children to end; kill those that don't."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_DYING)
    _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_DYING)  # longer if the kernel waits for a device for it


def _read(stream: IO[bytes], program: str) -> bytes:
    if stream.seek(0, os.SEEK_END) > MAX_OUTPUT:
        raise HostCommandError(f"{program}: printed more than {MAX_OUTPUT} bytes")
    stream.seek(0)
    return stream.read()


def open_files() -> Iterator[tuple[int, os.stat_result]]:
    """Yield each file that another process on this machine has open, with the process id.

    See proc(5), ``/proc/PID/fd``. Processes that this user may not inspect are left out.
    """
    own = str(os.getpid())
    for pid in os.listdir("/proc"):  # noqa: PTH208
        if not pid.isdecimal() or pid == own:
            continue
        for status in files_of(int(pid)):
            yield int(pid), status


def files_of(pid: int) -> Iterator[os.stat_result]:
    """Yield each file that a process has open; none if it ended, or may not be inspected."""
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
            with contextlib.suppress(OSError):
                yield os.stat(f"/proc/{pid}/fd/{number}")  # noqa: PTH116


def device_holder(number: int) -> str:
    """Return who uses the block device ``number`` (a dev_t) inside the kernel, "" if nobody.

    Like ``a file system on /mnt`` (proc(5), /proc/PID/mountinfo: field 3 is the device, field 5 the
    mount point) or ``device dm-3``, one on top of it.
    """
    shown = f"{os.major(number)}:{os.minor(number)}"
    with contextlib.suppress(OSError), open("/proc/self/mountinfo") as stream:  # noqa: PTH123
        for line in stream:
            words = line.split()
            if words[2:3] == [shown]:
                return f"a file system on {words[4]}"
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(f"/sys/dev/block/{shown}/holders")):  # noqa: PTH208
            return f"device {name}"
    return ""


def arguments_of(pid: int) -> tuple[str, ...]:
    """Return the words that a process was started with; none if that is not known."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as stream:  # noqa: PTH123
        return tuple(word.decode(errors="replace") for word in stream.read(2**20).split(b"\0"))
    return ()


def process_shown(pid: int) -> str:
    """Return a description of a process: ``process 123 (qemu-system-x86)``."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as stream:  # noqa: PTH123
        return f"process {pid} ({stream.read().strip()})"
    return f"process {pid}"
