"""The pool of connections, and daemons that are missing, forbidden, or go away in mid-batch."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import libvirt
import pytest

from vmcloner_core.errors import BackendError
from vmcloner_core.model import DomainSpec, Labels, State
from vmcloner_core.process import LocalRunner
from vmcloner_libvirt import connection
from vmcloner_libvirt.connection import REQUESTS, Connections, Unreachable
from vmcloner_libvirt.kvm import KvmDriver

ABSENT = "qemu+unix:///system?socket=/nonexistent/libvirt-sock"


class Bare(LocalRunner):
    """A host on which nothing is installed."""

    def which(self, program: str) -> str | None:
        return None


# --- why it can't be reached ------------------------------------------------------------------


def refuse(monkeypatch: pytest.MonkeyPatch, code: int, message: str, number: int) -> None:
    def fail(uri: str) -> Any:
        error = libvirt.libvirtError(message)
        where = (code, libvirt.VIR_FROM_RPC, message, libvirt.VIR_ERR_ERROR)
        error.err = (*where, "", "", "", number, -1)
        raise error

    monkeypatch.setattr(libvirt, "open", fail)


def test_a_daemon_that_does_not_run() -> None:
    start = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        Connections(ABSENT, 1, LocalRunner()).call(lambda c: c.getType(), about="host")
    assert caught.value.message == f"libvirt's daemon is not running ({ABSENT})"
    assert "libvirtd" in (caught.value.hint or "")
    assert time.monotonic() - start < 5, "a daemon that never answered isn't waited for"


def test_a_daemon_that_is_not_installed() -> None:
    with pytest.raises(BackendError) as caught:
        Connections(ABSENT, 1, Bare()).call(lambda c: c.getType(), about="host")
    assert "is not installed" in caught.value.message
    assert caught.value.hint == "apt-get install libvirt-daemon-system"


@pytest.mark.parametrize(
    ("code", "number", "message"),
    [
        (libvirt.VIR_ERR_SYSTEM_ERROR, errno.EACCES, "Permission denied"),
        (libvirt.VIR_ERR_AUTH_UNAVAILABLE, -1, "Permission denied"),
        (libvirt.VIR_ERR_AUTH_FAILED, -1, "Permission denied"),
        (
            libvirt.VIR_ERR_INTERNAL_ERROR,
            -1,
            "internal error: Unable to get system bus connection: Could not connect",
        ),
    ],
)
def test_a_daemon_that_forbids_it(
    monkeypatch: pytest.MonkeyPatch, code: int, number: int, message: str
) -> None:
    refuse(monkeypatch, code, message, number)
    for uri, session in (("qemu:///system", True), ("xen:///system", False)):
        with pytest.raises(Unreachable, match=f"no permission to use libvirt at {uri}") as caught:
            Connections(uri, 1, LocalRunner()).call(lambda c: c.getType(), about="host")
        hint = caught.value.hint or ""
        assert "sudo" in hint
        assert "group libvirt" in hint
        assert ("qemu:///session" in hint) is session


# --- the pool ---------------------------------------------------------------------------------


def test_the_pool_is_bounded_and_shared() -> None:
    pool = Connections("test:///default", 2, LocalRunner())
    lock, release = threading.Lock(), threading.Event()
    used: list[Any] = []

    def hold(link: Any) -> None:
        with lock:
            used.append(link)
        release.wait(10)

    threads = [
        threading.Thread(target=pool.call, args=(hold,), kwargs={"about": "x"})
        for _ in range(2 * REQUESTS + 3)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert len(used) == 2 * REQUESTS, "as many calls at once as the daemon takes, no more"
    assert len({id(link) for link in used}) == 2
    release.set()
    for thread in threads:
        thread.join(10)
    assert len(used) == 2 * REQUESTS + 3
    pool.close()


def test_one_call_after_the_other_needs_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = libvirt.open
    monkeypatch.setattr(libvirt, "open", lambda uri: (opened.append(uri), real(uri))[1])
    pool = Connections("test:///default", 4, LocalRunner())
    for _ in range(10):
        pool.call(lambda link: link.getType(), about="x")
    assert len(opened) == 1
    pool.close()


def broken() -> libvirt.libvirtError:
    error = libvirt.libvirtError("client socket is closed")
    code, domain = libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC
    error.err = (code, domain, "client socket is closed", libvirt.VIR_ERR_ERROR, "", "", "", -1, -1)
    return error


def test_what_broke_is_done_again_on_a_new_connection() -> None:
    pool = Connections("test:///default", 1, LocalRunner())
    seen: list[Any] = []

    def operation(link: Any) -> str:
        seen.append(link)
        if len(seen) < 3:
            raise broken()
        return "done"

    assert pool.call(operation, about="x") == "done"
    assert len({id(link) for link in seen}) == 3
    pool.close()


def test_a_daemon_that_was_silent_for_long_before_it_went_is_waited_for_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "RECONNECT", 0.2)
    pool = Connections("test:///default", 1, LocalRunner())
    seen: list[Any] = []

    def operation(link: Any) -> str:
        seen.append(link)
        if len(seen) == 1:
            time.sleep(0.3)  # as long as the keepalive takes
            raise broken()
        return "done"

    assert pool.call(operation, about="x") == "done"
    pool.close()


def test_a_daemon_that_stays_away_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RECONNECT", 0.5)
    pool = Connections("test:///default", 1, LocalRunner())

    def operation(link: Any) -> None:
        raise broken()

    with pytest.raises(Unreachable, match="lost the connection to test:///default"):
        pool.call(operation, about="x")
    pool.close()


def test_a_domain_made_by_the_call_that_broke_counts_as_made(
    paper: KvmDriver,
    new_labels: Callable[..., Labels],
    new_spec: Callable[..., DomainSpec],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a roll-back would leave it behind."""
    paper.states()
    keep = libvirt.open(paper.uri)  # or the test driver forgets all
    real = libvirt.virConnect.defineXMLFlags

    def define(self: Any, xml: str, flags: int) -> None:
        real(self, xml, flags)
        raise broken()

    monkeypatch.setattr(libvirt.virConnect, "defineXMLFlags", define)
    (outcome,) = paper.define([new_spec(new_labels())])
    assert outcome.ok
    assert outcome.changed
    (outcome,) = paper.define([new_spec(new_labels())])
    assert not outcome.changed
    keep.close()


