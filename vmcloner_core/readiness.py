"""What it means that a clone is ready: conditions, which are polled and never block.

A :class:`Sight` asks the drivers for what many of them need (states, addresses, agents), for all
clones at once. :mod:`vmcloner_core.watching` polls them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any, TypeVar

import attrs

from vmcloner_core import ssh
from vmcloner_core.drivers import HypervisorDriver
from vmcloner_core.errors import (
    BackendError,
    VmclonerError,
)
from vmcloner_core.model import Access, State
from vmcloner_core.plan import Readiness

BOOTING = "booting"
KEPT_LINES = 20
"""Lines of the console of a clone that doesn't get ready."""
MAX_SAID = 200
"""Characters of a console's line in a report."""
POLL = 0.2
"""Seconds between two polls."""
SLOW_POLL = 1.0
"""Seconds between two polls of what changes seldom or costs the host more."""
CHUNK = 65536
MAX_LINE = 4096
"""Bytes of a console line that a pattern is matched against: guests' output is hostile input."""
MAX_LOG = 16 * 1024**2
"""Bytes of a console log that are read to find its last line."""
KNOCK_TIMEOUT = 5.0
"""Seconds for a guest to answer a connection before the next attempt."""
KNOCKS = 256
"""Connections attempted at once: each takes a descriptor; a process often has only 1024."""
LOGIN_TIMEOUT = 30.0
"""Seconds for the first login. Each login without an answer doubles it: a guest under emulation on
a busy host needs long."""
LOGINS = max(4, 2 * (os.cpu_count() or 1))
"""Logins attempted at once."""
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\))")

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Awaited:
    """A clone to watch, and the readiness to wait for.

    :param access: returns how to reach it at an address.
    :param planned: its static address, None if it uses DHCP.
    """

    name: str
    driver: HypervisorDriver
    readiness: Readiness
    access: Callable[[str], Access] | None = None
    planned: str | None = None


class Sight:
    """The observed state of clones; each driver is asked for all of its clones at once."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self.logins = 0
        self.knocks = 0
        self._names: dict[int, list[str]] = {}
        self._seen: dict[tuple[str, int], tuple[float, Any]] = {}

    def look(self, clones: Iterable[Awaited]) -> None:
        """Begin a poll of these clones."""
        self.now = time.monotonic()
        self._names = {}
        for clone in clones:
            self._names.setdefault(id(clone.driver), []).append(clone.name)

    def forget(self) -> None:
        """Drop what was seen: it lacks clones that have arrived or started since."""
        self._seen.clear()

    def states(self, driver: HypervisorDriver, every: float = SLOW_POLL) -> Mapping[str, State]:
        """Return the states of a driver's clones, at most ``every`` seconds old."""
        return self._asked("states", driver, every, lambda _names: driver.states())

    def address(self, clone: Awaited) -> str | None:
        """Return a clone's address, None while it isn't known."""
        driver = clone.driver
        seen = self._asked("addresses", driver, SLOW_POLL, lambda _names: driver.addresses())
        return next(iter(seen.get(clone.name, ())), clone.planned)

    def reason(self, clone: Awaited) -> str:
        """Return why a clone is in its state."""
        driver = clone.driver
        found = self._asked("domains", driver, SLOW_POLL, lambda _names: driver.inspect().domains)
        return next((domain.reason for domain in found if domain.name == clone.name), "")

    def agent(self, clone: Awaited) -> bool:
        """Tell whether a clone's guest agent has reported."""
        driver = clone.driver
        if driver.agents is None:
            raise _missing(clone, "guest agents")
        return clone.name in self._asked("agents", driver, SLOW_POLL, driver.agents.reported)

    def _asked(
        self, what: str, driver: HypervisorDriver, every: float, ask: Callable[[Sequence[str]], T]
    ) -> T:
        when, seen = self._seen.get((what, id(driver)), (-every, None))
        if seen is None or self.now - when >= every:
            seen = ask(self._names.get(id(driver), []))
            self._seen[what, id(driver)] = (self.now, seen)
        return seen  # type: ignore[no-any-return]


# --- conditions ---------------------------------------------------------------------------------


class Condition(ABC):
    """One kind of readiness, of one clone that runs.

    ``lacks`` says in a few words what is still missing, ``phase`` what many clones do meanwhile,
    ``found`` is the clone's address, if that is needed and known.
    """

    def __init__(self, clone: Awaited) -> None:
        self.clone = clone
        self.lacks = ""
        self.phase = BOOTING
        self.found = ""

    @abstractmethod
    def met(self, sight: Sight) -> bool:
        """Tell whether the clone is ready now, without blocking.

        :raises VmclonerError: it will never be.
        """

    def close(self) -> None:
        """Close what was opened."""

    def last_line(self) -> str:
        """Return the last non-blank line of the clone's console."""
        return LastLine(self.clone.driver, self.clone.name).read()


class Running(Condition):
    """Its domain runs, which every readiness needs."""

    def met(self, sight: Sight) -> bool:  # noqa: ARG002
        """See :meth:`Condition.met`."""
        return True


