"""Guests that run, on the real daemon: consoles, shutdown, and that nothing is left."""

import os
import pty
import secrets
import signal
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from vmcloner_core.errors import HostCommandError, WrongState
from vmcloner_core.model import (
    FORWARDED_PORT,
    BootConfig,
    DomainOptions,
    DomainSpec,
    Labels,
    Nic,
    NicSpec,
    State,
    forwarded_address,
)
from vmcloner_core.pictures import png
from vmcloner_libvirt.kvm import KvmDriver

pytestmark = pytest.mark.libvirt
Endings = dict[str, bytes]


@pytest.fixture
def driver(make_driver: Callable[..., KvmDriver]) -> KvmDriver:
    return make_driver("qemu:///system", accel="tcg")


@pytest.fixture
def guest(
    driver: KvmDriver, new_labels: Callable[..., Labels], new_guest: Callable[..., DomainSpec]
) -> Iterator[Callable[..., DomainSpec]]:
    """Define and start a guest that does what ``ending`` says; it is removed after the test."""
    fleet = f"guest{secrets.token_hex(4)}"
    names: list[str] = []

    def make(ending: bytes, **changes: object) -> DomainSpec:
        spec = new_guest(new_labels(len(names) + 1, fleet=fleet), ending=ending)
        spec = attrs.evolve(spec, **changes)
        names.append(spec.name)
        for outcome in (*driver.define([spec]), *driver.start([spec.name])):
            outcome.error is None or pytest.fail(str(outcome.error))
        return spec

    yield make
    assert all(outcome.ok for outcome in driver.destroy(names))
    assert all(outcome.ok for outcome in driver.undefine(names))


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it didn't happen"
        time.sleep(0.05)


def console(driver: KvmDriver, name: str) -> bytes:
    return driver.consoles.read(name, 0, 4096)[0]


def test_the_console_log_is_of_this_start(
    driver: KvmDriver, guest: Callable[..., DomainSpec], endings: Endings
) -> None:
    name = guest(endings["halt"]).name
    for _ in range(2):
        until(lambda: b"\n" in console(driver, name))
        assert console(driver, name) == f"here is {name}\n".encode()
        list(driver.destroy([name]))
        list(driver.start([name]))


def test_many_guests_say_their_own_names(
    driver: KvmDriver, guest: Callable[..., DomainSpec], endings: Endings
) -> None:
    names = [guest(endings["halt"]).name for _ in range(5)]
    for name in names:
        until(lambda name=name: console(driver, name) == f"here is {name}\n".encode())


def test_nothing_is_left(
    driver: KvmDriver, guest: Callable[..., DomainSpec], endings: Endings
) -> None:
    spec = guest(endings["halt"])
    name = spec.name
    until(lambda: b"here is" in console(driver, name))
    assert f"guest={name}," in processes()
    (outcome,) = driver.shutdown([name], timeout=1)  # it hears nothing
    assert outcome.changed
    assert f"guest={name}," not in processes()
    (outcome,) = driver.undefine([name])
    assert outcome.changed
    assert name not in driver.states()
    assert list(driver.context.host.consoles.iterdir()) == []
    for folder in ("/etc/libvirt/qemu", "/run/libvirt/qemu", "/var/lib/libvirt/qemu"):
        assert not list(Path(folder).rglob(f"*{name}*"))


def processes() -> str:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_guests_that_hear_the_power_button_end_by_themselves(
    driver: KvmDriver, guest: Callable[..., DomainSpec], endings: Endings
) -> None:
    """And those that don't are destroyed when the time is over."""
    deaf, polite = guest(endings["halt"]).name, guest(endings["wait for the button"]).name
    until(lambda: b"here is" in console(driver, polite))
    start = time.monotonic()
    ended = {o.key: time.monotonic() - start for o in driver.shutdown([deaf, polite], timeout=8)}
    assert ended[polite] < 8 <= ended[deaf]
    assert set(driver.states().items()) >= {(deaf, State.STOPPED), (polite, State.STOPPED)}


