"""What the driver does beyond the contract's suite, on libvirt's test driver."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import libvirt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmcloner_core.errors import (
    BackendError,
    Conflict,
    DeadlineExceeded,
    HostCommandError,
    InvalidRequest,
    NotEnoughResources,
    NotFound,
    VmclonerError,
    WrongState,
)
from vmcloner_core.model import BootConfig, Domain, DomainOptions, DomainSpec, Labels, State
from vmcloner_libvirt import conditions, errors, metadata, operations, retries, validated
from vmcloner_libvirt.kvm import KvmDriver

NewLabels = Callable[..., Labels]
NewSpec = Callable[..., DomainSpec]
FOREIGN = """<domain type="test"><name>{name}</name><memory>8192</memory>{metadata}
<os><type>hvm</type></os><devices><interface type="user"><mac address="52:54:00:AA:BB:CC"/>
</interface></devices></domain>"""


@pytest.fixture
def raw(paper: KvmDriver) -> Iterator[Any]:
    """A connection of the test's own, to the same domains as the driver's."""
    paper.states()
    connection = libvirt.open(paper.uri)
    yield connection
    connection.close()


class Locked:
    """A domain whose lock is held until it was waited for so often; then it is gone."""

    def __init__(self, waits: int) -> None:
        self.waits = waits

    def destroy(self) -> None:
        self.waits -= 1
        raise libvirt_error("VIR_ERR_OPERATION_TIMEOUT", "cannot acquire state change lock")


@pytest.mark.parametrize("waits", [1, operations.LOCK_WAITS, operations.LOCK_WAITS + 1])
def test_a_guest_that_is_cleared_away_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, waits: int
) -> None:
    domain = Locked(waits)
    monkeypatch.setattr(operations, "active", lambda *_: domain if domain.waits else None)
    if waits > operations.LOCK_WAITS:
        with pytest.raises(libvirt.libvirtError):
            operations.destroy(None, "web-1")
    else:
        assert operations.destroy(None, "web-1")


# --- what isn't ours --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        "",
        "<metadata><x:app xmlns:x='https://example.org/x'/></metadata>",
        f"<metadata><v:clone xmlns:v='{metadata.NAMESPACE}' version='1'/></metadata>",
        # The labels of another clone: a copy of one of ours, made by hand.
        f"<metadata><v:clone xmlns:v='{metadata.NAMESPACE}' version='1' fleet='web' index='9' "
        "template='t' run='r' owner='o' created='c' storage='s' hypervisor='kvm'/></metadata>",
    ],
    ids=["no metadata", "other metadata", "broken labels", "another clone's labels"],
)
def test_a_foreign_domain_is_never_touched(
    paper: KvmDriver, raw: Any, new_labels: NewLabels, new_spec: NewSpec, labels: str
) -> None:
    foreign = raw.defineXML(FOREIGN.format(name="web-1", metadata=labels))
    foreign.create()
    before = foreign.XMLDesc(0)
    outcomes = [
        *paper.define([new_spec(new_labels())]),
        *paper.start(["web-1"]),
        *paper.shutdown(["web-1"], timeout=1),
        *paper.destroy(["web-1"]),
        *paper.undefine(["web-1"]),
    ]
    assert len(outcomes) == 5
    for outcome in outcomes:
        assert isinstance(outcome.error, Conflict), outcome
    assert foreign.isActive()
    assert foreign.XMLDesc(0) == before
    inventory = paper.inspect()
    assert "web-1" in inventory.foreign_names
    assert "52:54:00:aa:bb:cc" in inventory.foreign_macs
    assert "web-1" not in paper.states()
    foreign.destroy()
    foreign.undefine()


def test_a_uuid_that_is_taken_is_a_conflict(
    paper: KvmDriver, raw: Any, new_labels: NewLabels, new_spec: NewSpec
) -> None:
    spec = new_spec(new_labels())
    xml = FOREIGN.format(name="copy", metadata=f"<uuid>{spec.uuid}</uuid>")
    foreign = raw.defineXML(xml)
    (outcome,) = paper.define([spec])
    assert isinstance(outcome.error, Conflict)
    assert "'copy'" in outcome.error.message
    foreign.undefine()


# --- states -----------------------------------------------------------------------------------


def test_paused_and_resumed(
    paper: KvmDriver, raw: Any, new_labels: NewLabels, new_spec: NewSpec
) -> None:
    list(paper.define([new_spec(new_labels())]))
    list(paper.start(["web-1"]))
    raw.lookupByName("web-1").suspend()
    assert paper.states()["web-1"] is State.PAUSED
    (outcome,) = paper.start(["web-1"])
    assert outcome.changed
    assert paper.states()["web-1"] is State.RUNNING
    raw.lookupByName("web-1").suspend()
    (outcome,) = paper.shutdown(["web-1"], timeout=5)
    assert outcome.ok
    assert paper.states()["web-1"] is State.STOPPED


def test_a_guest_that_ends_as_its_time_is_over_was_ended(
    paper: KvmDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper, "ask", lambda *_: True)
    monkeypatch.setattr(paper, "end", lambda *_: False)  # it is gone before it is destroyed
    (outcome,) = paper.shutdown(["web-1"], timeout=0)
    assert outcome.ok
    assert outcome.changed


@pytest.mark.parametrize(
    ("state", "reason", "ours"),
    [
        ("NOSTATE", 0, State.RUNNING),
        ("RUNNING", 1, State.RUNNING),
        ("BLOCKED", 0, State.RUNNING),
        ("PAUSED", 1, State.PAUSED),
        ("SHUTDOWN", 1, State.RUNNING),
        ("SHUTOFF", libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED, State.STOPPED),
        ("SHUTOFF", libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, State.CRASHED),
        ("CRASHED", 1, State.CRASHED),
        ("PMSUSPENDED", 0, State.PAUSED),
    ],
)
def test_states_of_libvirt(state: str, reason: int, ours: State) -> None:
    assert conditions.state_of(getattr(libvirt, f"VIR_DOMAIN_{state}"), reason) is ours


def test_a_saved_domain_is_not_a_stopped_one(
    paper: KvmDriver, raw: Any, new_labels: NewLabels, new_spec: NewSpec
) -> None:
    list(paper.define([new_spec(new_labels())]))
    list(paper.start(["web-1"]))
    raw.lookupByName("web-1").managedSave()
    assert paper.states()["web-1"] is State.SAVED
    assert found(paper, "web-1").state is State.SAVED
    list(paper.start(["web-1"]))
    assert paper.states()["web-1"] is State.RUNNING
    assert found(paper, "web-1").reason == ""


def test_a_paused_domain_says_why(
    paper: KvmDriver, raw: Any, new_labels: NewLabels, new_spec: NewSpec
) -> None:
    list(paper.define([new_spec(new_labels())]))
    list(paper.start(["web-1"]))
    raw.lookupByName("web-1").suspend()
    assert found(paper, "web-1").reason == "by user"


class Paused:
    """A domain whose disks have errors."""

    def __init__(self, errors: dict[str, int] | None) -> None:
        self._errors = errors

    def diskErrors(self, _flags: int) -> dict[str, int]:  # noqa: N802 - libvirt's
        if self._errors is None:
            raise libvirt_error("VIR_ERR_OPERATION_TIMEOUT", "cannot acquire state change lock")
        return self._errors


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ({"vda": 2}, "I/O error, vda: pool full (ENOSPC)"),
        ({"vdb": 1}, "I/O error, vdb"),
        ({"vda": 2, "vdb": 1}, "I/O error, vda: pool full (ENOSPC); vdb"),
        ({}, "I/O error"),
        (None, "I/O error"),
    ],
)
def test_an_io_error_names_its_disks(errors: dict[str, int] | None, said: str) -> None:
    state, reason = libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR
    assert conditions.reason_of(Paused(errors), state, reason) == said


def test_a_renamed_domain_is_a_stray(
    paper: KvmDriver, raw: Any, new_labels: NewLabels, new_spec: NewSpec
) -> None:
    spec = new_spec(new_labels())
    xml = paper.render(spec).replace("<name>web-1</name>", "<name>other</name>")
    raw.defineXML(xml)
    inventory = paper.inspect()
    (stray,) = inventory.strays
    assert (stray.name, stray.labels, stray.uuid) == ("other", spec.labels, spec.uuid)
    assert stray.disks == (spec.volumes[0].path,)
    assert not inventory.domains
    assert "other" in inventory.foreign_names


def found(driver: KvmDriver, name: str) -> Domain:
    return next(domain for domain in driver.inspect().domains if domain.name == name)


def test_a_domain_defined_behind_our_back_is_noticed(
    paper: KvmDriver, raw: Any, new_labels: NewLabels, new_spec: NewSpec
) -> None:
    list(paper.define([new_spec(new_labels())]))
    assert "web-1" in paper.states()
    raw.lookupByName("web-1").undefine()
    assert "web-1" not in paper.states()
    foreign = raw.defineXML(FOREIGN.format(name="web-1", metadata=""))
    assert "web-1" not in paper.states()
    foreign.undefine()


# --- what is asked for is checked -------------------------------------------------------------


def test_libvirt_validates_what_is_defined(
    paper: KvmDriver, new_labels: NewLabels, new_spec: NewSpec
) -> None:
    good, bad = (
        new_spec(new_labels(1)),
        new_spec(new_labels(2), options=DomainOptions(disk_bus="x")),
    )
    outcomes = {o.key: o for o in paper.define([bad, good])}
    assert isinstance(outcomes["web-2"].error, InvalidRequest)
    assert "web-2" in outcomes["web-2"].error.message
    assert outcomes["web-1"].ok
    assert set(paper.states()) == {"web-1"}


def test_threads_that_define_the_same_shape_validate_it_once(
    paper: KvmDriver, new_labels: NewLabels, new_spec: NewSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = operations.make
    validated: list[bool] = []

    def slow(*args: Any, validate: bool) -> Domain:
        validated.append(validate)
        time.sleep(0.05)
        return make(*args, validate=validate)

    monkeypatch.setattr(operations, "make", slow)
    batches = [[new_spec(new_labels(index))] for index in range(1, 5)]
    with ThreadPoolExecutor(len(batches)) as pool:
        outcomes = list(pool.map(lambda batch: list(paper.define(batch)), batches))
    assert all(outcome.ok for batch in outcomes for outcome in batch)
    assert sorted(validated) == [False, False, False, True]


def validates(
    driver: KvmDriver, monkeypatch: pytest.MonkeyPatch, specs: Sequence[DomainSpec]
) -> list[bool]:
    """Define and remove domains; tell which of them libvirt was asked to validate."""
    asked: list[bool] = []
    make = operations.make

    def noting(*args: Any, validate: bool) -> Domain:
        asked.append(validate)
        return make(*args, validate=validate)

    with monkeypatch.context() as patch:
        patch.setattr(operations, "make", noting)
        list(driver.define(specs))
    list(driver.undefine([spec.name for spec in specs]))
    return asked


def test_a_later_run_knows_what_libvirt_has_validated(
    paper: KvmDriver,
    make_driver: Callable[..., KvmDriver],
    new_labels: NewLabels,
    new_spec: NewSpec,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def later(*specs: DomainSpec) -> list[bool]:
        return validates(make_driver(paper.uri), monkeypatch, specs)

    paper.context.host.state.mkdir(parents=True, exist_ok=True)
    kept = paper.context.host.state / "validated.json"
    first, second = new_spec(new_labels(1, run="r1")), new_spec(new_labels(2, run="r2"))
    bad = new_spec(new_labels(3), options=DomainOptions(disk_bus="x"))
    other = new_spec(new_labels(4), options=DomainOptions(disk_bus="sata"))
    assert later(first) == [True]
    assert later(second) == [False]
    assert later(bad) == later(bad) == [True]  # libvirt refused it
    assert later(other, first) == [True, False]
    monkeypatch.setattr(validated, "SCHEMAS", tmp_path)
    assert later(first) == [True]  # by another schema
    kept.write_text("{")
    assert later(first) == [True]
    assert later(first) == [False]


def test_names_that_are_no_clones_reach_no_file(paper: KvmDriver) -> None:
    outside = paper.context.host.state / "x.log"
    outside.parent.mkdir(parents=True)
    outside.write_bytes(b"kept")
    (outcome,) = paper.undefine(["../x"])
    assert isinstance(outcome.error, InvalidRequest)
    assert outside.read_bytes() == b"kept"
    with pytest.raises(InvalidRequest):
        paper.consoles.read("../x", 0, 10)


@given(owner=st.text(st.characters(codec="utf-8"), max_size=40))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_libvirt_keeps_labels_to_the_letter(
    paper: KvmDriver, new_labels: NewLabels, new_spec: NewSpec, owner: str
) -> None:
    labels = new_labels(owner=owner)
    (outcome,) = paper.define([new_spec(labels)])
    assert outcome.ok
    assert [domain.labels for domain in paper.inspect().domains] == [labels]
    (outcome,) = paper.undefine(["web-1"])
    assert outcome.changed


# --- console logs -----------------------------------------------------------------------------


def test_console_log_is_read_from_where_one_was(paper: KvmDriver) -> None:
    folder = paper.context.host.consoles
    folder.mkdir(parents=True)
    log = folder / "web-1.log"
    log.write_bytes(b"0123456789")
    assert paper.consoles.read("web-1", 0, 4) == (b"0123", 4)
    assert paper.consoles.read("web-1", 4, 100) == (b"456789", 10)
    assert paper.consoles.read("web-1", 10, 100) == (b"", 10)
    log.write_bytes(b"again")
    assert paper.consoles.read("web-1", 10, 100) == (b"again", 15)


def test_a_rotated_console_log_is_read_as_one(paper: KvmDriver) -> None:
    """virtlogd renames web-1.log to .0, .0 to .1, and removes what is older."""
    folder = paper.context.host.consoles
    folder.mkdir(parents=True)
    log, parts = folder / "web-1.log", [folder / f"web-1.log.{n}" for n in range(2)]
    log.write_bytes(b"first ")
    assert paper.consoles.read("web-1", 0, 100) == (b"first ", 6)
    log.write_bytes(b"first second ")
    log.rename(parts[0])
    log.write_bytes(b"third ")
    assert paper.consoles.read("web-1", 6, 100) == (b"second ", 13)
    assert paper.consoles.read("web-1", 13, 100) == (b"third ", 19)
    parts[0].rename(parts[1])
    log.rename(parts[0])
    log.write_bytes(b"fourth ")
    assert paper.consoles.read("web-1", 0, 6) == (b"first ", 6)
    assert paper.consoles.read("web-1", 19, 100) == (b"fourth ", 26)
    parts[1].unlink()
    parts[0].rename(parts[1])
    log.rename(parts[0])
    log.write_bytes(b"fifth")
    assert paper.consoles.read("web-1", 26, 100) == (b"fifth", 31)
    assert paper.consoles.read("web-1", 0, 100) == (b"third ", 19)
    for path in parts:
        path.unlink()
    log.unlink()
    log.write_bytes(b"next")
    data, offset = paper.consoles.read("web-1", 31, 100)
    assert (data, offset > 31) == (b"next", True)


def test_a_fresh_reader_begins_with_the_oldest_part(paper: KvmDriver) -> None:
    folder = paper.context.host.consoles
    folder.mkdir(parents=True)
    for name, content in (("1", b"a"), ("0", b"b"), ("", b"c")):
        (folder / f"web-1.log{'.' * bool(name)}{name}").write_bytes(content)
    said, offset = b"", 0
    while data := (read := paper.consoles.read("web-1", offset, 100))[0]:
        said, offset = said + data, read[1]
    assert said == b"abc"


def test_a_link_in_place_of_a_log_is_not_followed(paper: KvmDriver) -> None:
    folder = paper.context.host.consoles
    folder.mkdir(parents=True)
    (folder / "web-1.log").symlink_to("/etc/passwd")
    with pytest.raises(BackendError):
        paper.consoles.read("web-1", 0, 100)


def test_undefine_removes_its_logs_and_no_others(
    paper: KvmDriver, new_labels: NewLabels, new_spec: NewSpec
) -> None:
    list(paper.define([new_spec(new_labels(1)), new_spec(new_labels(11))]))
    folder = paper.context.host.consoles
    for name in ("web-1.log", "web-1.log.0", "web-1.log.1", "web-11.log", "web-11.log.0"):
        (folder / name).touch()
    list(paper.undefine(["web-1"]))
    assert {file.name for file in folder.iterdir()} == {"web-11.log", "web-11.log.0"}


# --- errors -----------------------------------------------------------------------------------


def libvirt_error(
    code: str, message: str, *, domain: str = "VIR_FROM_QEMU"
) -> libvirt.libvirtError:
    error = libvirt.libvirtError(message)
    error.err = (
        getattr(libvirt, code),
        getattr(libvirt, domain),
        message,
        libvirt.VIR_ERR_ERROR,
        *("", "", "", -1, -1),
    )
    return error


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        ("VIR_ERR_NO_DOMAIN", "Domain not found", NotFound),
        ("VIR_ERR_NO_NETWORK", "Network not found", NotFound),
        ("VIR_ERR_OPERATION_INVALID", "domain is already running", WrongState),
        ("VIR_ERR_XML_ERROR", "XML error", InvalidRequest),
        ("VIR_ERR_XML_INVALID_SCHEMA", "XML document failed to validate", InvalidRequest),
        ("VIR_ERR_CONFIG_UNSUPPORTED", "unsupported configuration", InvalidRequest),
        ("VIR_ERR_NO_MEMORY", "out of memory", NotEnoughResources),
        ("VIR_ERR_INTERNAL_ERROR", "qemu: pc.ram: Cannot allocate memory", NotEnoughResources),
        (
            "VIR_ERR_INTERNAL_ERROR",
            "qemu: Could not open '/x': Permission denied",
            HostCommandError,
        ),
        ("VIR_ERR_INTERNAL_ERROR", "process exited\nsecond line", HostCommandError),
        ("VIR_ERR_OPERATION_TIMEOUT", "cannot acquire state change lock", DeadlineExceeded),
        ("VIR_ERR_AUTH_FAILED", "authentication failed", BackendError),
        ("VIR_ERR_AUTH_UNAVAILABLE", "no polkit agent", BackendError),
        ("VIR_ERR_ACCESS_DENIED", "access denied", BackendError),
        ("VIR_ERR_OPERATION_DENIED", "read only access", BackendError),
        ("VIR_ERR_NO_SUPPORT", "not supported by the connection driver", BackendError),
        ("VIR_ERR_RESOURCE_BUSY", "busy", WrongState),
    ],
)
def test_errors_are_translated(code: str, message: str, kind: type[VmclonerError]) -> None:
    found = errors.translate(libvirt_error(code, message), "web-3")
    assert type(found) is kind
    assert found.message == f"web-3: {message.splitlines()[0]} [{code}]"
    if kind is BackendError and code != "VIR_ERR_NO_SUPPORT":
        assert "libvirt" in (found.hint or "")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "VIR_ERR_OPERATION_TIMEOUT",
            "Timed out during operation: cannot acquire state change lock",
        ),
        ("VIR_ERR_RESOURCE_BUSY", "busy"),
        ("VIR_ERR_INTERNAL_ERROR", 'qemu: Failed to get "write" lock'),
        ("VIR_ERR_OPERATION_FAILED", "timed out waiting for the device model"),
    ],
)
@pytest.mark.parametrize("faults", [2, 10**9])
def test_a_start_that_fails_by_a_passing_fault_is_made_again(
    paper: KvmDriver,
    new_labels: NewLabels,
    new_spec: NewSpec,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    message: str,
    faults: int,
) -> None:
    spec = new_spec(new_labels())
    [outcome.unwrap() for outcome in paper.define([spec])]
    begin, tried = operations.start, 0

    def start(connection: Any, name: str, boot: BootConfig | None = None) -> bool:
        nonlocal tried
        tried += 1
        begun = begin(connection, name, boot)  # as where only the answer was late
        if tried <= faults:
            raise libvirt_error(code, message)
        return begun

    monkeypatch.setattr(operations, "start", start)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    monkeypatch.setattr(retries, "PATIENCE", 0.1 if faults > 2 else 60.0)
    (outcome,) = paper.start([spec.name])
    if faults == 2:
        assert (outcome.error, outcome.changed, tried) == (None, True, 3)
    else:
        assert message in str(outcome.error)
        assert f"tried {tried} times in" in str(outcome.error)


def test_a_start_that_fails_otherwise_is_made_once(
    paper: KvmDriver, new_labels: NewLabels, new_spec: NewSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = new_spec(new_labels())
    [outcome.unwrap() for outcome in paper.define([spec])]
    tried: list[str] = []

    def start(_connection: Any, name: str, _boot: BootConfig | None = None) -> bool:
        tried.append(name)
        raise libvirt_error("VIR_ERR_INTERNAL_ERROR", "process exited while connecting")

    monkeypatch.setattr(operations, "start", start)
    (outcome,) = paper.start([spec.name])
    assert (len(tried), type(outcome.error)) == (1, HostCommandError)


@pytest.mark.parametrize(
    ("code", "domain", "broken"),
    [
        ("VIR_ERR_SYSTEM_ERROR", "VIR_FROM_RPC", True),
        ("VIR_ERR_INTERNAL_ERROR", "VIR_FROM_RPC", True),
        ("VIR_ERR_RPC", "VIR_FROM_RPC", True),
        ("VIR_ERR_INTERNAL_ERROR", "VIR_FROM_QEMU", False),
        ("VIR_ERR_SYSTEM_ERROR", "VIR_FROM_QEMU", False),
        ("VIR_ERR_NO_DOMAIN", "VIR_FROM_QEMU", False),
        ("VIR_ERR_AUTH_FAILED", "VIR_FROM_RPC", False),
    ],
)
def test_a_broken_connection_is_told_from_a_refusal(code: str, domain: str, broken: bool) -> None:
    assert errors.is_disconnect(libvirt_error(code, "message", domain=domain)) is broken


def test_libvirt_prints_nothing(paper: KvmDriver, capfd: pytest.CaptureFixture[str]) -> None:
    (outcome,) = paper.start(["web-1"])
    assert isinstance(outcome.error, NotFound)
    assert capfd.readouterr() == ("", "")


# --- many -------------------------------------------------------------------------------------


def test_a_thousand(paper: KvmDriver, new_labels: NewLabels, new_spec: NewSpec) -> None:
    specs = [new_spec(new_labels(index)) for index in range(1, 1001)]
    names = [spec.name for spec in specs]
    assert sum(o.changed for o in paper.define(specs) if o.ok) == 1000
    assert sum(not o.changed for o in paper.define(specs) if o.ok) == 1000
    start = time.monotonic()
    inventory = paper.inspect()
    inspected = time.monotonic() - start
    assert {domain.name for domain in inventory.domains} == set(names)
    paper.states()
    start = time.monotonic()
    assert set(paper.states()) == set(names)
    polled = time.monotonic() - start
    # Generous: 0.08 s and 0.006 s on an idle machine.
    assert inspected < 2
    assert polled < 0.3
    assert sum(o.changed for o in paper.start(names) if o.ok) == 1000
    assert sum(o.changed for o in paper.shutdown(names, timeout=30) if o.ok) == 1000
    assert sum(o.changed for o in paper.undefine(names) if o.ok) == 1000
    assert not paper.states()


def test_qemu_runs_no_boot_loader_of_the_host(
    paper: KvmDriver, new_spec: Callable[..., DomainSpec], new_labels: Callable[..., Labels]
) -> None:
    spec = new_spec(new_labels(), boot=BootConfig(bootloader=Path("/usr/bin/pygrub")))
    (outcome,) = paper.define([spec])
    assert isinstance(outcome.error, InvalidRequest)
    assert paper.inspect().domains == ()


class QemuDomain:
    """A domain of QEMU's driver, with firmware variables in a file."""

    def __init__(self, nvram: str) -> None:
        self.nvram = nvram

    def connect(self) -> "QemuDomain":
        return self

    def getType(self) -> str:  # noqa: N802 - libvirt's name
        return "QEMU"

    def name(self) -> str:
        return "web-1"

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's name
        return f"<domain><os>{self.nvram}</os></domain>"


