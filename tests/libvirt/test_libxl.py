"""Why a domain wasn't made, as logs of libxl and pygrub have it; what else the host is asked."""

import contextlib
import os
import pwd
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from vmcloner_core.errors import BackendError, HostCommandError, InvalidRequest
from vmcloner_core.model import BootConfig, Check, DomainSpec, Labels, Nic, Status
from vmcloner_core.process import CommandResult, LocalRunner
from vmcloner_libvirt import operations, xen_doctor
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.libxl import MAX_REASON, Logs
from vmcloner_libvirt.xen import XenDriver
from vmcloner_libvirt.xenhost import XenHost
from vmcloner_libvirt.xenstore import Seen, Xenstore

TIME = "2026-11-25 22:00:00.000+0000: "
TRACEBACK = """Traceback (most recent call last):\r
  File "/usr/lib/xen-4.17/bin/pygrub", line 1031, in <module>\r
    raise RuntimeError("Unable to find partition containing kernel")\r
RuntimeError: Unable to find partition containing kernel\r
"""


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    logs = Logs(xen=tmp_path / "xen", libxl=tmp_path / "libxl")
    logs.xen.mkdir()
    logs.libxl.mkdir()
    return logs


def fail(logs: Logs, domid: int, output: str | None = None) -> None:
    """Write what libxl does when a boot loader fails."""
    with (logs.libxl / "libxl-driver.log").open("a") as log:
        log.write(
            f"{TIME}libxl: libxl_bootloader.c:677:bootloader_finished: Domain {domid}:"
            f"bootloader failed - consult logfile /var/log/xen/bootloader.{domid}.log\n"
            f"{TIME}libxl: libxl_create.c:1678:domcreate_rebuild_done: Domain {domid}:"
            "cannot (re-)build domain: -3\n"
        )
    if output is not None:
        (logs.xen / f"bootloader.{domid}.log").write_text(output)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (TRACEBACK, "its disk has no file system with a boot menu (grub.cfg, menu.lst, "
        "extlinux.conf) that names a kernel"),
        ("not found\r\nError opening /boot/k in guest\r\n", "boot menu entry /boot/k does "
        "not exist on the disk"),
        ("[Errno 27] File too large\r\nError writing temporary copy of ramdisk\r\n", "its ramdisk "
        "is too large: for pygrub's limit, or for the host's free space"),
        ("No kernel image selected!\r\n", "its boot menu has no entry"),
        ("\x1b[2J\x1b[1;1HSomething \x1b[7mnew\x1b[0m\r\n\x00\r\n", "Something new"),
        ("", "bootloader failed - consult logfile /var/log/xen/bootloader.7.log"),
        (None, "bootloader failed - consult logfile /var/log/xen/bootloader.7.log"),
    ],
)  # fmt: skip
def test_what_pygrub_printed_is_said_in_words(logs: Logs, output: str, reason: str) -> None:
    mark = logs.mark()
    fail(logs, 7, output)
    failure = logs.failure("web-1", mark, 7)
    assert failure is not None
    assert failure.reason == reason
    assert (failure.log is None) == (output is None)
    if failure.log is not None:
        assert failure.log.read_bytes() == output.encode()


def test_only_what_happened_since_counts(logs: Logs) -> None:
    fail(logs, 3, TRACEBACK)
    mark = logs.mark()
    assert logs.failure("web-1", mark, 4) is None
    fail(logs, 4, "No kernel image selected!")
    assert logs.failure("web-1", mark, 4).reason == "its boot menu has no entry"


def test_of_several_at_once_each_its_own(logs: Logs) -> None:
    mark = logs.mark()
    fail(logs, 4, TRACEBACK)
    fail(logs, 5, "No kernel image selected!")
    assert "no file system" in logs.failure("web-1", mark, 4).reason
    assert "no entry" in logs.failure("web-2", mark, 5).reason


def test_a_failure_that_may_be_another_domains_is_left_alone(logs: Logs) -> None:
    mark = logs.mark()
    fail(logs, 77, "No kernel image selected!")
    assert logs.failure("web-1", mark, None) is None
    assert [file.name for file in logs.xen.iterdir()] == ["bootloader.77.log"]


def test_a_boot_loader_that_did_well_is_not_blamed(logs: Logs) -> None:
    with (logs.libxl / "libxl-driver.log").open("a") as log:
        log.write(
            f"{TIME}libxl: libxl_device.c:1109:device_backend_callback: Domain 7:"
            "unable to add device with path /local/domain/0/backend/vif/7/0\n"
        )
    (logs.xen / "bootloader.7.log").write_text("Using <class 'X'> to parse /boot/grub/grub.cfg")
    reason = logs.failure("web-1", 0, 7).reason
    assert reason == "unable to add device with path /local/domain/0/backend/vif/7/0"


