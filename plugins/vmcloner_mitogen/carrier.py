"""Calls by mitogen; see https://mitogen.networkgenomics.com/api.html."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mitogen.core
import mitogen.master

from vmcloner_core.errors import shown
from vmcloner_core.hosts.carrier import ANSWER, EVENT, Carrier, Event, Unreachable
from vmcloner_core.hosts.carrier import MAX_MESSAGE as MAX_TEXT
from vmcloner_core.model import RemoteHost
from vmcloner_mitogen import remote

CONNECTS_WITHIN = 20.0
"""Seconds to log in and to start Python."""
ALIVE_EVERY, ALIVE_MISSES = 5, 3
"""After 15 s without a sign of life, a host is given up (ssh_config(5), ServerAliveInterval)."""
MAX_MESSAGE = MAX_TEXT + 1024**2
"""Bytes of one message, here and on the hosts: a value, with room for what mitogen adds."""
SILENT = 60.0
"""Seconds without a word after which a call is given up: its Python there hangs."""
AT_ONCE = 32
"""Logins at once: each is a process that computes keys."""
MAX_LOGGED = logging.CRITICAL
"""mitogen's own messages are for its authors; ours say what matters."""
MAX_WARNINGS = 100
"""What hosts log is shown up to this number of lines, for all together."""
log = logging.getLogger(__name__)


class MitogenCarrier(Carrier):
    """Connections by the user's ssh: its configuration, keys, agent and known hosts."""

    def __init__(self) -> None:
        logging.getLogger("mitogen").setLevel(MAX_LOGGED)
        self._lock = threading.Lock()
        self._broker: Any = None
        self._router: Any = None
        self._contexts: dict[str, tuple[Any, str | None]] = {}
        self._warnings = 0

    def _started(self) -> Any:
        with self._lock:
            if self._router is None:
                self._broker = mitogen.master.Broker()
                self._router = mitogen.master.Router(self._broker, MAX_MESSAGE)
                self._router.unidirectional = True  # hosts can't reach each other through us
                self._router.responder.whitelist_prefix("mitogen")  # nor read our modules
                # mitogen's own handler would log under any name and at any level that a host gives.
                self._router.add_handler(
                    self._warned, handle=mitogen.core.FORWARD_LOG, overwrite=True
                )
            return self._router

    def _warned(self, message: Any) -> None:
        """Show a warning of a host, for example that it waits for another run."""
        if message.is_dead or self._warnings >= MAX_WARNINGS:
            return
        name, _level, text = message.data[:4096].decode(errors="replace").split("\0", 2)
        if name.partition(".")[0] == "mitogen":
            return
        self._warnings += 1
        source = getattr(self._router.context_by_id(message.src_id), "name", None)
        log.warning("host %s: %s", shown(str(source).removeprefix("ssh.")), shown(text))

    def connect(self, hosts: Sequence[RemoteHost]) -> dict[str, Unreachable]:
        """Log in to hosts; returns why some could not be reached."""
        missing = [host for host in hosts if host.name not in self._contexts]
        if not missing:
            return {}
        router = self._started()

        def attempt(host: RemoteHost) -> Unreachable | None:
            # Ctrl-C in a terminal goes to ssh too, and would end the connection: the run is to
            # end cleanly instead. A blocked signal stays blocked in the processes of a thread.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                context = router.ssh(
                    hostname=host.ssh,
                    python_path=python(host.python),
                    check_host_keys="enforce",
                    connect_timeout=CONNECTS_WITHIN,
                    keepalive_interval=ALIVE_EVERY,
                    keepalive_count=ALIVE_MISSES,
                    compression=False,
                )
            except mitogen.core.Error as error:
                return _unreachable(host.name, host.ssh, error)
            with self._lock:
                self._contexts[host.name] = (context, host.config)
            return None

        with ThreadPoolExecutor(min(AT_ONCE, len(missing)), "connect") as pool:
            found = dict(zip((h.name for h in missing), pool.map(attempt, missing), strict=True))
        return {name: error for name, error in found.items() if error is not None}

    def call(self, host: str, name: str, text: str, event: Event) -> str:
        """Make one call; its events come from the caller's thread."""
        context, config = self._context(host)
        receiver = mitogen.core.Receiver(self._router, respondent=context)
        try:
            begun = context.call_async(remote.call, receiver.to_sender(), name, text, config)
            begun.get(timeout=SILENT).unpickle()
            while True:
                said = _said(host, receiver.get(timeout=SILENT))
                if said[:1] == ANSWER:
                    return said[1:]
                if said[:1] == EVENT:
                    event(said[1:])
        except mitogen.core.TimeoutError as error:
            self._forget(host)
            raise Unreachable(
                f"host {host!r} gave no sign of life for {SILENT:.0f} s",
                hint=f"--without {host} leaves it out",
            ) from error
        except mitogen.core.ChannelError as error:
            self._forget(host)
            raise Unreachable(
                f"host {host!r} does not answer", hint="vmcloner host list"
            ) from error
        except mitogen.core.Error as error:
            raise _unreachable(host, host, error) from error
        finally:
            with contextlib.suppress(KeyError):  # it ended with its connection
                receiver.close()

    def _forget(self, host: str) -> None:
        """Have later calls of a host fail at once: it is gone, or hangs."""
        with self._lock:
            self._contexts.pop(host, None)

    def _context(self, host: str) -> tuple[Any, str | None]:
        with self._lock:
            if host not in self._contexts:
                raise Unreachable(f"host {host!r} is not connected", hint="vmcloner host list")
            return self._contexts[host]

    def close(self) -> None:
        """End all connections; the programs beside the hosts end with them."""
        with self._lock:
            broker, self._broker, self._router = self._broker, None, None
            self._contexts.clear()
        if broker is not None:
            broker.shutdown()
            broker.join()


def python(path: str) -> list[str]:
    """Return the words that start a Python there which imports only what is installed for it.

    mitogen replaces the first process by another Python without its options: the login's folder
    would be searched for modules. The environment stays.
    """
    return ["env", "-u", "PYTHONPATH", "PYTHONNOUSERSITE=1", "PYTHONSAFEPATH=1", path, "-I"]


def _said(host: str, message: Any) -> str:
    """Return the text of a host's message. :raises Unreachable: it holds something else."""
    try:
        said = message.unpickle()
    except mitogen.core.Error:
        raise
    except Exception as error:  # whatever a hostile pickle raises
        raise Unreachable(f"host {host!r} sent what can't be read") from error
    if not isinstance(said, str):
        raise Unreachable(f"host {host!r} sent what can't be read")
    return said


def _unreachable(host: str, ssh: str, error: BaseException) -> Unreachable:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("EOF on stream"):  # what ssh said comes after it
        lines = lines[1:] or ["ssh ended"]
    reason = shown(lines[-1] if lines else type(error).__name__, 200)
    if "No module named" in str(error):
        return Unreachable(
            f"host {host!r} has no vmcloner: {reason}", hint=f"vmcloner host add {host}"
        )
    return Unreachable(f"host {host!r} can't be reached: {reason}", hint=f"ssh {ssh}")