# --- a daemon that goes away ------------------------------------------------------------------


@attrs.define
class Daemon:
    """A libvirtd of the test's own, in a mount namespace, with folders of its own."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    later: threading.Timer | None = None

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self.folder}/sock/libvirt-sock"

    def prepare(self) -> None:
        for name in ("run", "lib", "cache", "log", "etc", "sock"):
            (self.folder / name).mkdir()
        # What it knows of QEMU costs it ten seconds to find out.
        known = Path("/var/cache/libvirt/qemu")
        if known.exists():
            shutil.copytree(known, self.folder / "cache/qemu")
        config = f'unix_sock_dir = "{self.folder}/sock"\nauth_unix_rw = "none"\n'
        (self.folder / "etc/libvirtd.conf").write_text(config)
        # Without namespaces: in a chroot, where /dev is no devtmpfs, QEMU finds no devices in them.
        settings = 'stdio_handler = "file"\nnamespaces = []\n'
        (self.folder / "etc/qemu.conf").write_text(settings)

    def start(self) -> None:
        places = {
            "run": "/run/libvirt",
            "lib": "/var/lib/libvirt",
            "cache": "/var/cache/libvirt",
            "log": "/var/log/libvirt",
            "etc": "/etc/libvirt",
        }
        mounts = [f"mount --bind {self.folder}/{name} {at}" for name, at in places.items()]
        daemon = f"exec libvirtd --config {self.folder}/etc/libvirtd.conf"
        daemon += f" --pid-file {self.folder}/pid"
        self.process = subprocess.Popen(
            [
                "unshare",
                "-m",
                "--propagation",
                "private",
                "sh",
                "-ec",
                "\n".join([*mounts, daemon]),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "out").open("ab"),
            start_new_session=True,
        )

    def stop(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(120)  # on a busy machine SIGTERM takes long

    def restart(self, number: int, seconds: float) -> None:
        """End it now, and start it again in so many seconds."""
        self.stop(number)
        self.later = threading.Timer(seconds, self.start)
        self.later.start()

    def end(self) -> None:
        if self.later is not None:
            self.later.join()
        self.stop(signal.SIGKILL)
        for file in (self.folder / "run/qemu").glob("*.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                libvirt.open(self.uri).close()
            except libvirt.libvirtError:
                assert time.monotonic() < deadline, (self.folder / "out").read_text()
                time.sleep(0.1)
            else:
                return


@pytest.fixture
def daemon(place: Path) -> Iterator[Daemon]:
    folder = place / "libvirtd"
    folder.mkdir(mode=0o755)
    made = Daemon(folder)
    made.prepare()
    made.start()
    try:
        made.wait()
        yield made
    finally:
        made.end()


@pytest.mark.libvirt
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_a_daemon_that_restarts_in_mid_batch(
    daemon: Daemon,
    make_driver: Callable[..., KvmDriver],
    new_labels: Callable[..., Labels],
    new_guest: Callable[..., DomainSpec],
    number: signal.Signals,
) -> None:
    driver = make_driver(daemon.uri, accel="tcg")
    specs = [new_guest(new_labels(index)) for index in range(1, 201)]
    names = [spec.name for spec in specs]
    done = []
    for outcome in driver.define(specs):
        done.append(outcome)
        if len(done) == 60:
            daemon.restart(number, seconds=1.5)
    assert [outcome.error for outcome in done if not outcome.ok] == []
    assert all(outcome.changed for outcome in done)
    assert set(driver.states()) == set(names)
    # Guests outlive their daemon, too.
    assert [outcome.error for outcome in driver.start(names[:2]) if not outcome.ok] == []
    daemon.restart(number, seconds=1.0)
    assert [driver.states()[name] for name in names[:2]] == [State.RUNNING, State.RUNNING]
    assert [outcome.error for outcome in driver.destroy(names) if not outcome.ok] == []
    assert all(outcome.changed for outcome in driver.undefine(names))
    assert not driver.states()


@pytest.mark.libvirt
def test_a_daemon_that_never_comes_back(
    daemon: Daemon,
    make_driver: Callable[..., KvmDriver],
    new_labels: Callable[..., Labels],
    new_guest: Callable[..., DomainSpec],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "RECONNECT", 2.0)
    driver = make_driver(daemon.uri, accel="tcg")
    specs = [new_guest(new_labels(index)) for index in (1, 2, 3)]
    batch = driver.define(specs)
    assert next(batch).ok
    daemon.stop(signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(Unreachable, match="lost the connection") as caught:
        list(batch)
    assert time.monotonic() - start < 15
    assert caught.value.hint
    daemon.start()
    daemon.wait()
    assert set(driver.states()) == {"web-1"}
    assert [o.changed for o in driver.define(specs)] == [False, True, True]
    assert all(outcome.changed for outcome in driver.undefine([spec.name for spec in specs]))
