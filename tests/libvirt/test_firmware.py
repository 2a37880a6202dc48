"""Where libvirt keeps firmware variables, the state of TPMs, and logs; tests/e2e has real ones."""

from pathlib import Path

import pytest

from vmcloner_libvirt import firmware
from vmcloner_libvirt.metadata import parse

NUMBER = "6f5150ea-791c-578e-9d00-56a7a00d08ef"
SYSTEM, SOCKET = "qemu:///system", "qemu+unix:///session?socket=/run/x"


def domain(os: str = '<os firmware="efi"/>') -> object:
    return parse(f"<domain><name>web-1</name>{os}</domain>")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/u")
    return Path("/home/u")


def test_of_the_system() -> None:
    folder = Path("/var/lib/libvirt/qemu/nvram")
    found = firmware.variables(domain(), SYSTEM)
    assert found == tuple(folder / f"web-1_VARS.{end}" for end in ("fd", "raw", "qcow2"))
    assert firmware.tpm(NUMBER, SYSTEM) == Path("/var/lib/libvirt/swtpm") / NUMBER
    log = Path("/var/log/swtpm/libvirt/qemu/web-1-swtpm.log")
    assert firmware.logs("web-1", SYSTEM) == (Path("/var/log/libvirt/qemu/web-1.log"), log)


def test_of_a_users_session(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = home / ".config/libvirt/qemu"
    assert firmware.variables(domain(), SOCKET)[0] == config / "nvram/web-1_VARS.fd"
    assert firmware.tpm(NUMBER, SOCKET) == config / "swtpm" / NUMBER
    log = home / ".cache/libvirt/qemu/log/web-1-swtpm.log"
    assert firmware.logs("web-1", SOCKET) == (log.with_name("web-1.log"), log)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/elsewhere")
    assert firmware.tpm(NUMBER, SOCKET) == Path("/elsewhere/libvirt/qemu/swtpm") / NUMBER


def test_variables_that_the_definition_names_are_the_only_ones() -> None:
    named = domain('<os firmware="efi"><nvram>/srv/x.fd</nvram></os>')
    assert firmware.variables(named, SYSTEM) == (Path("/srv/x.fd"),)


def test_a_bios_has_none() -> None:
    assert firmware.variables(domain("<os/>"), SYSTEM) == ()


@pytest.mark.parametrize("uri", ["test:///default", "test:///srv/test.xml", "xen:///system"])
def test_other_drivers_have_none_of_these(uri: str) -> None:
    assert firmware.variables(domain(), uri) == ()
    assert firmware.tpm(NUMBER, uri) is None
    assert firmware.logs("web-1", uri) == ()
    assert list(firmware.left("web-1", NUMBER, uri)) == []


@pytest.mark.parametrize(
    ("uri", "place"),
    [("qemu:///system", "qemu/save"), ("xen:///system", "libxl/save")],
)
def test_saved_memory_of_a_domain_that_is_gone(
    uri: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next domain of that name and UUID would continue it, on another disk."""
    monkeypatch.setattr(firmware, "SYSTEM", tmp_path)
    image = tmp_path / "lib/libvirt" / place / "web-1.save"
    image.parent.mkdir(parents=True)
    assert list(firmware.left("web-1", NUMBER, uri)) == []
    image.touch()
    assert list(firmware.left("web-1", NUMBER, uri)) == [image]
    assert list(firmware.left("web-1", NUMBER, uri, disks=True)) == [image]
    assert list(firmware.left(None, NUMBER, uri)) == []


def test_variables_stay_with_their_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware, "SYSTEM", tmp_path)
    file = tmp_path / "lib/libvirt/qemu/nvram/web-1_VARS.fd"
    file.parent.mkdir(parents=True)
    file.symlink_to("/nonexistent")
    assert list(firmware.left("web-1", None, SYSTEM)) == [file]
    assert list(firmware.left("web-1", None, SYSTEM, disks=True)) == []