def test_pygrub_that_ends_well_in_spite_of_itself(logs: Logs) -> None:
    """Its parent's exit status is 256 modulo 256 when the child that it shut in fails."""
    with (logs.libxl / "libxl-driver.log").open("a") as log:
        log.write(f"{TIME}libxl: libxl_dom.c:638:libxl__build_dom: Domain 7:no kernel\n")
    (logs.xen / "bootloader.7.log").write_text("Error opening /boot/k in guest\r\n")
    reason = "boot menu entry /boot/k does not exist on the disk"
    assert logs.failure("web-1", 0, 7).reason == reason


def test_output_is_hostile(logs: Logs) -> None:
    fail(logs, 7, "x" * 10**6 + "\n" + "\x1b]0;evil\x07\x9b" + "é" * 5000)
    reason = logs.failure("web-1", 0, 7).reason
    assert len(reason) <= MAX_REASON
    assert all(character.isprintable() for character in reason.replace("\ufffd", ""))
    logs.bootloader_log("web-1").unlink()
    (logs.xen / "secret").write_text("root:x:0")
    (logs.xen / "bootloader.8.log").symlink_to("secret")
    fail(logs, 8)
    assert "root" not in logs.failure("web-1", 0, 8).reason


def test_rotated_or_missing_logs_are_no_trouble(logs: Logs) -> None:
    fail(logs, 1, TRACEBACK)
    mark = logs.mark()
    (logs.libxl / "libxl-driver.log").write_text("")
    fail(logs, 2, "No kernel image selected!")
    assert logs.failure("web-1", mark * 9, 2).reason == "its boot menu has no entry"
    (logs.libxl / "libxl-driver.log").unlink()
    assert logs.mark() == 0
    assert logs.failure("web-1", 0, 3) is None


def test_a_clones_logs_go_with_it_and_no_others(logs: Logs) -> None:
    kept = [
        logs.libxl / "web-10.log",
        logs.xen / "qemu-dm-web-10.log",
        logs.xen / "xen-hotplug.log",
    ]
    gone = [
        *(logs.libxl / name for name in ("web-1.log", "web-1.log.1")),
        *(logs.xen / name for name in ("qemu-dm-web-1.log", "qemu-dm-web-1.log.2")),
        logs.bootloader_log("web-1"),
    ]
    for file in (*kept, *gone):
        file.touch()
    logs.remove("web-1")
    assert all(file.exists() for file in kept)
    assert not any(file.exists() for file in gone)
    logs.remove("web-1")


# --- xenstore -----------------------------------------------------------------------------------


