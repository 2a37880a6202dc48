"""What Dask runs in the worker beside a host: tasks that pass text to engines' processes.

A controller's session is the result of a task, :func:`begin`: it lives as long as the scheduler
keeps that result for the controller. So it ends when the controller ends, in whatever way, and a
controller sees at once that the worker is gone. Dask may run any task again: a session that is
begun again gets another id, which no call has; a call of another session is refused, and one that
was begun is not begun again.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import threading
from typing import Any

import dask
from distributed import get_worker

from vmcloner_core.hosts.carrier import ANSWER

WATCH_EVERY = 1.0
"""Seconds between looks whether a session is still wanted."""
ALIVE = frozenset({"executing", "long-running", "memory"})
"""States of the task of a session that is wanted."""
GONE = "g"
"""The first character of what says that an engine's process has ended."""
_sessions: dict[str, Session] = {}


class Session:
    """An engine's process for one controller.

    :param key: the session's task. :param topic: where the controller listens.
    """

    def __init__(self, worker: Any, key: str, topic: str, config: str | None) -> None:
        self.id = secrets.token_hex(16)
        self._worker = worker
        self._key = key
        self._topic = topic
        self._lock = threading.Lock()
        self._begun: set[int] = set()
        self._answers: dict[int, str] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "vmcloner_dask.engine", config or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C at the worker's terminal ends it by its input
        )
        for target in (self._read, self._watch):
            threading.Thread(target=target, name="vmcloner", daemon=True).start()

    def call(self, number: int, name: str, text: str) -> None:
        """Begin a call, once."""
        with self._lock:
            if number in self._begun:
                return
            self._begun.add(number)
        self._write(f"{number} {name} {text}\n")

    def take(self, number: int) -> str:
        """Return a call's answer, once."""
        with self._lock:
            return self._answers.pop(number)

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it has a pipe
        with self._lock:
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it has a pipe
        for line in self._process.stdout:
            number, _, said = line.rstrip("\n").partition(" ")
            if said[:1] == ANSWER:
                with self._lock:
                    self._answers[int(number)] = said[1:]
                said = ANSWER
            self._tell(int(number), said)
        self._tell(0, GONE)
        _sessions.pop(self.id, None)
        self._process.kill()
        self._process.wait()

    def _tell(self, number: int, said: str) -> None:
        self._worker.log_event(self._topic, {"vmcloner": self.id, "number": number, "said": said})

    def _watch(self) -> None:
        """End the process when the session isn't wanted any more; else tell it that it is."""
        while (task := self._worker.state.tasks.get(self._key)) and task.state in ALIVE:
            with contextlib.suppress(OSError, ValueError):  # it has ended
                self._write("\n")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(WATCH_EVERY)
                return
        self._process.kill()


def begin(key: str, topic: str, config: str | None) -> str:
    """Begin a controller's session; returns its id.

    :param key: this task's own. :param config: the settings file here; None for the first that is.
    """
    if dask.config.get("distributed.worker.profile.enabled"):  # cpython#106883
        raise RuntimeError(
            "its worker's profiler may hang beside threads; start the worker with "
            "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False"
        )
    session = Session(get_worker(), key, topic, config)
    _sessions[session.id] = session
    return session.id


def call(session: str, number: int, name: str, text: str) -> None:
    """Begin a call in a session. :raises KeyError: there is no such session in this worker."""
    _sessions[session].call(number, name, text)


def take(session: str, number: int) -> str:
    """Return the answer of a call that has been answered, once."""
    return _sessions[session].take(number)
