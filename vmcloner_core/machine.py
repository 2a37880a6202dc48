"""One running clone, as a test uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from vmcloner_core import remote, ssh, transfers
from vmcloner_core.errors import HostCommandError, shown
from vmcloner_core.model import Access, Outcome
from vmcloner_core.plan import RunResult
from vmcloner_core.remote import Answer
from vmcloner_core.transfers import Copied

SNAPSHOT = "test"
JOURNAL = (
    "journalctl -b --no-pager -n {lines} 2>/dev/null || logread 2>/dev/null | tail -n {lines} "
    "|| dmesg | tail -n {lines}"
)
MAX_CONSOLE = 64 * 1024
"""Bytes of a console, its last."""


class Works(Protocol):
    """What a machine needs of an engine."""

    def access(self, *targets: str) -> tuple[Outcome[Access], ...]:
        """Return how to reach clones."""
        ...

    def read_console(self, name: str, offset: int = 0, limit: int = 65536) -> tuple[bytes, int]:
        """Return what a clone's console has said."""
        ...

    def reset(self, *targets: str, ready: bool = ...) -> RunResult:
        """Reset clones."""
        ...

    def create_snapshot(self, *targets: str, name: str, memory: bool = False) -> RunResult:
        """Take snapshots."""
        ...

    def revert_snapshot(
        self, *targets: str, name: str, force: bool = False, start: bool = False
    ) -> RunResult:
        """Revert clones to snapshots."""
        ...

    def delete_snapshot(self, *targets: str, name: str) -> RunResult:
        """Delete snapshots."""
        ...


class Machine:
    """A clone that somebody has made or taken for himself. Not thread-safe.

    :param holder: tells its claim from others; None if it isn't of a pool.
    :param pool: the name of its pool. :param reach: returns how it is reached, if that is known
        without asking the host.
    """

    def __init__(
        self,
        engine: Works,
        name: str,
        *,
        pool: str | None = None,
        holder: str | None = None,
        reach: Callable[[], Access] | None = None,
    ) -> None:
        self.name = name
        self.pool = pool
        self.holder = holder
        self._engine = engine
        self._reach = reach
        self._access: Access | None = None

    def __repr__(self) -> str:
        return f"<Machine {self.name}>"

    @property
    def access(self) -> Access:
        """How to reach it by ssh. :raises VmclonerError: it can't be reached; says why."""
        if self._access is None:
            self._access = self._reach() if self._reach is not None else self._asked()
        return self._access

    def _asked(self) -> Access:
        (outcome,) = self._engine.access(self.name)
        return outcome.unwrap()

    def ssh_config(self) -> str:
        """Return an ssh_config(5) with which ``ssh NAME`` reaches it; for Testinfra and others."""
        return ssh.config([self.access])

    def ansible_vars(self) -> dict[str, object]:
        """Return the variables with which Ansible reaches it, as of a host in an inventory."""
        from vmcloner_core import ansible

        return ansible.connection(self.access)

    def exec(self, command: str, *, timeout: float = 60.0) -> Answer:
        """Run a command by ssh; returns its exit code and output.

        :param command: for the guest's shell. :param timeout: seconds, with the login.
        :raises VmclonerError: it could not be reached, or the command did not end.
        """
        (answer,) = remote.run([self.access], command, timeout=timeout)
        if answer.error is not None:
            raise answer.error
        return answer

    def ssh(self, command: str, *, timeout: float = 60.0) -> str:
        """Run a command by ssh that must succeed; returns what it printed, as text.

        :raises HostCommandError: it failed; has the end of what it said.
        """
        answer = self.exec(command, timeout=timeout)
        if answer.code:
            told = (answer.stderr or answer.stdout).decode(errors="replace").strip()
            raise HostCommandError(
                f"{self.name}: {shown(command, 80)} exited with {answer.code}: {shown(told[-400:])}"
            )
        return answer.stdout.decode(errors="replace")

    def put(
        self, *files: Path | str, to: str, recursive: bool = False, timeout: float = 600.0
    ) -> Copied:
        """Copy files of this host to it; see :meth:`Engine.put`."""
        paths = [Path(file) for file in files]
        return _whole(
            transfers.put([self.access], paths, to, recursive=recursive, timeout=timeout, jobs=1)
        )

    def get(
        self,
        *paths: str,
        folder: Path,
        recursive: bool = False,
        max_size: int = 4 * 1024**3,
        timeout: float = 600.0,
    ) -> Copied:
        """Copy files from it into a folder; see :meth:`Engine.get`. ``max_size`` in bytes."""

        def place(_name: str) -> tuple[Path, str | None]:
            return folder, None

        return _whole(
            transfers.get(
                [self.access],
                paths,
                place,
                recursive=recursive,
                max_size=max_size,
                timeout=timeout,
                jobs=1,
            )
        )

    def console(self) -> str:
        """Return the last :data:`MAX_CONSOLE` bytes that its console has said, as text."""
        return b"".join(self._read())[-MAX_CONSOLE:].decode(errors="replace")

    def _read(self) -> Iterator[bytes]:
        offset = 0
        while True:
            data, offset = self._engine.read_console(self.name, offset)
            if not data:
                return
            yield data

    def journal(self, lines: int = 200) -> str:
        """Return the end of the guest's log of this boot, by ssh: its journal, else syslog."""
        return self.exec(JOURNAL.format(lines=int(lines))).stdout.decode(errors="replace")

    def reset(self) -> None:
        """Reset it to its template, and wait until it is ready again."""
        self._engine.reset(self.name, ready=True)
        self._anew()

    def snapshot(self, name: str = SNAPSHOT, *, memory: bool = True) -> None:
        """Take a snapshot; one of that name is replaced. With memory, it goes on from there."""
        self._engine.delete_snapshot(self.name, name=name)
        self._engine.create_snapshot(self.name, name=name, memory=memory)

    def revert(self, name: str = SNAPSHOT) -> None:
        """Make it what it was at a snapshot; it runs again afterwards."""
        self._engine.revert_snapshot(self.name, name=name, force=True, start=True)
        self._anew()

    def _anew(self) -> None:
        self._access, self._reach = None, None


def _whole(copied: tuple[Copied, ...]) -> Copied:
    (one,) = copied
    if one.error is not None:
        raise one.error
    return one