@pytest.mark.parametrize(
    ("nvram", "ours"),
    [
        ("", True),
        ("<nvram>/var/lib/libvirt/qemu/nvram/web-1_VARS.fd</nvram>", True),
        ("<nvram>/home/u/.config/libvirt/qemu/nvram/web-1_VARS.fd</nvram>", True),
        ("<nvram type='file'><source file='{state}/nvram/web-1.fd'/></nvram>", True),
        ("<nvram>/etc/shadow</nvram>", False),
        ("<nvram>/usr/share/OVMF/OVMF_VARS.fd</nvram>", False),
        ("<nvram>/var/lib/libvirt/qemu/nvram/web-10_VARS.fd</nvram>", False),
        ("<nvram>/var/lib/libvirt/qemu/nvram/web-1</nvram>", False),
        ("<nvram>{state}/../web-1_VARS.fd</nvram>", False),
        ("<nvram>/srv/web-1_VARS.fd</nvram>", False),
        ("<nvram type='file'><source file='/etc/shadow'/></nvram>", False),
    ],
)
def test_only_firmware_variables_of_the_clone_itself_are_removed(
    paper: KvmDriver, nvram: str, ours: bool
) -> None:
    domain = QemuDomain(nvram.format(state=paper.context.host.state))
    flags = paper.undefine_flags(domain)
    assert bool(flags & libvirt.VIR_DOMAIN_UNDEFINE_NVRAM) is ours
    assert bool(flags & libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM) is not ours