def test_a_guest_that_was_still_booting_is_asked_again(
    driver: KvmDriver,
    guest: Callable[..., DomainSpec],
    endings: Endings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vmcloner_libvirt.driver.ASK_AGAIN", 1.0)
    name = guest(endings["wait for the button"]).name  # its firmware doesn't hear the first one
    start = time.monotonic()
    (outcome,) = driver.shutdown([name], timeout=20)
    assert outcome.changed
    assert time.monotonic() - start < 15


def test_a_guest_that_panics_has_crashed(
    driver: KvmDriver, guest: Callable[..., DomainSpec], endings: Endings
) -> None:
    name = guest(endings["panic"]).name
    until(lambda: driver.states()[name] is State.CRASHED)
    assert f"guest={name}," not in processes()


def test_a_guest_that_powers_off_is_stopped(
    driver: KvmDriver, guest: Callable[..., DomainSpec], endings: Endings
) -> None:
    name = guest(endings["power off"]).name
    until(lambda: driver.states()[name] is State.STOPPED)
    (outcome,) = driver.shutdown([name], timeout=5)
    assert not outcome.changed


def test_a_guest_whose_process_is_killed_has_crashed_and_starts_again(
    driver: KvmDriver, guest: Callable[..., DomainSpec], endings: Endings
) -> None:
    name = guest(endings["halt"]).name
    os.kill(int(Path(f"/run/libvirt/qemu/{name}.pid").read_text()), signal.SIGKILL)
    until(lambda: driver.states()[name] is State.CRASHED)
    (outcome,) = driver.start([name])
    assert outcome.changed
    assert driver.states()[name] is State.RUNNING


def test_a_reboot_ends_a_domain_that_was_started_so_once(
    driver: KvmDriver, guest: Callable[..., DomainSpec], endings: Endings
) -> None:
    """Once: at its next start it reboots again, as its definition says, and runs on."""
    name = guest(endings["reboot"]).name
    list(driver.destroy([name]))
    before = [domain for domain in driver.inspect().domains if domain.name == name]
    boots = {name: BootConfig(devices=("hd",), on_reboot="destroy")}
    (outcome,) = driver.start([name], boots)
    assert outcome.changed
    until(lambda: driver.states()[name] is State.STOPPED)
    assert [domain for domain in driver.inspect().domains if domain.name == name] == before
    list(driver.start([name]))
    said = f"here is {name}\n".encode()
    until(lambda: console(driver, name).count(said) >= 2)
    assert driver.states()[name] is State.RUNNING


def test_a_disk_that_is_gone_is_said(
    driver: KvmDriver, guest: Callable[..., DomainSpec], endings: Endings
) -> None:
    spec = guest(endings["halt"])
    list(driver.destroy([spec.name]))
    spec.volumes[0].path.unlink()
    (outcome,) = driver.start([spec.name])
    assert isinstance(outcome.error, HostCommandError)
    assert spec.name in outcome.error.message
    assert str(spec.volumes[0].path) in outcome.error.message


@pytest.mark.parametrize(
    "options",
    [
        DomainOptions(cpu="host-passthrough"),
        DomainOptions(cpu="Nehalem"),
        DomainOptions(machine="pc", disk_bus="ide"),
        DomainOptions(disk_bus="scsi"),
        DomainOptions(disk_bus="sata"),
        DomainOptions(disk_bus="usb"),
    ],
    ids=lambda options: options.cpu or options.disk_bus,
)
def test_other_hardware_boots(
    driver: KvmDriver,
    guest: Callable[..., DomainSpec],
    endings: Endings,
    options: DomainOptions,
) -> None:
    name = guest(endings["halt"], options=options).name
    until(lambda: b"here is" in console(driver, name))


# --- attached ---------------------------------------------------------------------------------


def test_the_console_is_attached_until_the_escape(
    driver: KvmDriver, guest: Callable[..., DomainSpec], endings: Endings
) -> None:
    """On a terminal, which is raw meanwhile and as it was afterwards."""
    name = guest(endings["echo"]).name
    until(lambda: b"here is" in console(driver, name))
    terminal, ours = pty.openpty()
    before = termios.tcgetattr(ours)
    thread = threading.Thread(target=driver.consoles.attach, args=(name, ours, ours))
    thread.start()
    until(lambda: not termios.tcgetattr(ours)[3] & termios.ICANON)
    os.write(terminal, b"hello\x03")  # ^C is the guest's
    until(lambda: b"hello\x03" in console(driver, name))
    assert read_until(terminal, b"hello\x03")
    os.write(terminal, b"\x1d")
    thread.join(10)
    assert not thread.is_alive()
    assert termios.tcgetattr(ours) == before
    assert driver.states()[name] is State.RUNNING


def test_the_guests_end_ends_it(
    driver: KvmDriver, guest: Callable[..., DomainSpec], endings: Endings
) -> None:
    """And the end of the input doesn't."""
    name = guest(endings["echo"]).name
    until(lambda: b"here is" in console(driver, name))
    inside, outside = socket.socketpair()
    thread = threading.Thread(
        target=driver.consoles.attach, args=(name, inside.fileno(), inside.fileno())
    )
    thread.start()
    outside.sendall(b"last words")
    outside.shutdown(socket.SHUT_WR)
    assert read_until(outside.fileno(), b"last words")
    assert thread.is_alive()
    list(driver.destroy([name]))
    thread.join(10)
    assert not thread.is_alive()


def test_only_one_is_attached(
    driver: KvmDriver, guest: Callable[..., DomainSpec], endings: Endings
) -> None:
    name = guest(endings["echo"]).name
    inside, outside = socket.socketpair()
    thread = threading.Thread(
        target=driver.consoles.attach, args=(name, inside.fileno(), inside.fileno())
    )
    thread.start()
    outside.sendall(b"x")
    assert read_until(outside.fileno(), b"x")
    with pytest.raises(WrongState, match="in use"):
        driver.consoles.attach(name, inside.fileno(), inside.fileno())
    outside.sendall(b"\x1d")
    thread.join(10)
    assert not thread.is_alive()


def read_until(descriptor: int, wanted: bytes, seconds: float = 10) -> bool:
    """Read until ``wanted`` was among it; blocks no longer than a test may."""
    data = b""
    deadline = time.monotonic() + seconds
    while wanted not in data and time.monotonic() < deadline:
        data += os.read(descriptor, 4096)
    return wanted in data


def test_emulation_keeps_a_bounded_cache_that_counts(
    driver: KvmDriver, guest: Callable[..., DomainSpec], endings: Endings
) -> None:
    name = guest(endings["halt"]).name
    (command,) = (
        words
        for file in Path("/proc").glob("[0-9]*/cmdline")
        if f"guest={name},".encode() in (words := read(file))
    )
    assert b"tb-size=128" in command
    assert driver.resources().memory_overhead == 160 * 1024**2


def read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it ended
        return b""


def test_a_forwarded_port_is_there_after_each_start(
    driver: KvmDriver, guest: Callable[..., DomainSpec], endings: Endings
) -> None:
    mac = f"52:54:00:{secrets.token_hex(1)}:{secrets.token_hex(1)}:09"
    spec = guest(endings["halt"], nics=(Nic(spec=NicSpec(forward=22), mac=mac),))
    address = forwarded_address(mac)
    for _ in range(2):
        assert driver.addresses()[spec.name] == (address,)
        assert driver.addresses()[spec.name] == (address,), "it isn't forwarded twice"
        socket.create_connection((address, FORWARDED_PORT), timeout=30).close()
        assert all(outcome.ok for outcome in driver.destroy([spec.name]))
        assert spec.name not in driver.addresses()
        assert all(outcome.ok for outcome in driver.start([spec.name]))


def test_a_port_in_use_is_not_the_guests(
    driver: KvmDriver,
    guest: Callable[..., DomainSpec],
    endings: Endings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mac = f"52:54:00:{secrets.token_hex(1)}:{secrets.token_hex(1)}:08"
    with socket.create_server((forwarded_address(mac), FORWARDED_PORT)):
        spec = guest(endings["halt"], nics=(Nic(spec=NicSpec(forward=22), mac=mac),))
        assert spec.name not in driver.addresses()
    assert f"{spec.name}: QEMU can't forward" in caplog.text
    assert driver.addresses()[spec.name], "once the port is free"


def test_a_screen_is_shown_and_pictured(
    driver: KvmDriver, guest: Callable[..., DomainSpec], endings: Endings
) -> None:
    name = guest(endings["halt"], options=DomainOptions(graphics="vnc")).name
    kind, _, place = driver.displays.address(name).partition("://")
    assert kind == "vnc"
    address, _, port = place.partition(":")
    with socket.create_connection((address, int(port)), timeout=30) as stream:
        assert stream.recv(12).startswith(b"RFB ")
    picture = png(driver.displays.picture(name))
    assert picture.startswith(b"\x89PNG")
    assert driver.displays.picture(name), "again"
    assert all(outcome.ok for outcome in driver.destroy([name]))
    with pytest.raises(WrongState, match="not running"):
        driver.displays.picture(name)


def test_a_guest_without_a_screen(
    driver: KvmDriver, guest: Callable[..., DomainSpec], endings: Endings
) -> None:
    name = guest(endings["halt"]).name
    for ask in (driver.displays.address, driver.displays.picture):
        with pytest.raises(WrongState, match="has no screen"):
            ask(name)