def test_xenstore_tells_a_domains_id_while_it_is_made(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    names = {0: "Domain-0", 12: "web-1"}
    asked = []

    def answer() -> None:
        while header := theirs.recv(16):
            kind, _, _, length = struct.unpack("<IIII", header)
            path = theirs.recv(length).rstrip(b"\0").decode()
            asked.append(path)
            if kind == 1:
                data = b"".join(b"%d\0" % domid for domid in (*names, 13))
            else:
                data = names.get(int(path.split("/")[3]), "").encode()
            theirs.sendall(struct.pack("<IIII", kind if data else 16, 0, 0, len(data)) + data)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    device = Path(f"/proc/self/fd/{ours.fileno()}")
    store = Xenstore(device)
    # A socket can't be opened by its path: the descriptor itself is what is "opened".
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", lambda *_: os.dup(ours.fileno()))
        assert store.domains() == {"Domain-0": 0, "web-1": 12}
        with store.watch("web-2") as seen:
            names[14] = "web-2"
            deadline = time.monotonic() + 10
            while seen.domid is None and time.monotonic() < deadline:
                time.sleep(0.02)
    assert seen.domid == 14
    assert "/local/domain/13/name" in asked
    ours.close()
    thread.join(5)


def test_without_xenstore_no_id_is_known(tmp_path: Path) -> None:
    store = Xenstore(tmp_path / "none")
    assert store.domains() == {}
    with store.watch("web-1") as seen:
        pass
    assert seen.domid is None


# --- the driver's use of them -------------------------------------------------------------------


@pytest.fixture
def spec(new_spec: Callable[..., DomainSpec], new_labels: Callable[..., Labels]) -> DomainSpec:
    nics: tuple[Nic, ...] = ()
    return new_spec(
        new_labels(hypervisor="xen"), boot=BootConfig(bootloader=Path("pygrub")), nics=nics
    )


def test_a_start_that_fails_says_why(
    make_xen: Callable[..., XenDriver],
    spec: DomainSpec,
    xen_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = make_xen()
    logs = Logs(xen=xen_root / "log/xen", libxl=xen_root / "log/libxl")
    log = driver.consoles.log(spec.name)
    log.write_text("of the start before")

    def create(*_: object) -> bool:
        fail(logs, 7, TRACEBACK)
        raise libvirt().libvirtError("libxenlight failed to create new domain 'web-1'")

    [outcome.unwrap() for outcome in driver.define([spec])]
    monkeypatch.setattr(operations, "start", create)
    monkeypatch.setattr(driver._store, "watch", lambda _name: contextlib.nullcontext(Seen(domid=7)))
    (outcome,) = driver.start([spec.name])
    assert isinstance(outcome.error, HostCommandError)
    assert outcome.error.message == (
        "web-1: can't start: its disk has no file system with a boot menu (grub.cfg, menu.lst, "
        "extlinux.conf) that names a kernel"
    )
    assert outcome.error.hint == f"see {logs.bootloader_log('web-1')}"
    assert not log.exists()
    for outcome in driver.undefine([spec.name]):
        outcome.unwrap()
    assert [file.name for file in (xen_root / "log/xen").iterdir()] == ["console"]


def test_what_libxl_does_not_explain_is_libvirts_own_error(
    make_xen: Callable[..., XenDriver], spec: DomainSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = make_xen()
    [outcome.unwrap() for outcome in driver.define([spec])]

    def create(*_: object) -> bool:
        raise libvirt().libvirtError("no such bridge")

    monkeypatch.setattr(operations, "start", create)
    (outcome,) = driver.start([spec.name])
    assert "web-1: no such bridge" in str(outcome.error)


@pytest.mark.parametrize(("times", "starts"), [(1, 2), (2, 2)])
def test_a_start_for_which_the_host_was_too_slow_is_made_once_more(
    make_xen: Callable[..., XenDriver],
    spec: DomainSpec,
    xen_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    starts: int,
) -> None:
    driver = make_xen()
    log = xen_root / "log/libxl/libxl-driver.log"
    tried: list[str] = []

    def create(_connection: object, name: str, _boot: object) -> bool:
        tried.append(name)
        if len(tried) > times:
            return True
        with log.open("a") as stream:
            stream.write(
                f"{TIME}libxl: libxl_aoutils.c:539:async_exec_timeout: killing execution of "
                "/etc/xen/scripts/vif-bridge online because of timeout\n"
                f"{TIME}libxl: libxl_create.c:1921:domcreate_attach_devices: Domain 7:"
                "unable to add vif devices\n"
            )
        raise libvirt().libvirtError("libxenlight failed to create new domain 'web-1'")

    [outcome.unwrap() for outcome in driver.define([spec])]
    monkeypatch.setattr(operations, "start", create)
    monkeypatch.setattr(driver._store, "watch", lambda _name: contextlib.nullcontext(Seen(domid=7)))
    (outcome,) = driver.start([spec.name])
    assert len(tried) == starts
    assert outcome.ok == (times < starts)
    if outcome.error is not None:
        assert "unable to add vif devices (a script took too long)" in str(outcome.error)
        assert "/etc/xen/scripts/vif-bridge online" in str(outcome.error)
        assert "starts = 1" in str(outcome.error.hint)


def test_a_start_that_failed_otherwise_is_not_made_again(logs: Logs) -> None:
    failed = f"{TIME}libxl: x.c:1:f: Domain 7:unable to add vif devices\n"
    killed = f"{TIME}libxl: x.c:1:f: killing execution of /x online because of timeout\n"
    log = logs.libxl / "libxl-driver.log"
    log.write_text(killed)
    mark = logs.mark()
    log.write_text(killed + failed)
    assert not logs.failure("web-1", mark, 7).slow
    assert logs.failure("web-1", 0, 7).slow
    assert logs.failure("web-1", 0, 8) is None


def test_the_boot_loaders_user_gets_the_disk_that_it_reads(
    make_xen: Callable[..., XenDriver],
    spec: DomainSpec,
    xen_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = spec.volumes[0].path
    disk.touch()
    given: list[tuple[Path, int, int]] = []
    monkeypatch.setattr(os, "chown", lambda *what: given.append(what))
    driver = make_xen()
    [outcome.unwrap() for outcome in driver.define([spec])]
    [outcome.unwrap() for outcome in driver.start([spec.name])]
    assert given == [], "boot loaders run as root here"
    daemon(xen_root, LIBXL_BOOTLOADER_RESTRICT="1", LIBXL_BOOTLOADER_USER="nobody")
    [outcome.unwrap() for outcome in (*driver.destroy([spec.name]), *driver.start([spec.name]))]
    assert given == [(disk, pwd.getpwnam("nobody").pw_uid, -1)]


def test_a_restricted_boot_loader_cannot_read_overlays(
    make_xen: Callable[..., XenDriver], spec: DomainSpec, xen_root: Path
) -> None:
    (volume,) = spec.volumes
    overlay = attrs.evolve(spec, volumes=(attrs.evolve(volume, format="qcow2"),))
    assert make_xen().render(overlay)
    daemon(xen_root, LIBXL_BOOTLOADER_RESTRICT="1", LIBXL_BOOTLOADER_USER="nobody")
    assert make_xen().render(spec)
    with pytest.raises(InvalidRequest, match=r"web-1: its disk is an overlay"):
        make_xen().render(overlay)


# --- the host -----------------------------------------------------------------------------------


def daemon(root: Path, **environment: str) -> None:
    """Pretend that libvirt's daemon runs with this environment."""
    (root / "run").mkdir(exist_ok=True)
    (root / "run/libvirtd.pid").write_text("314\n")
    (root / "proc/314").mkdir(parents=True, exist_ok=True)
    text = "\0".join(f"{name}={value}" for name, value in environment.items())
    (root / "proc/314/environ").write_text(f"{text}\0")


def process(root: Path, number: int, *words: str) -> None:
    folder = root / f"proc/{number}"
    folder.mkdir(parents=True)
    (folder / "cmdline").write_text("\0".join(words) + "\0")


def test_programs_are_those_of_the_xen_that_runs(xen_root: Path) -> None:
    host = XenHost(runner=LocalRunner(), root=xen_root)
    assert host.program("pygrub", "4.17") == xen_root / "usr/lib/xen-4.17/bin/pygrub"
    assert host.program("pygrub", "4.18") == xen_root / "usr/bin/pygrub"
    assert host.program("pvgrub", "4.17") is None
    assert host.emulator("4.17") == xen_root / "usr/libexec/xen-qemu-system-i386"


@pytest.mark.parametrize(
    ("words", "logs"),
    [
        (("--log=guest", "--log-dir=/var/log/xen/console"), True),
        (("--log", "all"), True),
        (("--log=hv",), False),
        ((), False),
    ],
)
def test_whether_consoles_are_logged(xen_root: Path, words: tuple[str, ...], logs: bool) -> None:
    assert XenHost(runner=LocalRunner(), root=xen_root).console_logs() is None
    process(xen_root, 7, "/usr/lib/xen-4.17/bin/xenconsoled", *words)
    process(xen_root, 8, "vi", "--log=guest", "xenconsoled")
    assert XenHost(runner=LocalRunner(), root=xen_root).console_logs() is logs


def test_as_whom_boot_loaders_run(xen_root: Path) -> None:
    host = XenHost(runner=LocalRunner(), root=xen_root)
    with pytest.raises(BackendError, match="isn't running"):
        host.bootloader_user()
    daemon(xen_root, PATH="/bin")
    assert host.bootloader_user() is None
    daemon(xen_root, LIBXL_BOOTLOADER_RESTRICT="1", LIBXL_BOOTLOADER_USER="nobody")
    assert host.bootloader_user().pw_name == "nobody"
    daemon(xen_root, LIBXL_BOOTLOADER_RESTRICT="1", LIBXL_BOOTLOADER_USER="no-such-user")
    with pytest.raises(BackendError, match="'no-such-user', which doesn't exist"):
        host.bootloader_user()
    daemon(xen_root, LIBXL_BOOTLOADER_RESTRICT="1")
    with pytest.raises(BackendError, match="but not as which user"):
        host.bootloader_user()


@pytest.mark.parametrize(
    ("commandline", "conf", "balloons"),
    [
        ("dom0_mem=2G,max:2G loglvl=all", "", False),
        ("loglvl=all", "", True),
        ("loglvl=all", "autoballoon = 0\n", False),
        ("dom0_mem=2G", '#autoballoon = 0\nautoballoon="1"\n', True),
        ("dom0_mem=max:4096M", 'autoballoon="auto"', False),
    ],
)
def test_whether_domain_0_balloons(
    xen_root: Path, commandline: str, conf: str, balloons: bool
) -> None:
    (xen_root / "etc/libvirt").mkdir(parents=True)
    (xen_root / "etc/libvirt/libxl.conf").write_text(conf)
    assert XenHost(runner=Xl(commandline), root=xen_root).balloons() is balloons


class Xl:
    """A runner on which ``xl info`` says what a host's does."""

    def __init__(self, commandline: str) -> None:
        self.commandline = commandline

    def run(self, argv: list[str], **_: object) -> CommandResult:
        assert argv == ["xl", "info"]
        text = f"host                   : h\nxen_commandline        : {self.commandline}\n"
        return CommandResult(stdout=text.encode(), stderr=b"")


@pytest.fixture
def examine(make_xen: Callable[..., XenDriver], xen_root: Path) -> Callable[..., dict[str, Check]]:
    def run(commandline: str = "dom0_mem=2G") -> dict[str, Check]:
        driver = make_xen()
        folder = xen_root / "log/xen/console"
        host, connections = XenHost(runner=Xl(commandline), root=xen_root), Kind(driver.connections)
        checks = xen_doctor.examine("xen", connections, host, folder, 1024**3)
        return {check.name: check for check in checks}

    return run


class Kind:
    """Connections to libvirt's test driver that say they lead to Xen."""

    def __init__(self, connections: object) -> None:
        self._connections = connections
        self.uri = "xen:///system"

    def ask(self, operation: Callable[[object], object]) -> object:
        return self._connections.ask(lambda connection: operation(AsXen(connection)))


class AsXen:
    def __init__(self, connection: object) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def getType(self) -> str:  # noqa: N802 - libvirt's name
        return "Xen"

    def getVersion(self) -> int:  # noqa: N802
        return 4_017_000


def make_well(root: Path) -> None:
    (root / "proc/xen").mkdir(parents=True)
    (root / "proc/xen/capabilities").write_text("control_d\n")
    process(root, 7, "xenconsoled", "--log=guest")
    daemon(root, LIBXL_BOOTLOADER_RESTRICT="1", LIBXL_BOOTLOADER_USER="nobody")


def test_the_doctor_finds_a_host_that_is_well(
    examine: Callable[..., dict[str, Check]], xen_root: Path
) -> None:
    make_well(xen_root)
    checks = examine()
    assert {name: check.status for name, check in checks.items()} == dict.fromkeys(
        [
            *("libvirt-python", "daemon", "xen", "consoles", "qemu", "pygrub", "boot loader"),
            "memory",
        ],
        Status.OK,
    )


def test_the_doctor_on_a_host_without_xen(examine: Callable[..., dict[str, Check]]) -> None:
    checks = examine()
    assert list(checks) == ["libvirt-python", "daemon", "xen"]
    assert checks["xen"].status is Status.FAILED
    assert "apt-get install xen-system-amd64" in checks["xen"].fix


def test_the_doctor_finds_what_is_missing(
    examine: Callable[..., dict[str, Check]], xen_root: Path
) -> None:
    make_well(xen_root)
    for place in ("lib/xen-4.17/bin/pygrub", "bin/pygrub", "libexec/xen-qemu-system-i386"):
        (xen_root / "usr" / place).unlink()
    daemon(xen_root, PATH="/bin")
    (xen_root / "proc/7/cmdline").write_text("xenconsoled\0")
    checks = examine("loglvl=all")
    warned = {name: check for name, check in checks.items() if check.status is Status.WARNING}
    assert list(warned) == ["consoles", "qemu", "pygrub", "boot loader", "memory"]
    assert all(check.detail and check.fix for check in warned.values())
    assert "LIBXL_BOOTLOADER_RESTRICT=1" in warned["boot loader"].fix
    assert "down to 1 GiB" in warned["memory"].detail


def test_the_doctor_wants_the_folder_of_console_logs(
    examine: Callable[..., dict[str, Check]], xen_root: Path
) -> None:
    make_well(xen_root)
    (xen_root / "log/xen/console").rmdir()
    assert examine()["consoles"].fix == f"mkdir -p {xen_root}/log/xen/console"


def test_without_xl_nothing_is_known_of_xens_command_line() -> None:
    class NoXl(LocalRunner):
        def run(self, argv: object, **_: object) -> CommandResult:
            raise BackendError("xl isn't installed")

    assert XenHost(runner=NoXl()).commandline() == ""
