"""The kinds of readiness, and how many clones must reach it."""

import errno
import os
import socket
import threading
import time
from pathlib import Path

import attrs
import pytest

from vmcloner_core.errors import DeadlineExceeded, InvalidRequest, PartialFailure, WrongState
from vmcloner_core.model import Access, State
from vmcloner_core.plan import Quota, Readiness
from vmcloner_core.readiness import Awaited
from vmcloner_core.watching import watch


class Machines:
    """As much of a hypervisor as the watcher asks for; counts what it is asked."""

    def __init__(self, **addresses):
        self.known, self.asked, self.said = addresses, [], b""
        self.running = {f"web-{n}": State.RUNNING for n in range(1, 21)}

    def states(self):
        self.asked.append("states")
        return self.running

    def addresses(self):
        self.asked.append("addresses")
        return self.known

    @property
    def agents(self):
        return self

    def reported(self, names):
        self.asked.append("agents")
        return frozenset(names[:1])

    @property
    def consoles(self):
        return self

    def read(self, _name, offset, limit):
        data = self.said[offset : offset + limit]
        return data, offset + len(data)


def awaited(driver, text, *names, timeout=1.0):
    readiness = Readiness.parse(text, timeout=timeout)
    return [Awaited(name=name, driver=driver, readiness=readiness) for name in names]


def outcomes(driver, text, *names, timeout=1.0):
    return {o.key: o for o in watch(awaited(driver, text, *names, timeout=timeout))}


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_an_address_that_comes_later():
    driver = Machines()

    def asked(fetch=driver.addresses):
        if driver.asked.count("addresses"):
            driver.known["web-1"] = ("192.0.2.7",)
        return fetch()

    driver.addresses = asked
    assert outcomes(driver, "ip", "web-1", timeout=5)["web-1"].ok


def test_what_is_first_seen_is_told_once():
    driver, told = Machines(), []
    names = [f"web-{n}" for n in range(1, 21)]

    def states(fetch=driver.states):
        if driver.asked.count("states") == 1:
            driver.said = b"\r\n \x1b[1mhello\x1b[0m\r\nmore"
            driver.known = dict.fromkeys(names, ("192.0.2.7",))
        return fetch()

    driver.states = states
    clones = awaited(driver, "ip", *names, timeout=5)
    assert all(o.ok for o in watch(clones, seen=lambda *seen: told.append(seen)))
    whole = {(name, *seen) for name in names for seen in (("output", "hello"), ("ip", ""))}
    whole |= {(name, "ip", "192.0.2.7") for name in names}
    assert sorted(told) == sorted(whole)


def test_a_silent_console_is_listened_to_while_others_get_ready():
    driver, told = Machines(), []
    said = {"web-1": b"here\n"}
    driver.read = lambda name, offset, _limit: (
        said.get(name, b"")[offset:],
        len(said.get(name, b"")),
    )
    for outcome in watch(
        awaited(driver, "console:here", "web-1", "web-2", timeout=5),
        seen=lambda *seen: told.append(seen),
    ):
        said["web-2"] = b"me too, and here\n"
        assert outcome.ok
    assert told == [
        ("web-1", "output", "here"),
        ("web-1", "console", ""),
        ("web-2", "output", "me too, and here"),
        ("web-2", "console", ""),
    ]


def test_a_clone_that_was_started_again_is_looked_at_afresh():
    driver = Machines()
    driver.states = lambda: dict(driver.running)
    driver.running["web-1"] = State.STOPPED
    started = []

    def speak():
        driver.said = b"up"

    def again(names):
        started.extend(names)
        driver.running["web-1"] = State.RUNNING
        threading.Timer(0.6, speak).start()
        return dict.fromkeys(names)

    (outcome,) = watch(awaited(driver, "console:up", "web-1", timeout=10), again=again)
    assert outcome.ok
    assert started == ["web-1"]


def test_who_has_no_address_is_told_apart_with_its_last_words():
    driver = Machines(**{"web-1": ("192.0.2.7",)})
    driver.said = b"booting\r\n\x1b[31mno DHCP\x1b[0m\r\n\r\n"
    found = outcomes(driver, "ip", "web-1", "web-2", timeout=0.5)
    assert found["web-1"].ok
    assert isinstance(found["web-2"].error, DeadlineExceeded)
    assert "no address is known" in str(found["web-2"].error)
    assert "'no DHCP'" in str(found["web-2"].error)


def test_ports(listener):
    driver = Machines(**{"web-1": ("127.0.0.1",), "web-2": ("127.0.0.2",)})
    found = outcomes(driver, f"port:{listener}", "web-1", "web-2", timeout=1.5)
    assert found["web-1"].ok
    assert "Connection refused" in str(found["web-2"].error)