def test_firmware_variables_behind_links_are_kept(paper: KvmDriver, tmp_path: Path) -> None:
    state = paper.context.host.state
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "qemu").mkdir()
    (tmp_path / "qemu" / "nvram").symlink_to(elsewhere)
    state.mkdir(parents=True, exist_ok=True)
    (state / "linked").symlink_to(elsewhere)
    (state / "web-1_VARS.fd").symlink_to(elsewhere / "file")
    for file in (
        tmp_path / "qemu" / "nvram" / "web-1_VARS.fd",
        state / "linked" / "web-1.fd",
        state / "web-1_VARS.fd",
    ):
        flags = paper.undefine_flags(QemuDomain(f"<nvram>{file}</nvram>"))
        assert flags & libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
        assert not flags & libvirt.VIR_DOMAIN_UNDEFINE_NVRAM


def test_logs_that_cannot_be_removed_keep_no_domain(
    paper: KvmDriver,
    new_labels: NewLabels,
    new_spec: NewSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    specs = [new_spec(new_labels(index)) for index in range(1, 6)]
    assert all(outcome.ok for outcome in paper.define(specs))
    paper.consoles.log("web-2").mkdir()  # unlink(2) fails for a folder
    paper.consoles.log("web-3").write_text("output")

    def fail(_folder: object) -> list[str]:
        raise OSError(5, "Input/output error")

    names = [spec.name for spec in specs]
    assert all(outcome.changed for outcome in paper.undefine(names[:3]))
    assert not paper.consoles.log("web-3").exists()
    monkeypatch.setattr("os.listdir", fail)
    monkeypatch.setattr("os.scandir", fail)
    assert all(outcome.changed for outcome in paper.undefine(names[3:]))
    assert not paper.states()


FIRMWARE = """<os><type>hvm</type><loader readonly="yes" type="pflash">/x.fd</loader>
<nvram template="/y.fd">{nvram}</nvram></os>"""


@pytest.mark.parametrize("whose", ["own", "another", "uuid"])
def test_a_renewed_domain_has_new_firmware_variables(
    paper: KvmDriver, raw: Any, new_labels: NewLabels, new_spec: NewSpec, whose: str
) -> None:
    """libvirt makes them from the template's when they are gone; others' files stay."""
    own = whose == "own"
    spec = new_spec(new_labels())
    xml = paper.render(spec)
    names = {"own": "web-1_VARS.fd", "another": "all_VARS.fd", "uuid": str(spec.uuid)}
    file = paper.context.host.state / names[whose]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"variables")
    xml = re.sub("(?s)<os>.*</os>", FIRMWARE.format(nvram=file), xml)
    raw.defineXML(xml)
    (outcome,) = paper.renew({"web-1": {}})
    assert outcome.ok, outcome.error
    assert (outcome.changed, file.exists()) == (own, not own)