class Agent(Condition):
    """Its guest agent has reported to the host."""

    def met(self, sight: Sight) -> bool:
        """See :meth:`Condition.met`."""
        return sight.agent(self.clone)


class Addressed(Condition):
    """Its address is known."""

    def met(self, sight: Sight) -> bool:
        """See :meth:`Condition.met`."""
        return self.address(sight) is not None

    def address(self, sight: Sight) -> str | None:
        """Return its address, None while it isn't known."""
        address = sight.address(self.clone)
        if address is None:
            self.lacks = "no address is known"
        self.found = address or self.found
        return address


class Port(Addressed):
    """One of its TCP ports accepts connections."""

    @property
    def awaited(self) -> str:
        """What is waited for once the address is known."""
        return f"port {self.port}"

    def __init__(self, clone: Awaited) -> None:
        super().__init__(clone)
        self.port = int(clone.readiness.argument or 0)
        self._knock: _Knock | None = None
        self._sight: Sight | None = None
        """Counts the knock, or the login after it."""
        self._next = 0.0

    def met(self, sight: Sight) -> bool:
        """See :meth:`Condition.met`."""
        address = self.address(sight)
        return address is not None and self.open(address, self.port, sight)

    def open(self, address: str, port: int, sight: Sight) -> bool:
        """Tell whether the port has answered; knocks until it does."""
        self.phase = f"waiting for {self.awaited}"
        if self._knock is None:
            if sight.now < self._next or sight.knocks >= KNOCKS:
                return False
            try:
                self._knock, self._sight = _Knock(address, port, sight.now), sight
            except OSError as error:
                self._next, self.lacks = sight.now + SLOW_POLL, f"no socket: {error.strerror}"
                return False
            sight.knocks += 1
            if not self._next:
                self.lacks = f"port {port} of {address} doesn't answer"
        answer = self._knock.answer(sight.now)
        if answer is None:
            return False
        self.close()
        self._next = sight.now + SLOW_POLL
        self.lacks = f"port {port} of {address}: {os.strerror(answer)}" if answer else ""
        return answer == 0

    def close(self) -> None:
        """See :meth:`Condition.close`."""
        if self._knock is not None and self._sight is not None:
            self._knock.close()
            self._sight.knocks -= 1
            self._knock = self._sight = None


class Ssh(Port):
    """Its user can log in by ssh, and it has its own host key."""

    awaited = "ssh"
    command = "true"
    """What is run in the guest, and succeeds once it is ready."""

    def __init__(self, clone: Awaited) -> None:
        super().__init__(clone)
        self._access: Access | None = None
        self._limit = LOGIN_TIMEOUT
        self._answer = ""
        """What the last login was answered."""
        self._login: _Login | None = None

    def met(self, sight: Sight) -> bool:
        """See :meth:`Condition.met`."""
        if self._login is not None:
            return self._let_in(self._login, sight)
        address = self.address(sight)
        if address is None or sight.logins >= LOGINS:
            return False
        access = self._access
        if access is None or access.address != address:
            assert self.clone.access is not None  # noqa: S101 - set for waits for ssh
            access = self._access = self.clone.access(address)
        if self.open(address, access.port, sight):
            try:
                login = _Login(access, sight.now, self._limit, self.command)
                self._login, self._sight = login, sight
            except OSError as error:
                self.lacks = f"ssh login: {error.strerror}"
                return False
            self.lacks = self._answer or "no answer to the ssh login"
            sight.logins += 1
        return False

    def _let_in(self, login: _Login, sight: Sight) -> bool:
        answer = login.answer(sight.now)
        if answer is None:
            return False
        if login.late:
            self._limit *= 2
        step = ssh.next_step(self._access, answer) if self._access is not None else None
        self.lacks = self._answer = f"{answer} ({step})" if step else answer
        self.close()
        return not answer

    def close(self) -> None:
        """See :meth:`Condition.close`."""
        super().close()
        if self._login is not None and self._sight is not None:
            self._login.close()
            self._sight.logins -= 1
            self._login = self._sight = None


class Console(Condition):
    """A line of its console matches."""

    def __init__(self, clone: Awaited) -> None:
        super().__init__(clone)
        self._pattern = re.compile(clone.readiness.argument)
        self.offset = 0
        self._tail = ""

    def met(self, sight: Sight) -> bool:  # noqa: ARG002 - a console is each clone's own
        """Read new console output; tell whether a line of it matches."""
        consoles, name = self.clone.driver.consoles, self.clone.name
        if consoles is None:
            raise _missing(self.clone, "consoles")
        data, self.offset = consoles.read(name, self.offset, CHUNK)
        if not data:
            return False
        *lines, rest = (self._tail + plain_text(data)).split("\n")
        self._tail = rest[-MAX_LINE:]
        # A prompt ends without a newline.
        return any(self._pattern.search(line[:MAX_LINE]) for line in (*lines, self._tail))


