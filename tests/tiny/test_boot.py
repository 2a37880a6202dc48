"""The image made of the real packages, booted by a bare QEMU under emulation."""

import contextlib
import os
import re
import select
import socket
import subprocess
import time
import uuid

import pytest

from tests.tiny.test_builder import builder
from vmcloner_core import reseeding
from vmcloner_core.model import Identity, Interface
from vmcloner_core.process import LocalRunner
from vmcloner_core.records import new_host_key
from vmcloner_identity import iso

pytestmark = pytest.mark.libvirt

MAC = "52:54:00:12:34:56"
CMDLINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check lpj=4000000"
)
READY = re.compile(
    rb"^vmcloner-ready name=(\S+) mac=(\S+) disk=(\S+) boots=(\S+) random=([0-9a-f]{16})\r\n", re.M
)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    told = []
    builder(LocalRunner(), folder).build(folder, lambda done, total: told.append((done, total)))
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1] > 10 * 1024**2
    assert {path.name for path in folder.iterdir()} == {"disk.raw", "vmlinuz", "initrd.img"}
    return folder


class Machine:
    """A running QEMU: its console is a pair of pipes, its monitor a socket."""

    def __init__(self, image, folder, disk, name, slots=0):
        self.output = b""
        self._monitor = folder / f"{name}.monitor"
        devices = ["-nic", f"user,model=virtio-net-pci,mac={MAC}"] if name != "bare" else []
        devices += ["-drive", f"file={disk},if=virtio,format=raw"] if disk else []
        for slot in range(1, slots + 1):
            devices += ["-device", f"pcie-root-port,id=slot{slot},chassis={slot}"]
        self.process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-m", "128"),
                *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
                *("-monitor", f"unix:{self._monitor},server,nowait"),
                *("-kernel", image / "vmlinuz", "-initrd", image / "initrd.img"),
                *("-append", f"{CMDLINE} host={name}", *devices),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def wait_for(self, pattern, seconds=90):
        """Return what matched on the console."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.output)) is None:
            assert time.monotonic() < deadline, self.output.decode(errors="replace")
            if select.select([self.process.stdout], [], [], 1)[0]:
                got = os.read(self.process.stdout.fileno(), 65536)
                assert got, self.output.decode(errors="replace")
                self.output += got
        return found

    def type(self, line):
        self.process.stdin.write(line.encode() + b"\n")

    def monitor(self, command):
        """Give QEMU a command that it carries out without a word."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self._monitor))
            monitor.settimeout(60)
            said = monitor.recv(4096)
            while not said.endswith(b"(qemu) "):
                said += monitor.recv(4096)
            monitor.sendall(f"{command}\n".encode())
            said = monitor.recv(4096)
            while not said.endswith(b"\n(qemu) "):
                said += monitor.recv(4096)
        assert b"Error" not in said, said

    def press_the_power_button(self):
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self._monitor))
            monitor.sendall(b"system_powerdown\n")
            self.wait_until_off()

    def wait_until_off(self):
        assert self.process.wait(30) == 0


@pytest.fixture
def boot(image, tmp_path):
    machines = []

    def make(disk, name="web-3", slots=0):
        machines.append(Machine(image, tmp_path, disk, name, slots))
        return machines[-1]

    yield make
    for machine in machines:
        with contextlib.suppress(ProcessLookupError):
            machine.process.kill()
        machine.process.communicate()


@pytest.fixture
def disk(image, tmp_path):
    path = tmp_path / "disk.raw"
    subprocess.run(["cp", "--sparse=always", image / "disk.raw", path], check=True, timeout=60)
    return path


def seed(folder):
    """Return an image with the identity of web-7."""
    card = Interface(mac=MAC, address="10.0.2.77/24")
    identity = Identity(
        hostname="web-7",
        machine_id="a" * 32,
        uuid=uuid.UUID(int=1),
        generation=uuid.UUID(int=2),
        interfaces=(card,),
        gateway="10.0.2.2",
    )
    content = reseeding.identity_file(identity, *new_host_key("web-7"))
    iso.write(folder / "seed.iso", "cidata", {reseeding.FILE: content})
    return folder / "seed.iso"


def test_says_who_it_is_in_one_line_and_obeys_the_power_button(boot, disk):
    machine = boot(disk)
    assert machine.wait_for(READY).groups()[:4] == (b"web-3", MAC.encode(), b"131072", b"1")
    machine.press_the_power_button()
    assert len(READY.findall(machine.output)) == 1
    assert b"vmcloner-ready" not in READY.sub(b"", machine.output)


def test_counts_its_boots_on_its_own_disk(boot, disk, image):
    for count in (b"1", b"2"):
        machine = boot(disk, f"web-{count.decode()}")
        assert machine.wait_for(READY)[4] == count
        machine.press_the_power_button()
    assert disk.read_bytes()[:64].split(b"\0")[0] == b"vmcloner-tiny 2 web-2\n"
    assert (image / "disk.raw").read_bytes()[:18] == b"vmcloner-tiny 0 -\n"


def test_a_disk_of_others_is_not_written_to(boot, tmp_path):
    disk = tmp_path / "foreign.raw"
    disk.write_bytes(b"\n" + os.urandom(2**20 - 1))
    before = disk.read_bytes()
    machine = boot(disk)
    assert machine.wait_for(READY).groups()[2:4] == (b"2048", b"none")
    machine.press_the_power_button()
    assert disk.read_bytes() == before


def test_boots_without_disk_and_card(boot):
    machine = boot(None, "bare")
    assert machine.wait_for(READY).groups()[:4] == (b"bare", b"none", b"none", b"none")


def test_becomes_who_a_plugged_seed_names(boot, disk, tmp_path):
    """As after a fork of its memory: first the seed, then the card."""
    machine = boot(disk, "bare", slots=2)
    first = machine.wait_for(READY)[5]
    machine.monitor(f"drive_add 0 if=none,id=seed,format=raw,readonly=on,file={seed(tmp_path)}")
    machine.monitor("device_add virtio-blk-pci,drive=seed,bus=slot1,serial=vmcloner-seed")
    machine.wait_for(rb"vmcloner-reseeded web-7\r\n")
    assert len(READY.findall(machine.output)) == 1
    machine.monitor("netdev_add user,id=card")
    machine.monitor(f"device_add virtio-net-pci,netdev=card,bus=slot2,mac={MAC}")
    machine.wait_for(rb"vmcloner-ready name=web-7 .*\r\n")
    said = READY.findall(machine.output)[-1]
    assert said[:4] == (b"web-7", MAC.encode(), b"131072", b"1")
    assert said[4] != first
    assert disk.read_bytes()[:64].split(b"\0")[0] == b"vmcloner-tiny 1 web-7\n"
    machine.type("")
    machine.wait_for(rb"web-7# ")
    machine.type("ifconfig eth0 | grep -c 10.0.2.77")
    machine.wait_for(rb"\n1\r\n")


@pytest.mark.parametrize("command", ["poweroff", "reboot"])
def test_the_console_is_a_shell(boot, disk, command):
    machine = boot(disk)
    machine.wait_for(rb"web-3# ")
    machine.type("echo $((6 * 7)) $(hostname); tty")
    # What is typed before a shell has its prompt out may go down with the shell before it.
    machine.wait_for(rb"(?s)42 web-3\r\n/dev/ttyS0\r\n.*web-3# ")
    machine.type("exit")
    machine.wait_for(rb"(?s)exit\r.*built-in shell.*web-3# ")  # a new one takes its place
    machine.type(command)
    machine.wait_until_off()