def test_more_clones_than_can_be_knocked_at(listener, monkeypatch):
    monkeypatch.setattr("vmcloner_core.readiness.KNOCKS", 3)
    names = [f"web-{n}" for n in range(1, 21)]
    # Half of them are where nobody answers (TEST-NET-1), and hold their places for a while.
    driver = Machines(**{n: ("192.0.2.1" if i % 2 else "127.0.0.1",) for i, n in enumerate(names)})
    monkeypatch.setattr("vmcloner_core.readiness.KNOCK_TIMEOUT", 0.1)
    found = outcomes(driver, f"port:{listener}", *names, timeout=6)
    assert [found[name].ok for name in names] == [True, False] * 10


def test_no_descriptor_left_is_a_reason_to_wait(listener, monkeypatch):
    def no_socket(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    driver = Machines(**{"web-1": ("127.0.0.1",)})
    with monkeypatch.context() as patched:
        patched.setattr("vmcloner_core.readiness.socket.socket", no_socket)
        (found,) = outcomes(driver, f"port:{listener}", "web-1", timeout=0.5).values()
    assert isinstance(found.error, DeadlineExceeded)
    assert "Too many open files" in str(found.error)
    assert outcomes(driver, f"port:{listener}", "web-1")["web-1"].ok


def test_a_port_that_opens_later(monkeypatch):
    monkeypatch.setattr("vmcloner_core.readiness.SLOW_POLL", 0.1)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        driver = Machines(**{"web-1": ("127.0.0.1",)})
        clones = awaited(driver, f"port:{server.getsockname()[1]}", "web-1", timeout=10)
        looks = []

        def more():
            looks.append(1)
            if len(looks) == 3:
                server.listen()
            return ()

        (outcome,) = watch(clones, more=more)
        assert outcome.ok
        assert len(looks) >= 3


def test_each_login_that_is_not_answered_gets_more_time(listener, monkeypatch):
    limits = []

    def silent(*_words, ConnectTimeout, **_more):  # noqa: N803 - ssh's own
        limits.append(int(ConnectTimeout))
        return ["sleep", "60"]

    monkeypatch.setattr("vmcloner_core.readiness.ssh.command", silent)
    monkeypatch.setattr("vmcloner_core.readiness.LOGIN_TIMEOUT", 1.0)
    monkeypatch.setattr("vmcloner_core.readiness.SLOW_POLL", 0.1)
    driver = Machines(**{"web-1": ("127.0.0.1",)})
    access = Access(
        name="web-1", address="127.0.0.1", user="u", port=listener, known_hosts=Path("/none")
    )
    (clone,) = awaited(driver, "ssh", "web-1", timeout=6)
    (outcome,) = watch([attrs.evolve(clone, access=lambda _address: access)])
    assert isinstance(outcome.error, DeadlineExceeded)
    assert limits[:2] == [1, 2]


def test_agents():
    found = outcomes(Machines(), "agent", "web-1", "web-2", timeout=0.5)
    assert found["web-1"].ok
    assert isinstance(found["web-2"].error, DeadlineExceeded)


def test_all_clones_are_asked_about_at_once():
    driver = Machines()
    names = list(driver.running)
    started = time.monotonic()
    assert len(outcomes(driver, "ip", *names, timeout=1.5)) == 20
    # Not once for each clone, nor at every look.
    assert len(driver.asked) <= 2 * (2 + (time.monotonic() - started))


def test_a_backend_without_agents_says_so_at_once(lab):
    lab.engine.create("web", "t1", count=2, start=True)
    with pytest.raises(PartialFailure) as caught:
        lab.engine.wait("web", wait=Readiness.parse("agent"))
    assert [str(error) for _, error in caught.value.failures] == [
        f"{name}: hypervisor 'reference' has no guest agents to wait for"
        " (--for running, ip, port:N or ssh)"
        for name in ("web-1", "web-2")
    ]


def test_a_backend_without_consoles_says_so_at_once(lab):
    lab.engine.create("web", "t1", count=1, start=True)
    lab.machines.consoles = None
    with pytest.raises(PartialFailure) as caught:
        lab.engine.wait("web", wait=Readiness.parse("console:login:"))
    ((_, error),) = caught.value.failures
    assert str(error).startswith("web-1: hypervisor 'reference' has no consoles to wait for")
    lab.engine.stop("web")
    with pytest.raises(PartialFailure) as caught:  # nor is a last line asked for
        lab.engine.wait("web", wait=Readiness.parse("running"))
    ((_, error),) = caught.value.failures
    assert isinstance(error, WrongState)


@pytest.mark.parametrize(
    "text",
    ["", "sleeping", "port", "port:", "port:0", "port:65536", "port:ssh", "port:-1", "ip:4",
     "ssh:22", "running:", "console", "console:", "console:("],
)  # fmt: skip
def test_what_cannot_be_waited_for(text):
    with pytest.raises(InvalidRequest, match="can't wait for"):
        Readiness.parse(text)


@pytest.mark.parametrize(
    "text", ["running", "ip", "port:22", "ssh", "cloud-init", "agent", "console:a:b"]
)
def test_readiness_reads_back(text):
    assert str(Readiness.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "total", "needed"),
    [("95%", 20, 19), ("95%", 21, 20), ("100%", 7, 7), ("0%", 7, 0), ("33.3%", 3, 1),
     ("5", 20, 5), ("30", 20, 20), ("70%", 10, 7)],
)  # fmt: skip
def test_quota(text, total, needed):
    assert Quota.parse(text).of(total) == needed