def test_a_renewed_domain_has_its_volume_again(
    paper: KvmDriver, raw: Any, new_labels: NewLabels, new_spec: NewSpec
) -> None:
    spec = new_spec(new_labels())
    volume = spec.volumes[0]
    list(paper.define([spec]))
    before = raw.lookupByName("web-1").XMLDesc(0)
    other = volume.path.with_name(f"{volume.path.name}.s1")
    raw.defineXML(
        before.replace(str(volume.path), str(other)).replace('type="raw"', 'type="qcow2"')
    )
    (outcome,) = paper.renew({"web-1": {other: volume}})
    assert outcome.ok, outcome.error
    assert outcome.changed
    assert raw.lookupByName("web-1").XMLDesc(0) == before
    list(paper.start(["web-1"]))
    (outcome,) = paper.renew({"web-1": {}})
    assert isinstance(outcome.error, WrongState)


class Restored:
    """A domain that was saved, and pauses as often as is said when it continues."""

    def __init__(self, *reasons: int) -> None:
        self._states = [(libvirt.VIR_DOMAIN_PAUSED, reason) for reason in reasons]
        self.resumed = 0

    def state(self) -> tuple[int, int]:
        return self._states[0] if self._states else (libvirt.VIR_DOMAIN_RUNNING, 1)

    def resume(self) -> None:
        self.resumed += 1
        self._states.pop(0)

    def diskErrors(self, _flags: int) -> dict[str, int]:  # noqa: N802 - libvirt's
        return {"vda": 2}


def test_a_guest_that_was_saved_while_it_was_paused_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "SETTLING", 0.0)
    domain = Restored(libvirt.VIR_DOMAIN_PAUSED_USER)
    operations._check_goes_on(domain, "web-1", 0.0)
    assert domain.resumed == 1
    domain = Restored(libvirt.VIR_DOMAIN_PAUSED_USER, libvirt.VIR_DOMAIN_PAUSED_IOERROR)
    with pytest.raises(WrongState, match="paused again: I/O error, vda: pool full"):
        operations._check_goes_on(domain, "web-1", 0.0)
