"""Whether KVM works is found out by running a guest, and remembered until the next boot."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from vmcloner_core.drivers import DriverContext
from vmcloner_core.errors import DeadlineExceeded, HostCommandError
from vmcloner_core.model import Host
from vmcloner_core.process import CommandResult, LocalRunner
from vmcloner_libvirt.acceleration import KvmProbe, boot_sector

NOWHERE = Host(name="local", state=Path("/nonexistent"))
OK = CommandResult(stdout=b"vmcloner-kvm-ok", stderr=b"")


class Runner:
    """Answers for QEMU, and counts how often it was run."""

    def __init__(self, answer: CommandResult | Exception, qemu: str | None) -> None:
        self.answer = answer
        self.qemu = qemu
        self.runs = 0

    def which(self, program: str) -> str | None:
        return self.qemu

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 60.0,
        input: bytes = b"",  # noqa: A002 - as in the protocol
        env: Mapping[str, str] | None = None,
    ) -> CommandResult:
        self.runs += 1
        assert self.qemu in argv
        assert "kvm" in argv
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def probe(runner: Runner, host: Host = NOWHERE) -> KvmProbe:
    return KvmProbe(DriverContext(host=host, name="kvm", runner=runner))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(name="local", state=tmp_path)


@pytest.fixture
def qemu(tmp_path: Path) -> str:
    file = tmp_path / "qemu"
    file.touch()
    return str(file)


@pytest.fixture(autouse=True)
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "kvm-device"
    file.touch()
    monkeypatch.setattr(KvmProbe, "device", file)
    return file


@pytest.mark.libvirt
def test_the_guest_runs_and_says_its_word() -> None:
    """By emulation, which every machine has: what is run on KVM is a program that works."""

    class Emulating(LocalRunner):
        def run(self, argv: Sequence[str], **options: object) -> CommandResult:
            return super().run(["tcg" if word == "kvm" else word for word in argv], **options)

    assert probe(Emulating()).measure().works


@pytest.mark.libvirt
def test_no_guest_stays_when_we_are_killed() -> None:
    code = """
from pathlib import Path
from vmcloner_core.drivers import DriverContext
from vmcloner_core.model import Host
from vmcloner_core.process import LocalRunner
from vmcloner_libvirt.acceleration import KvmProbe

class Emulating(LocalRunner):
    def run(self, argv, **options):
        return super().run(["tcg" if word == "kvm" else word for word in argv], **options)

KvmProbe.device, KvmProbe.deadline, KvmProbe.loops = Path("/dev/null"), 2.0, 2**32 - 1
host = Host(name="local", state=Path("/nonexistent"))
KvmProbe(DriverContext(host=host, name="kvm", runner=Emulating())).measure()
"""
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        guest = None
        while guest is None:
            assert process.poll() is None
            guest = next(iter(grandchildren(process.pid)), None)
        process.kill()
    deadline = time.monotonic() + 10
    while running(guest):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def grandchildren(pid: int) -> list[int]:
    return [grandchild for child in children(pid) for grandchild in children(child)]


def running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.libvirt
def test_this_machine_is_decided_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = probe(LocalRunner()).measure()
    assert found.works or found.reason


def test_a_guest_that_hangs_is_no_kvm(qemu: str) -> None:
    found = probe(Runner(DeadlineExceeded("qemu: no answer"), qemu)).measure()
    assert not found.works
    assert "did not run within 4 s" in found.reason


def test_a_qemu_that_fails_says_why(qemu: str) -> None:
    found = probe(Runner(HostCommandError("qemu failed with 1: no KVM"), qemu)).measure()
    assert not found.works
    assert found.reason == "qemu failed with 1: no KVM"


def test_a_guest_that_says_nothing_is_no_kvm(qemu: str) -> None:
    assert not probe(Runner(CommandResult(stdout=b"", stderr=b""), qemu)).measure().works


def test_no_device(qemu: str, device: Path) -> None:
    device.unlink()
    runner = Runner(OK, qemu)
    found = probe(runner).measure()
    assert not found.works
    assert "is missing" in found.reason
    assert not runner.runs


def test_no_qemu(host: Host) -> None:
    found = probe(Runner(OK, None), host).cached()
    assert not found.works
    assert found.fix == "apt-get install qemu-system-x86"


def test_it_is_measured_once(host: Host, qemu: str) -> None:
    runner = Runner(OK, qemu)
    assert probe(runner, host).cached().works
    assert probe(runner, host).cached().works
    assert runner.runs == 1
    assert probe(runner, host).cached(fresh=True).works
    assert runner.runs == 2


def test_it_is_measured_again_after_a_boot_or_an_upgrade(host: Host, qemu: str) -> None:
    runner = Runner(HostCommandError("broken"), qemu)
    assert probe(runner, host).cached().reason == "broken"
    Path(qemu).touch()
    runner.answer = OK
    assert probe(runner, host).cached().works
    file = host.state / "kvm.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps(known | {"key": f"x{known['key']}", "works": False}))
    assert probe(runner, host).cached().works
    assert runner.runs == 3


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 1}', "\x00", '"key"', "[" * 99_999])
def test_a_broken_memory_is_measured_over(host: Host, qemu: str, text: str) -> None:
    (host.state / "kvm.json").write_text(text)
    assert probe(Runner(OK, qemu), host).cached().works


@pytest.mark.parametrize("what", ["mkstemp", "replace"])
def test_a_memory_that_cannot_be_kept_leaves_no_draft(
    host: Host, qemu: str, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def fail(*_words: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    owner = "vmcloner_libvirt.acceleration.tempfile" if what == "mkstemp" else "pathlib.Path"
    monkeypatch.setattr(f"{owner}.{what}", fail)
    assert probe(Runner(OK, qemu), host).cached().works
    assert [path.name for path in host.state.iterdir() if path.name.startswith(".kvm")] == []


def test_no_memory_is_no_error(qemu: str) -> None:
    runner = Runner(OK, qemu)
    host = Host(name="local", state=Path("/proc/none"))
    assert probe(runner, host).cached().works
    assert probe(runner, host).cached().works
    assert runner.runs == 2


def test_the_boot_sector_is_what_it_says() -> None:
    sector = boot_sector(7, b"word")
    assert len(sector) == 512
    assert sector.endswith(b"\x55\xaa")
    pointer = int.from_bytes(sector[sector.index(b"\xbe") + 1 :][:2], "little") - 0x7C00
    assert sector[pointer : pointer + 5] == b"word\0"