@pytest.mark.parametrize("text", ["", "%", "101%", "-5%", "half", "1e3%", "5.5"])
def test_what_is_no_quota(text):
    with pytest.raises(InvalidRequest, match="not a share"):
        Quota.parse(text)


@pytest.fixture
def silent(lab):
    """Four clones of which one says nothing."""
    lab.engine.create("web", "t1", count=4, start=True)
    lab.machines.said["web-3"] = b"Kernel panic\n"
    return lab


def test_enough_clones_are_enough(silent):
    readiness = Readiness.parse("console:ready", timeout=0.5)
    result = silent.engine.wait("web", wait=readiness, min_ready=Quota.parse("75%"))
    assert [failure.name for failure in result.failures] == ["web-3"]
    with pytest.raises(PartialFailure, match="1 of 4") as caught:
        silent.engine.wait("web", wait=readiness, min_ready=Quota.parse("76%"))
    assert "Kernel panic" in str(caught.value.failures[0][1])


# --- cloud-init ---------------------------------------------------------------------------------


def reached(listener):
    """Return a clone that is waited for until cloud-init has finished, and can be logged in to."""
    driver = Machines(**{"web-1": ("127.0.0.1",)})
    access = Access(
        name="web-1", address="127.0.0.1", user="u", port=listener, known_hosts=Path("/none")
    )
    (clone,) = awaited(driver, "cloud-init", "web-1", timeout=4)
    return driver, attrs.evolve(clone, access=lambda _address: access)


def test_the_console_says_that_cloud_init_has_finished():
    driver = Machines()
    driver.said = b"[   12.3] cloud-init[700]: Cloud-init v. 22.4.2 running 'modules:final'\n"
    assert not outcomes(driver, "cloud-init", "web-1", timeout=0.5)["web-1"].ok
    driver.said += b"[   80.1] cloud-init[700]: Cloud-init v. 22.4.2 finished at Sun, 29 Nov\r\n"
    assert outcomes(driver, "cloud-init", "web-1")["web-1"].ok


def test_a_login_finds_the_result_of_cloud_init(listener, tmp_path, monkeypatch):
    monkeypatch.setattr("vmcloner_core.readiness.SLOW_POLL", 0.1)

    def in_guest(_access, command, **_more):
        return ["sh", "-c", command.replace("/run/cloud-init", str(tmp_path))]

    monkeypatch.setattr("vmcloner_core.readiness.ssh.command", in_guest)
    looks = []

    def more():
        looks.append(1)
        if len(looks) == 5:
            (tmp_path / "result.json").touch()
        return ()

    _, clone = reached(listener)
    (outcome,) = watch([clone], more=more)
    assert outcome.ok
    assert len(looks) >= 5


def test_a_guest_without_cloud_init_says_so(listener, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(
        "vmcloner_core.readiness.ssh.command", lambda _access, words, **_: ["/bin/sh", "-c", words]
    )
    _, clone = reached(listener)
    (outcome,) = watch([clone])
    assert "cloud-init is not installed" in str(outcome.error)


def test_a_clone_that_nobody_can_log_in_to_tells_by_its_console(listener):
    def refuse(_address):
        raise WrongState("web-1 has no known host key")

    driver, clone = reached(listener)
    driver.said = b"Cloud-init v. 23.1 finished at now\n"
    (outcome,) = watch([attrs.evolve(clone, access=refuse)])
    assert outcome.ok
    driver.said = b""
    (outcome,) = watch([attrs.evolve(clone, access=refuse)])
    assert "no known host key" in str(outcome.error)
    assert isinstance(outcome.error, DeadlineExceeded)


@pytest.mark.parametrize(
    ("ready", "identity", "waits"),
    [
        ("", 'provider = "cloud-init"\nuser_data = "ud"', "cloud-init"),
        ('ready = "ssh"', 'provider = "cloud-init"\nuser_data = "ud"', "cloud-init"),
        ('ready = "console:up"', 'provider = "cloud-init"\nuser_data = "ud"', "console:up"),
        ('ready = "ssh"', 'provider = "cloud-init"', "ssh"),
    ],
)
def test_user_data_has_run_before_a_clone_is_ready(lab, ready, identity, waits):
    (lab.folder / "templates").mkdir(exist_ok=True)
    (lab.folder / "templates" / "ud").write_text("#cloud-config\n")
    text = f'hypervisors = ["reference"]\n{ready}\n[image]\npath = "image.raw"\n'
    lab.template("ud", f"{text}[identity]\n{identity}\n")
    assert lab.engine._host.catalog.template("ud").readiness == waits
