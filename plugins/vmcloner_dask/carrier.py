"""Calls by Dask distributed; see https://distributed.dask.org/en/stable/api.html.

Each call is a short task that is pinned to its host by a resource, so neither a long run nor a
controller that waits for a lock keeps a worker busy. Events come by a topic of the controller's
client; an answer is fetched by another task when an event says that it is there.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import secrets
import threading
import time
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
from distributed import Client, Future, Security

from vmcloner_core.errors import shown
from vmcloner_core.hosts.carrier import ANSWER, EVENT, Carrier, Event, Unreachable
from vmcloner_core.model import RemoteHost
from vmcloner_dask import remote
from vmcloner_dask.engine import LOG
from vmcloner_dask.settings import DaskSettings

CONNECTS_WITHIN = 20.0
"""Seconds for the scheduler to answer, and for a worker to start an engine's process."""
SILENT = 60.0
"""Seconds without a word after which a call is given up."""
LOOK_EVERY = 0.5
"""Seconds between looks whether a host's session is still there."""
CLOSES_WITHIN = 5.0
"""Seconds to say so to the scheduler."""
MAX_WARNINGS = 100
"""What hosts log is shown up to this number of lines, for all together."""
FAILED = "f"
"""Put into a call's inbox if its task could not begin it."""
log = logging.getLogger(__name__)


@attrs.frozen
class _Session:
    """A session beside a host: its id there, and the future that keeps it alive."""

    host: str
    id: str
    future: Any

    @property
    def lost(self) -> bool:
        """Whether its worker, or the scheduler, has gone."""
        return bool(self.future.status != "finished")