class CloudInit(Condition):
    """Its cloud-init has finished: its console says so, or its result file is there."""

    PATTERN = r"Cloud-init v\. \S{1,80} finished at "

    def __init__(self, clone: Awaited) -> None:
        super().__init__(clone)
        readiness = attrs.evolve(clone.readiness, argument=self.PATTERN)
        self._console = Console(attrs.evolve(clone, readiness=readiness))
        self._ssh = _CloudInitResult(clone)

    def met(self, sight: Sight) -> bool:
        """See :meth:`Condition.met`."""
        has_console = self.clone.driver.consoles is not None
        if has_console and self._console.met(sight):
            return True
        try:
            done = self.clone.access is not None and self._ssh.met(sight)
        except VmclonerError as error:  # without a known host key, only its console tells
            if not has_console:
                raise
            self.lacks = error.message
            return False
        self.lacks, self.phase, self.found = self._ssh.lacks, self._ssh.phase, self._ssh.found
        return done

    def close(self) -> None:
        """See :meth:`Condition.close`."""
        self._ssh.close()


class _CloudInitResult(Ssh):
    """The file that cloud-init writes at its end, on a file system that is empty at each boot."""

    awaited = "cloud-init"
    command = (
        "test -e /run/cloud-init/result.json || { "
        "command -v cloud-init >/dev/null && echo cloud-init is running >&2 || "
        "echo cloud-init is not installed >&2; exit 1; }"
    )


CONDITIONS: Mapping[str, type[Condition]] = {
    "running": Running,
    "ip": Addressed,
    "port": Port,
    "ssh": Ssh,
    "cloud-init": CloudInit,
    "agent": Agent,
    "console": Console,
}


def has_said(driver: HypervisorDriver, name: str, readiness: Readiness) -> bool:
    """Tell whether a clone's console log has what a ``console`` readiness waits for."""
    if driver.consoles is None:
        return False
    console = Console(Awaited(name=name, driver=driver, readiness=readiness))
    with contextlib.suppress(VmclonerError):
        before = -1
        while console.offset != before and console.offset <= MAX_LOG:
            before = console.offset
            if console.met(Sight()):
                return True
    return False


class _Knock:
    """An attempt at a TCP connection."""

    def __init__(self, address: str, port: int, now: float) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._deadline = now + KNOCK_TIMEOUT
        self._error = self._socket.connect_ex((address, port))

    def answer(self, now: float) -> int | None:
        """Return 0 once it is made, an errno once it failed, None until then."""
        if self._error not in (0, errno.EINPROGRESS):
            return self._error
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        if not poll.poll(0):
            return errno.ETIMEDOUT if now > self._deadline else None
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class _Login:
    """An ssh login in progress: non-interactive, running a command."""

    def __init__(self, access: Access, now: float, limit: float, command: str) -> None:
        self.late = False
        seconds = f"{max(1, limit):.0f}"
        argv = ssh.command(
            access, command, BatchMode="yes", ConnectTimeout=seconds, LogLevel="ERROR"
        )
        self._deadline = now + limit
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the login
        try:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._said
            )
        except FileNotFoundError as error:
            self._said.close()
            raise BackendError("ssh isn't installed", hint="install openssh-client") from error
        except OSError:
            self._said.close()
            raise

    def answer(self, now: float) -> str | None:
        """Return "" once it succeeded, the reason once it failed, None until then."""
        code = self._process.poll()
        if code is None:
            self.late = now > self._deadline
            return "the ssh login takes too long" if self.late else None
        if code == 0:
            return ""
        self._said.seek(0)
        lines = plain_text(self._said.read(CHUNK)).strip().splitlines() or [
            f"ssh exited with {code}"
        ]
        return lines[-1].strip()[:MAX_LINE]

    def close(self) -> None:
        """Kill the login, if it is still running."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
        self._said.close()


def plain_text(data: bytes) -> str:
    """Return a guest's output as text, without escape sequences."""
    return _ESCAPES.sub("", data.decode(errors="replace").replace("\r", "\n"))


def _missing(clone: Awaited, what: str) -> BackendError:
    return BackendError(
        f"{clone.name}: hypervisor {clone.driver.name!r} has no {what} to wait for",
        hint="--for running, ip, port:N or ssh",
    )


class LastLine:
    """The last non-blank lines of a clone's console; only what is new is read again."""

    def __init__(self, driver: HypervisorDriver, name: str) -> None:
        self._consoles = driver.consoles
        self._name = name
        self._offset = 0
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)

    def text(self) -> str:
        """Return the last :data:`KEPT_LINES` lines as they are now."""
        self.read()
        return "\n".join(line[:MAX_SAID] for line in self._lines)

    def read(self) -> str:
        """Return the last line as it is now; empty if there is none, or it can't be read."""
        read = 0
        with contextlib.suppress(Exception):  # the line is only a help in a message
            while self._consoles is not None and read < MAX_LOG:
                data, self._offset = self._consoles.read(self._name, self._offset, CHUNK)
                lines = (line.strip() for line in plain_text(data).split("\n"))
                self._lines.extend(line[:MAX_LINE] for line in lines if line)
                read += CHUNK
                if len(data) < CHUNK:
                    break
        return self._lines[-1] if self._lines else ""
