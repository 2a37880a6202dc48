"""What `host check` says of the kvm backend: found missing, one by one, each with its fix."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmcloner_core.model import Check, Status
from vmcloner_core.process import LocalRunner
from vmcloner_libvirt import doctor
from vmcloner_libvirt.acceleration import Acceleration, KvmProbe
from vmcloner_libvirt.kvm import KvmDriver

pytestmark = pytest.mark.libvirt


@pytest.fixture
def probe(
    make_driver: Callable[..., KvmDriver], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Check]]:
    def run(uri: str = "qemu:///system", **settings: object) -> dict[str, Check]:
        return {check.name: check for check in make_driver(uri, **settings).probe()}

    monkeypatch.setattr(KvmProbe, "measure", lambda _self: Acceleration(works=True))
    return run


def failed(check: Check) -> str:
    assert check.status is Status.FAILED
    assert check.detail
    return check.fix


def test_here_all_is_well(probe: Callable[..., dict[str, Check]]) -> None:
    checks = probe()
    assert [check.name for check in checks.values() if check.status is Status.FAILED] == []
    assert list(checks) == [
        *("libvirt-python", "daemon", "qemu", "kvm", "virtlogd", "qemu user", "state folder"),
        *("optional", "forwarding"),
    ]


def test_no_daemon(probe: Callable[..., dict[str, Check]]) -> None:
    checks = probe("qemu+unix:///system?socket=/nonexistent/sock")
    assert "libvirtd" in failed(checks["daemon"])
    assert {"qemu", "kvm", "virtlogd"} <= set(checks), "the rest is looked at all the same"


def test_no_qemu(probe: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalRunner, "which", lambda self, program: None)
    assert failed(probe()["qemu"]) == "apt-get install qemu-system-x86"


def test_kvm_that_does_not_work(
    probe: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Acceleration(works=False, reason="too slow")
    monkeypatch.setattr(KvmProbe, "measure", lambda _self: found)
    assert probe()["kvm"].status is Status.WARNING
    assert "too slow: guests are emulated" in probe()["kvm"].detail
    assert probe(accel="kvm")["kvm"].status is Status.FAILED
    assert probe(accel="tcg")["kvm"].status is Status.OK


def test_no_virtlogd(
    probe: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "VIRTLOGD", tmp_path / "none")
    assert "virtlogd -d" in failed(probe()["virtlogd"])
    dead = tmp_path / "dead"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    monkeypatch.setattr(doctor, "VIRTLOGD", dead)
    assert "virtlogd -d" in failed(probe()["virtlogd"])


def test_processes_that_a_container_does_not_see(
    probe: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "processes" not in probe()
    monkeypatch.setattr(doctor, "_peer", lambda _connection: 0)
    found = probe()["processes"]
    assert (found.status, found.fix) == (Status.WARNING, "start the container with --pid host")


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a PID namespace: needs root")
def test_who_is_in_another_pid_namespace(tmp_path: Path) -> None:
    """The kernel names the process at a socket's other end as it is seen from here."""
    ask = "import socket, sys; from vmcloner_libvirt import doctor; c = socket.socket(1); "
    ask += "c.connect(sys.argv[1]); print(doctor._peer(c))"
    python = [sys.executable, "-c", ask, str(tmp_path / "socket")]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(python[-1])
        listener.listen()
        for argv, peer in (
            (python, os.getpid()),
            (["unshare", "--pid", "--fork", "--kill-child", *python], 0),
        ):
            found = subprocess.run(argv, check=True, capture_output=True, timeout=60)
            assert int(found.stdout) == peer


def test_kvm_that_qemus_user_may_not_use(
    probe: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = tmp_path / "kvm"
    device.touch(mode=0o600)
    monkeypatch.setattr(KvmProbe, "device", device)
    assert failed(probe()["qemu user"]) == f"chgrp kvm {device} && chmod 0660 {device}"
    device.chmod(0o666)
    assert probe()["qemu user"].status is Status.OK


def test_terminals_that_qemus_user_may_not_use(
    probe: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pts").touch(mode=0o000)
    (tmp_path / "ptmx").symlink_to("pts")
    monkeypatch.setattr(doctor, "TERMINALS", tmp_path / "ptmx")
    assert failed(probe()["qemu user"]) == f"chmod 0666 {tmp_path}/pts"


def test_a_state_folder_that_is_closed(probe: Callable[..., dict[str, Check]], place: Path) -> None:
    assert probe()["state folder"].status is Status.OK
    place.chmod(0o700)
    assert failed(probe()["state folder"]) == f"chmod o+x {place}"
    place.chmod(0o711)
    assert probe()["state folder"].status is Status.OK


def test_it_changes_nothing(
    make_driver: Callable[..., KvmDriver], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KvmProbe, "device", place / "no-kvm")
    list(make_driver("qemu:///system").probe())
    assert list(place.iterdir()) == []


def test_a_session_has_no_virtlogd_to_look_for_and_no_other_user(
    probe: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 65534)
    daemon = doctor.Daemon("QEMU", 7002000, "<capabilities><host/></capabilities>")

    def reach(*_: object) -> Iterator[Check]:
        yield from ()
        return daemon

    monkeypatch.setattr(doctor, "reach", reach)
    checks = probe("qemu:///session")
    assert not {"virtlogd", "qemu user"} & set(checks)


def test_what_another_user_cannot_know_is_not_ok(
    probe: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 65534)
    check = probe()["forwarding"]
    assert check.status is Status.WARNING
    assert "needs root" in check.detail