class DaskCarrier(Carrier):
    """Connections to hosts by the scheduler of a cluster that has a worker beside each."""

    settings = DaskSettings

    def __init__(self, settings: DaskSettings) -> None:
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # ours say what matters
        self._where = settings
        self._lock = threading.Lock()
        self._client: Any = None
        self._sessions: dict[str, _Session] = {}
        self._inboxes: dict[tuple[str, int], queue.SimpleQueue[str]] = {}
        self._numbers = itertools.count(1)
        self._warnings = 0

    def _started(self) -> Any:
        """Return the client. :raises Unreachable: the scheduler does not answer."""
        where = self._where
        with self._lock:
            if self._client is None:
                security = Security(
                    require_encryption=where.encrypted,
                    **({"tls_ca_file": str(where.ca)} if where.ca else {}),
                    **({"tls_client_cert": str(where.cert)} if where.cert else {}),
                    **({"tls_client_key": str(where.key)} if where.key else {}),
                )
                try:
                    self._client = Client(
                        where.scheduler,
                        security=security,
                        timeout=CONNECTS_WITHIN,
                        set_as_default=False,
                        name="vmcloner",
                    )
                except Exception as error:  # of tornado, ssl, asyncio or distributed
                    reason = shown(str(error).strip().splitlines()[0] if str(error) else "", 200)
                    raise Unreachable(
                        f"the scheduler {where.scheduler} can't be reached: {reason}",
                        hint="is it running, and does its ca know this certificate?",
                    ) from error
                self._client.subscribe_topic(self._client.id, self._heard)
            return self._client

    def connect(self, hosts: Sequence[RemoteHost]) -> dict[str, Unreachable]:
        """Begin a session beside hosts; returns why some could not be reached."""
        missing = [host for host in hosts if host.name not in self._sessions]
        if not missing:
            return {}
        failed: dict[str, Unreachable] = {}
        try:
            workers = self._workers()
        except Unreachable as error:
            return dict.fromkeys((host.name for host in missing), error)
        begun = {}
        for host in missing:
            offering = workers.get(resource(host.name), 0)
            if offering == 1:
                begun[host.name] = self._begin(host)
            else:
                failed[host.name] = _not_one(host.name, offering)
        until = time.monotonic() + CONNECTS_WITHIN
        for name, future in begun.items():
            try:
                session = _Session(name, self._result(name, future, until), future)
            except Unreachable as error:
                failed[name] = error
                future.cancel()
            else:
                with self._lock:
                    self._sessions[name] = session
        return failed

    def _workers(self) -> dict[str, int]:
        """Return how many workers offer each resource."""
        client = self._started()
        try:
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
        except Exception as error:  # of tornado, asyncio or distributed
            raise Unreachable(f"the scheduler {self._where.scheduler} does not answer") from error
        found: dict[str, int] = {}
        for name in (name for worker in workers for name in worker["resources"]):
            found[name] = found.get(name, 0) + 1
        return found

    def _begin(self, host: RemoteHost) -> Any:
        key = f"vmcloner-session-{secrets.token_hex(16)}"
        return self._submit(host.name, key, remote.begin, key, self._client.id, host.config)

    def _submit(self, host: str, key: str, task: Callable[..., object], *values: object) -> Any:
        """Have a task run beside a host; Dask does not move it elsewhere."""
        return self._client.submit(
            task,
            *values,
            key=key,
            pure=False,
            resources={resource(host): 1},
            allow_other_workers=False,
            retries=0,
        )

    def call(self, host: str, name: str, text: str, event: Event) -> str:
        """Make one call; its events come from the caller's thread."""
        with self._lock:
            session = self._sessions.get(host)
        if session is None:
            raise Unreachable(f"host {host!r} is not connected", hint="vmcloner host list")
        number, inbox = next(self._numbers), queue.SimpleQueue[str]()
        with self._lock:
            self._inboxes[session.id, number] = inbox
        key = f"vmcloner-call-{secrets.token_hex(16)}"
        begun = self._submit(host, key, remote.call, session.id, number, name, text)
        begun.add_done_callback(lambda done: self._begun(done, inbox))
        try:
            for said in self._said(session, inbox):
                if said[:1] == EVENT:
                    event(said[1:])
            key = f"vmcloner-answer-{secrets.token_hex(16)}"
            answer = self._submit(host, key, remote.take, session.id, number)
            return self._result(host, answer, time.monotonic() + SILENT)
        except Unreachable:
            self._forget(session)
            raise
        finally:
            with self._lock:
                self._inboxes.pop((session.id, number), None)
            begun.release()

    @staticmethod
    def _begun(done: Future, inbox: queue.SimpleQueue[str]) -> None:
        if done.status != "finished":
            inbox.put(FAILED)

    def _said(self, session: _Session, inbox: queue.SimpleQueue[str]) -> Iterator[str]:
        """Yield what a call sends back until it is answered.

        :raises Unreachable: its engine or worker is gone, or silent.
        """
        heard = time.monotonic()
        while True:
            try:
                said = inbox.get(timeout=LOOK_EVERY)
            except queue.Empty:
                said = remote.GONE if session.lost else ""
            if said[:1] == ANSWER:
                return
            if said[:1] in (FAILED, remote.GONE):
                raise _does_not_answer(session.host)
            if said:
                heard = time.monotonic()
                yield said
            elif time.monotonic() - heard > SILENT:
                raise Unreachable(
                    f"host {session.host!r} gave no sign of life for {SILENT:.0f} s",
                    hint=f"--without {session.host} leaves it out",
                )

    def _heard(self, event: tuple[float, Any]) -> None:
        """Take a message of a worker: put it into the inbox of its call."""
        message = event[1]
        if not isinstance(message, dict) or "vmcloner" not in message:
            return  # the scheduler's own
        session, number, said = (message.get(key) for key in ("vmcloner", "number", "said"))
        if not isinstance(said, str):
            return
        if said[:1] == LOG:
            self._warn(str(session), said[1:])
        with self._lock:
            for (of, call), inbox in self._inboxes.items():
                if of == session and (call == number or said[:1] == remote.GONE):
                    inbox.put(said)

    def _warn(self, session: str, text: str) -> None:
        """Show a warning of a host, for example that it waits for another run."""
        with self._lock:
            hosts = [each.host for each in self._sessions.values() if each.id == session]
            shows = bool(hosts) and self._warnings < MAX_WARNINGS
            self._warnings += shows
        if shows:
            log.warning("host %s: %s", hosts[0], shown(text[:4096]))

    def _result(self, host: str, future: Any, until: float) -> str:
        """Return a task's result. :raises Unreachable: it has none by then, or no text."""
        try:
            said = future.result(timeout=max(0.0, until - time.monotonic()))
        except (Exception, CancelledError) as error:
            raise _unreachable(host, error) from error
        if not isinstance(said, str):
            raise Unreachable(f"host {host!r} sent what can't be read")
        return said

    def _forget(self, session: _Session) -> None:
        """Have later calls of a host fail at once: it is gone, or hangs."""
        with self._lock:
            self._sessions.pop(session.host, None)
        session.future.release()

    def close(self) -> None:
        """End the connection; the engines beside the hosts end with it."""
        with self._lock:
            client, self._client = self._client, None
            self._sessions.clear()
        if client is not None:
            with contextlib.suppress(Exception):  # the scheduler may be gone
                client.close(timeout=CLOSES_WITHIN)


def resource(host: str) -> str:
    """Return what the worker beside a host offers to be found."""
    return f"vmcloner-{host}"


def _not_one(host: str, workers: int) -> Unreachable:
    if workers:
        return Unreachable(
            f"host {host!r} has {workers} workers of Dask", hint="leave one of them running"
        )
    return Unreachable(
        f"host {host!r} can't be reached: no worker of Dask offers {resource(host)}",
        hint=f'there: dask worker … --resources "{resource(host)}=1"',
    )


def _does_not_answer(host: str) -> Unreachable:
    return Unreachable(f"host {host!r} does not answer", hint="vmcloner host list")


def _unreachable(host: str, error: BaseException) -> Unreachable:
    if isinstance(error, ModuleNotFoundError):
        return Unreachable(
            f"host {host!r} has no vmcloner: {shown(str(error), 200)}",
            hint=f"vmcloner host add {host}",
        )
    if isinstance(error, RuntimeError):  # what remote.begin needs
        return Unreachable(f"host {host!r} can't be used: {shown(str(error), 200)}")
    return _does_not_answer(host)
