"""Warm forks without libvirt's daemon: what is never loaded."""

from types import SimpleNamespace

import pytest
from lxml import etree

pytest.importorskip("libvirt")

from vmcloner_core.errors import WrongState
from vmcloner_core.model import Outcome
from vmcloner_libvirt import operations, users, warm

DEFINITION = """
<domain type="qemu"><name>web-1</name><memory>1024</memory><os><type>hvm</type></os><devices/>
</domain>
"""
LIVE = """
<domain type="qemu" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0"><name>web-1</name>
<qemu:commandline><qemu:arg value="-object"/><qemu:arg value="{}"/></qemu:commandline></domain>
"""
PAUSED = (3, 0)


class Created(Exception):
    """A domain was started."""


class Connection:
    """A connection to a daemon with one domain, and the domain."""

    def __init__(self, live=None):
        self.live, self.qemu, self.destroyed = live, 7_002_000, False

    def getVersion(self):  # noqa: N802
        return self.qemu

    def getLibVersion(self):  # noqa: N802
        return 9_000_000

    def createXML(self, _xml, _flags):  # noqa: N802
        raise Created

    def isActive(self):  # noqa: N802
        return self.live is not None

    def state(self):
        return PAUSED

    def XMLDesc(self, flags):  # noqa: N802
        return DEFINITION if flags else self.live

    def destroy(self):
        self.destroyed, self.live = True, None


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(operations, "find", lambda connection, _name: connection)
    monkeypatch.setattr(warm.secrets, "provide", lambda *_: None)
    place = tmp_path / "a & b"  # which XML escapes
    place.mkdir()
    for name in (warm.MEMORY, warm.DEVICES):
        (place / name).write_bytes(b"x")
    return place


def load(connection, folder):
    def change(name, call):
        try:
            call(connection, name)
        except WrongState as error:
            return Outcome(key=name, error=error)
        return Outcome(key=name)

    host = SimpleNamespace(records=folder / "identity")
    driver = SimpleNamespace(
        capabilities=etree.fromstring("<capabilities/>"), context=SimpleNamespace(host=host)
    )
    forks = warm.Warm(driver, change)
    if not (folder / warm.MANIFEST).exists():
        root = warm.parse(DEFINITION)
        programs = forks._programs(Connection(), root)
        warm._seal(folder, warm._fingerprint(forks._plain(root)), programs)
    (outcome,) = forks.load(["web-1"], folder)
    return outcome


def test_memory_of_another_version_is_never_loaded(folder):
    connection = Connection()
    with pytest.raises(Created):
        load(connection, folder)
    connection.qemu = 8_000_000
    error = load(connection, folder).error
    assert error.message == "web-1: its memory was saved with qemu 7.2.0, here is 8.0.0"
    assert "stop --kill web-1" in error.hint


def test_memory_of_another_processor_is_never_loaded(folder, monkeypatch):
    connection = Connection()
    with pytest.raises(Created):
        load(connection, folder)
    monkeypatch.setattr(warm.Warm, "_processor", lambda _warm, _root: "host-model EPYC 1234")
    error = load(connection, folder).error
    assert "its memory was saved with processor default, here is host-model EPYC 1234" in str(error)


def test_a_paused_domain_that_is_no_fork_is_left(folder):
    connection = Connection(live=LIVE.format("rng"))
    assert "started by other means" in load(connection, folder).error.message
    assert not connection.destroyed
    mapped = f"mem-path={folder / warm.MEMORY},share=off".replace("&", "&amp;")
    connection = Connection(live=LIVE.format(mapped))
    with pytest.raises(Created):
        load(connection, folder)
    assert connection.destroyed


def test_the_same_processor_after_a_reboot_of_the_host():
    def processor(frequency, model="EPYC"):
        text = f"""<capabilities><host><cpu><model>{model}</model>
        <counter name="tsc" frequency="{frequency}" scaling="yes"/><topology sockets="1"/>
        </cpu></host></capabilities>"""
        forks = warm.Warm(SimpleNamespace(capabilities=etree.fromstring(text)), None)
        return forks._processor(etree.fromstring('<domain type="kvm"/>'))

    assert processor(2_394_374_000) == processor(2_394_375_000) != processor(2_394_374_000, "Zen")


def test_who_runs_qemu():
    def found(inside):
        return users.owner_of_qemu(etree.fromstring(f"<capabilities>{inside}</capabilities>"))

    label = "<baselabel type='kvm'>+64055:+106</baselabel>"
    other = "<host><secmodel><model>none</model></secmodel></host>"
    assert found(f"<host><secmodel><model>dac</model>{label}</secmodel></host>") == (64055, 106)
    assert found(other) is found("") is None
