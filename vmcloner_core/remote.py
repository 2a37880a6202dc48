"""Run a command on many clones at once by ssh (with ClusterShell), with separate outputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from vmcloner_core import ssh
from vmcloner_core.errors import (
    BackendError,
    DeadlineExceeded,
    HostCommandError,
    InvalidRequest,
    VmclonerError,
)
from vmcloner_core.model import Access
from vmcloner_core.units import format_seconds

MAX_OUTPUT = 4 * 1024**2
"""Bytes kept of each of the two output streams of a command, per clone."""
MAX_COMMAND = 128 * 1024 - 1
"""Bytes of a command: the limit of Linux for one argument (execve(2))."""
FANOUT = 32
"""Number of clones on which the command runs at the same time."""
NOT_CONNECTED = 255
"""ssh's own exit code; a command that exits with it cannot be distinguished."""


@attrs.frozen(kw_only=True)
class Answer:
    """The result of a command on one clone.

    :param code: its exit code, None if it did not finish.
    :param error: why the clone could not be reached, or the command did not finish.
    :param truncated: whether it printed more than :data:`MAX_OUTPUT`.
    """

    name: str
    code: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    error: VmclonerError | None = None
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """Whether the command ran and exited with 0."""
        return self.error is None and self.code == 0


def run(
    accesses: Sequence[Access],
    command: str,
    *,
    timeout: float,
    jobs: int = FANOUT,
    done: Callable[[Answer], None] = lambda _answer: None,
) -> tuple[Answer, ...]:
    """Run a command on all clones; return one answer per clone, in the same order.

    :param command: interpreted by the guests' shells. Its standard input is empty.
    :param timeout: seconds that it may take on each clone, including the login.
    :param done: called with each answer as soon as it is available.
    :raises BackendError: ssh is not installed. :raises InvalidRequest: the command is too long.
    """
    from ClusterShell.Task import task_self

    if not accesses:
        return ()
    if len(command.encode(errors="surrogateescape")) > MAX_COMMAND:
        raise InvalidRequest(
            f"command: longer than {MAX_COMMAND} bytes",
            hint="let the guests fetch a script instead",
        )
    _check_ssh()
    by_name = {access.name: access for access in accesses}
    login = ssh.unattended(timeout)
    argvs = {access.name: ssh.command(access, command, **login) for access in accesses}
    answers: dict[str, Answer] = {}

    def answered(answer: Answer) -> None:
        answers[answer.name] = answer
        done(answer)

    task = task_self()
    task.set_info("fanout", jobs)
    worker = _worker_class()(
        argvs,
        lambda name, code, kept, cut: answered(_answer(by_name[name], code, kept, cut, timeout)),
        timeout,
    )
    task.schedule(worker)
    worker.set_write_eof()
    try:
        task.run()
    except BaseException:
        task.abort()
        raise
    return tuple(answers[access.name] for access in accesses)


def fold(answers: Sequence[Answer], output: Callable[[Answer], bytes]) -> list[tuple[bytes, str]]:
    """Return (text, node set) for each distinct text, grouped and ordered like ``clush -b``."""
    from ClusterShell.MsgTree import MsgTree
    from ClusterShell.NodeSet import NodeSet

    tree = MsgTree()
    for answer in answers:
        for line in output(answer).splitlines():
            tree.add(answer.name, line)
    place = {answer.name: number for number, answer in enumerate(answers)}
    groups = [(bytes(message), list(names)) for message, names in tree.walk()]
    groups.sort(key=lambda group: (-len(group[1]), min(place[name] for name in group[1])))
    return [(text, str(NodeSet.fromlist(names, resolver=False))) for text, names in groups]


def _check_ssh() -> None:
    if not any(os.access(f"{folder}/ssh", os.X_OK) for folder in os.get_exec_path()):
        raise BackendError("ssh isn't installed", hint="install openssh-client")


def _answer(
    access: Access, code: int | None, kept: dict[str, bytearray], cut: bool, timeout: float
) -> Answer:
    name = access.name
    stdout, stderr = (bytes(kept.get(stream, b"")) for stream in ("stdout", "stderr"))
    error: VmclonerError | None = None
    if code is None:
        error = DeadlineExceeded(f"{name}: not done within {format_seconds(timeout)}")
    elif code == NOT_CONNECTED:
        lines = stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        said = lines[-1].strip()[:500]
        error = HostCommandError(f"{name}: ssh: {said}", hint=ssh.next_step(access, said))
    return Answer(
        name=name,
        code=None if error is not None else code,
        stdout=stdout,
        stderr=stderr,
        error=error,
        truncated=cut,
    )


def _worker_class() -> Any:
    """Return a ClusterShell worker that uses our argv and limits the output of guests.

    Imported late: ClusterShell reads the host's configuration at import.
    """
    from ClusterShell.Worker.Exec import ExecClient, ExecWorker

    class Client(ExecClient):  # type: ignore[misc]
        """One ssh process."""

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self.kept: dict[str, bytearray] = {}
            self.cut = False

        def _build_cmd(self) -> tuple[list[str], None]:
            return self.worker.argvs[self.key], None

        def _handle_read(self, sname: str) -> None:
            data = self._read(sname)
            kept = self.kept.setdefault(sname, bytearray())
            room = MAX_OUTPUT - len(kept)
            kept += data[:room]
            self.cut = self.cut or len(data) > room

    class Worker(ExecWorker):  # type: ignore[misc]
        """All ssh processes."""

        SHELL_CLASS = Client

        def __init__(
            self, argvs: dict[str, list[str]], ended: Callable[..., None], timeout: float
        ) -> None:
            self.argvs = argvs
            self._ended = ended
            # The real command is in argvs: the worker would expand placeholders in it.
            super().__init__(
                ",".join(argvs), handler=None, timeout=timeout, command="ssh", stderr=True
            )
            self._by_name = {client.key: client for client in self._clients}

        def _on_node_close(self, node: str, rc: int) -> None:
            super()._on_node_close(node, rc)
            self._tell(node, rc)

        def _on_node_timeout(self, node: str) -> None:
            super()._on_node_timeout(node)
            self._tell(node, None)

        def _tell(self, node: str, code: int | None) -> None:
            client = self._by_name[node]
            self._ended(node, code, client.kept, client.cut)

    return Worker
