"""The image made of the real packages, booted by a bare QEMU under emulation."""

import contextlib
import os
import re
import select
import socket
import subprocess
import time

import pytest

from tests.tiny.test_builder import builder
from vmcloner_core.process import LocalRunner

pytestmark = pytest.mark.libvirt

MAC = "52:54:00:12:34:56"
CMDLINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check lpj=4000000"
)
READY = re.compile(rb"^vmcloner-ready name=(\S+) mac=(\S+) disk=(\S+) boots=(\S+)\r\n", re.M)


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

    def __init__(self, image, folder, disk, name):
        self.output = b""
        self._monitor = folder / f"{name}.monitor"
        devices = ["-nic", f"user,model=virtio-net-pci,mac={MAC}"] if name != "bare" else []
        devices += ["-drive", f"file={disk},if=virtio,format=raw"] if disk else []
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

    def make(disk, name="web-3"):
        machines.append(Machine(image, tmp_path, disk, name))
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


def test_says_who_it_is_in_one_line_and_obeys_the_power_button(boot, disk):
    machine = boot(disk)
    assert machine.wait_for(READY).groups() == (b"web-3", MAC.encode(), b"131072", b"1")
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
    assert machine.wait_for(READY).groups()[2:] == (b"2048", b"none")
    machine.press_the_power_button()
    assert disk.read_bytes() == before


def test_boots_without_disk_and_card(boot):
    machine = boot(None, "bare")
    assert machine.wait_for(READY).groups() == (b"bare", b"none", b"none", b"none")


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
