"""Measure vmcloner against what a user would do otherwise; see README.md beside this file."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs
from platformdirs import user_cache_path
from rich.console import Console
from rich.table import Table

from vmcloner_core import CloneMode, Engine
from vmcloner_core.drivers import DriverContext, ImageFile, StorageDriver
from vmcloner_core.model import CloneRequest, Host, Labels
from vmcloner_core.plugins import PluginHost
from vmcloner_core.process import LocalRunner

VMCLONER = Path(sys.executable).with_name("vmcloner")
URI = "qemu:///system"
MIB = 1024**2
ROUNDS = 5
# A user's Python keeps its bytecode.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


@attrs.frozen(kw_only=True)
class Row:
    """One way of doing a section's work. ``seconds`` for all of it, sampled or not."""

    section: str
    work: str
    way: str
    seconds: float
    note: str = ""


@attrs.frozen
class Site:
    """A scratch folder that QEMU's user can read, with settings and a template ``bench``."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "vmcloner.toml"

    @property
    def image(self) -> Path:
        return self.folder / "templates" / "bench.qcow2"

    def vmcloner(self, *words: str) -> None:
        run([str(VMCLONER), "--config", str(self.config), "-q", *words], cwd=self.folder)


def run(
    argv: list[str],
    cwd: Path | None = None,
    timeout: float = 900,
    environment: Mapping[str, str] = ENVIRONMENT,
) -> None:
    subprocess.run(
        argv, check=True, cwd=cwd, timeout=timeout, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True,
    )  # fmt: skip


def quietly(argv: list[str]) -> None:
    """Clean up: what isn't there needn't be removed."""
    subprocess.run(argv, check=False, capture_output=True, timeout=300)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextlib.contextmanager
def site() -> Iterator[Site]:
    """Make a site, and take away whatever was made in it."""
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-bench-", dir="/var/tmp"))
    made = Site(folder)
    try:
        folder.chmod(0o755)
        (folder / "templates").mkdir()
        made.config.write_text(f'[hosts.local]\nstate = "{folder}/state"\n')
        (folder / "templates" / "bench.toml").write_text(
            'hypervisors = ["kvm"]\nmemory = "64MiB"\n[image]\npath = "bench.qcow2"\n'
        )
        raw = folder / "data.raw"
        with raw.open("wb") as stream:
            for _ in range(256):
                stream.write(os.urandom(MIB))
            stream.truncate(1024 * MIB)
        run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(made.image)])
        raw.unlink()
        # Whether KVM works is found out once after each boot, not once for each fleet.
        made.vmcloner("template", "check", "bench")
        yield made
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            made.vmcloner("delete", "bench", "embedded", "--yes", "--missing-ok")
        shutil.rmtree(folder)


# --- create -------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Way:
    """One way of making N clones. ``undo`` removes them; only ``make`` is measured.

    :param once: whether it takes so long that one round must do.
    """

    name: str
    make: Callable[[], object]
    undo: Callable[[], object]
    once: bool = False


def create(count: int) -> Iterator[Row]:
    """N clones, created and defined, not started: all ways in turn, in several rounds."""
    work = f"{count} clones created and defined"
    with site() as here, contextlib.chdir(here.folder), contextlib.ExitStack() as stack:
        here.vmcloner("template", "import", "bench")
        engine = stack.enter_context(Engine.open(config=here.config))
        engine.list()  # connected, as a service is

        def by_command() -> None:
            here.vmcloner("create", "bench", "-t", "bench", "-n", str(count))

        ways = [
            Way(name="vmcloner create", make=by_command, undo=lambda: engine.delete("bench")),
            Way(
                name="Engine.create in process",
                make=lambda: engine.create("embedded", "bench", count=count),
                undo=lambda: engine.delete("embedded"),
            ),
        ]
        ways += stack.enter_context(_bare_libvirt(here, engine, count))
        ways += stack.enter_context(_kcli(here, count))
        ways += stack.enter_context(_virt_lightning(here, count))
        with _virt_clone(here, count) as slow:
            ways += slow
            seconds: dict[str, list[float]] = {way.name: [] for way in ways}
            for number in range(ROUNDS + 1):
                for way in ways:
                    if number == 0 or not way.once:
                        seconds[way.name].append(timed(way.make))
                        way.undo()
        for way in ways:
            # The first round fills caches: bytecode, the daemon's, the page cache.
            measured = sorted(seconds[way.name][0 if way.once else 1 :])
            note = "one round" if way.once else f"median of {ROUNDS}, least {measured[0]:.3f} s"
            yield Row(
                section="create", work=work, way=way.name, seconds=measured[len(measured) // 2],
                note=note,
            )  # fmt: skip


@contextlib.contextmanager
def _bare_libvirt(here: Site, engine: Engine, count: int) -> Iterator[list[Way]]:
    """A storage volume with a backing file and a domain for each, one connection, one thread.

    With the first domain validated against libvirt's schema, as vmcloner does the first time; with
    all of them, which takes libvirt several times as long as the rest; and with none.
    """
    import libvirt

    engine.create("bench", "bench")
    xml = engine.domain_xml("bench-1")
    [clone] = engine.list("bench")
    volume, mac = str(clone.volumes[0].path), clone.mac or ""
    engine.delete("bench")
    connection = libvirt.open(URI)
    folder = here.folder / "bare"
    folder.mkdir()
    pool = connection.storagePoolCreateXML(
        f"<pool type='dir'><name>{here.folder.name}-bare</name>"
        f"<target><path>{folder}</path></target></pool>"
    )
    volume_xml = (
        "<volume><name>{}</name><capacity>1073741824</capacity>"
        "<target><format type='qcow2'/></target>"
        f"<backingStore><path>{here.image}</path><format type='qcow2'/></backingStore></volume>"
    )
    start, end = xml.index("<uuid>"), xml.index("</uuid>") + len("</uuid>")
    xml = xml[:start] + xml[end:]

    def make(validated: int) -> None:
        for number in range(1, count + 1):
            name = f"bare-{number}"
            pool.createXML(volume_xml.format(name))
            text = xml.replace(volume, str(folder / name)).replace("bench-1", name)
            text = text.replace(mac, f"{mac[:-5]}{number // 256:02x}:{number % 256:02x}")
            validate = libvirt.VIR_DOMAIN_DEFINE_VALIDATE if number <= validated else 0
            connection.defineXMLFlags(text, validate)

    def undo() -> None:
        for domain in connection.listAllDomains():
            if domain.name().startswith("bare-"):
                domain.undefine()
        for file in pool.listAllVolumes():
            file.delete()

    try:
        yield [
            Way(name="bare libvirt calls", make=lambda: make(1), undo=undo),
            Way(name="bare libvirt calls, each domain validated", make=lambda: make(count),
                undo=undo),
            Way(name="bare libvirt calls, no domain validated", make=lambda: make(0), undo=undo),
        ]  # fmt: skip
    finally:
        undo()
        pool.destroy()
        connection.close()


@contextlib.contextmanager
def _virt_clone(here: Site, count: int) -> Iterator[list[Way]]:
    """A full copy for each: virt-clone makes no linked clones."""
    if shutil.which("virt-clone") is None:
        yield []
        return
    original = here.folder / "original.qcow2"
    shutil.copy(here.image, original)
    argv = ["virt-install", "--connect", URI, "--name", "vcoriginal", "--memory", "64", "--import",
            "--disk", f"path={original}", "--osinfo", "linux2022", "--noautoconsole", "--noreboot",
            "--print-xml", "1"]  # fmt: skip
    xml = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120).stdout
    file = here.folder / "vcoriginal.xml"
    file.write_text(xml)
    virsh = ["virsh", "-q", "-c", URI]
    run([*virsh, "define", str(file)])
    names = [f"vc-{number}" for number in range(1, count + 1)]

    def make() -> None:
        for name in names:
            run(["virt-clone", "-q", "--connect", URI, "--original", "vcoriginal", "--name", name,
                 "--file", str(here.folder / f"{name}.qcow2")])  # fmt: skip

    def undo() -> None:
        for name in names:
            quietly([*virsh, "undefine", name])

    try:
        yield [Way(name="loop of virt-clone, full copies", make=make, undo=undo, once=True)]
    finally:
        undo()
        quietly([*virsh, "undefine", "vcoriginal"])
        # virt-install and virt-clone make a pool of each folder that a disk lies in.
        quietly([*virsh, "pool-destroy", here.folder.name])
        quietly([*virsh, "pool-undefine", here.folder.name])


@contextlib.contextmanager
def _kcli(here: Site, count: int) -> Iterator[list[Way]]:
    """An overlay and a domain for each, by one command: see benchmarks/README.md."""
    installed = shutil.which("kcli")
    program = Path(installed) if installed else _program("kcli", "kcli")
    if program is None:
        yield []
        return
    folder = here.folder / "kcli"
    folder.mkdir(mode=0o755)
    shutil.copy(here.image, folder / "bench.qcow2")
    environment = {**ENVIRONMENT, "HOME": str(folder)}  # it writes ~/.kcli

    def kcli(*words: str) -> None:
        run([str(program), *words], environment=environment)

    kcli("create", "pool", "-p", str(folder), "vmclonerbench")
    names = [f"kc-{number}" for number in range(count)]

    def make() -> None:
        kcli("create", "vm", "-i", "bench.qcow2", "-c", str(count), "kc", "-P", "start=false",
             "-P", "pool=vmclonerbench", "-P", "memory=64", "-P", "numcpus=1", "-P", "nets=[]",
             "-P", "cloudinit=false")  # fmt: skip

    def undo() -> None:
        kcli("delete", "vm", "-y", *names)

    try:
        yield [Way(name="kcli create vm -c N", make=make, undo=undo)]
    finally:
        kcli("delete", "pool", "-y", "vmclonerbench")


@contextlib.contextmanager
def _virt_lightning(here: Site, count: int) -> Iterator[list[Way]]:
    """An overlay and a domain for each, by its library: its command can't but start them."""
    python = _program("virt-lightning", "python")
    if python is None:
        yield []
        return
    folder = here.folder / "virt-lightning"
    (folder / "upstream").mkdir(mode=0o755, parents=True)
    shutil.copy(here.image, folder / "upstream" / "bench.qcow2")
    (folder / "id.pub").write_text("ssh-ed25519 AAAA bench\n")
    script = Path(__file__).with_name("virt_lightning_up.py")
    pool = f"{here.folder.name}-vl"
    virsh = ["virsh", "-q", "-c", URI]
    run([*virsh, "pool-create-as", pool, "dir", "--target", str(folder)])

    def make() -> None:
        run([str(python), str(script), URI, pool, str(folder / "id.pub"), str(count)])

    def undo() -> None:
        for number in range(1, count + 1):
            quietly([*virsh, "undefine", f"vl-{number}"])
            quietly([*virsh, "vol-delete", "--pool", pool, f"vl-{number}-0.qcow2"])

    try:
        yield [Way(name="virt-lightning up, without its start", make=make, undo=undo)]
    finally:
        undo()
        quietly([*virsh, "pool-destroy", pool])


def _program(package: str, name: str) -> Path | None:
    """Return a program of a package: of a venv of its own in the user's cache, made once."""
    folder = user_cache_path("vmcloner") / "benchmarks" / package
    done = folder / "installed"
    if not done.exists():
        try:
            run([sys.executable, "-m", "venv", "--clear", str(folder)])
            run([str(folder / "bin" / "pip"), "install", "--quiet", package])
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            print(f"without {package}: it can't be installed: {said[-1]}", file=sys.stderr)
            return None
        done.touch()
    return folder / "bin" / name


# --- clone --------------------------------------------------------------------------------------


@contextlib.contextmanager
def filesystem(kind: str) -> Iterator[Path]:
    """Give a folder on the scratch folder's own file system, or on a fresh one in a loop device."""
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-bench-", dir="/var/tmp"))
    try:
        if kind == "native":
            yield folder
            return
        image = folder / "fs.img"
        with image.open("wb") as stream:
            stream.truncate(4096 * MIB)
        mount = folder / "mnt"
        mount.mkdir()
        run([f"mkfs.{kind}", "-q", str(image)])
        run(["mount", "-o", "loop", str(image), str(mount)])
        try:
            yield mount
        finally:
            run(["umount", str(mount)])
    finally:
        shutil.rmtree(folder)


def clone(count: int) -> Iterator[Row]:
    """The cost of one clone, as their number grows."""
    for kind, method in (("native", "overlay"), ("xfs", "reflink"), ("btrfs", "reflink")):
        if kind != "native" and shutil.which(f"mkfs.{kind}") is None:
            continue
        with filesystem(kind) as folder:
            yield from _clone_on(folder, kind, method)
            yield from _clone_by_hand(folder, kind, method, count)


def _clone_on(folder: Path, kind: str, method: str) -> Iterator[Row]:
    backend = PluginHost().storage("files")
    context = DriverContext(
        host=Host(name="local", state=folder), name="files", runner=LocalRunner()
    )
    driver = backend.factory(context, backend.settings(path=folder / "pool", clone=method))
    source = folder / "source.raw"
    with source.open("wb") as stream:
        stream.write(os.urandom(64 * MIB))
        stream.truncate(1024 * MIB)
    image = ImageFile(path=source, format="raw", size=1024 * MIB, digest="sha256:bench")
    origin = driver.import_image("bench", image, lambda _done, _total: None).unwrap()
    for number in (10, 100, 1000):
        requests = [
            CloneRequest(
                labels=Labels(
                    fleet=f"bench{number}x", index=index, template="bench", run="r", owner="o",
                    created="2026-01-01T00:00:00Z", storage="files", hypervisor="kvm",
                ),
                origin=origin,
                mode=CloneMode.LINKED,
            )
            for index in range(1, number + 1)
        ]  # fmt: skip
        seconds = timed(lambda requests=requests: _all(driver, requests))
        yield Row(
            section="clone", work=f"one {method} on {kind}", way=f"vmcloner, {number:,} in a batch",
            seconds=seconds / number, note=f"{origin.extents} extent(s)",
        )  # fmt: skip
        for outcome in driver.delete(driver.volumes()):
            outcome.unwrap()


def _all(driver: StorageDriver, requests: list[CloneRequest]) -> None:
    step = driver.clone_lane.batch
    for first in range(0, len(requests), step):
        for outcome in driver.clone(requests[first : first + step]):
            outcome.unwrap()


def _clone_by_hand(folder: Path, kind: str, method: str, count: int) -> Iterator[Row]:
    source = folder / "source.raw"
    if method == "reflink":
        way, argv = "cp --reflink", ["cp", "--reflink=always", str(source)]
    else:
        way = "qemu-img create -b"
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(source)]

    def make() -> None:
        for number in range(count):
            run([*argv, str(folder / f"hand-{number}")])

    yield Row(
        section="clone", work=f"one {method} on {kind}", way=way, seconds=timed(make) / count,
        note=f"{count} sampled",
    )  # fmt: skip


# --- start --------------------------------------------------------------------------------------


def start(count: int) -> Iterator[Row]:
    """Machines started, not booted to anything: the cost of the management alone."""
    work = f"{count} machines of 64 MiB started"
    with site() as here, contextlib.chdir(here.folder):
        here.vmcloner("create", "bench", "-t", "bench", "-n", str(count))
        with Engine.open(config=here.config) as engine:
            engine.list()
            seconds = timed(lambda: engine.start("bench"))
            yield Row(section="start", work=work, way="Engine.start", seconds=seconds)
            disks = [clone.volumes[0].path for clone in engine.list("bench")]
            engine.stop("bench", kill=True)
        yield Row(section="start", work=work, way="loop of qemu", seconds=_raw_qemu(disks))


def _raw_qemu(disks: list[Path]) -> float:
    """Start QEMU by hand, one after the other, until its monitor greets."""
    processes = []
    started = time.perf_counter()
    try:
        for disk in disks:
            process = subprocess.Popen(
                ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-m", "64", "-S",
                 "-nodefaults", "-display", "none", "-qmp", "stdio",
                 "-drive", f"file={disk},if=virtio,format=qcow2"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            processes.append(process)
            assert process.stdout is not None
            assert b"QMP" in process.stdout.readline()
        return time.perf_counter() - started
    finally:
        for process in processes:
            process.kill()
            process.communicate()


# --- reset --------------------------------------------------------------------------------------


def reset(count: int) -> Iterator[Row]:
    """Clones as their template is again: in place, and by making them anew."""
    with site() as here, contextlib.chdir(here.folder):
        here.vmcloner("template", "import", "bench")
        with Engine.open(config=here.config) as engine:
            for started in (False, True):
                yield from _reset(engine, count, started=started)


def _reset(engine: Engine, count: int, *, started: bool) -> Iterator[Row]:
    work = f"{count} clones as new" + (", started before and after" if started else "")
    engine.create("bench", "bench", count=count, start=started)

    def anew() -> None:
        engine.delete("bench")
        engine.create("bench", "bench", count=count, start=started)

    def in_place() -> None:
        engine.reset("bench")

    # In turn, so that what else the machine does meanwhile falls on both.
    times: dict[str, list[float]] = {"Engine.reset": [], "Engine.delete, Engine.create": []}
    for _ in range(3):
        for way, do in zip(times, (in_place, anew), strict=True):
            times[way].append(timed(do))
    for way, measured in times.items():
        yield Row(
            section="reset", work=work, way=way, seconds=sorted(measured)[1], note="median of 3"
        )
    engine.delete("bench")


# --- list ---------------------------------------------------------------------------------------


def listing(count: int) -> Iterator[Row]:
    """What ``list`` costs once there is much to list."""
    work = "a list of 1,000 clones"
    with site() as here:
        here.vmcloner("create", "bench", "-t", "bench", "-n", "1000")
        way = "vmcloner list -f json"
        seconds = timed(lambda: here.vmcloner("list", "-f", "json"))
        yield Row(section="list", work=work, way=way, seconds=seconds)
        with contextlib.chdir(here.folder), Engine.open(config=here.config) as engine:
            engine.list()
            way = "Engine.list in process"
            yield Row(section="list", work=work, way=way, seconds=timed(engine.list))

        def by_hand() -> None:
            for number in range(1, count + 1):
                run(["virsh", "-q", "-c", URI, "dumpxml", f"bench-{number}"])

        seconds = timed(by_hand) * 1000 / count
        yield Row(
            section="list", work=work, way="virsh dumpxml for each", seconds=seconds,
            note=f"{count} sampled",
        )  # fmt: skip


# --- report -------------------------------------------------------------------------------------

SECTIONS = {"create": create, "clone": clone, "start": start, "reset": reset, "list": listing}


def table(rows: list[Row]) -> Table:
    """Return the rows with each one's ratio to the first of the same work."""
    shown = Table(title="vmcloner's time is 1; higher is slower")
    for column, justify in (("work", "left"), ("way", "left"), ("time", "right"),
                            ("ratio", "right"), ("note", "left")):  # fmt: skip
        shown.add_column(column, justify=justify)
    first: dict[str, float] = {}
    for row in rows:
        base = first.setdefault(row.work, row.seconds)
        time_shown = f"{row.seconds * 1000:.2f} ms" if row.seconds < 1 else f"{row.seconds:.2f} s"
        shown.add_row(row.work, row.way, time_shown, f"{row.seconds / base:.2f}", row.note)
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; default all")
    parser.add_argument("-n", type=int, default=20, help="clones; loops by hand are as long")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/latest.json"))
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"unknown section {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        parser.error("needs root: it mounts file systems and defines machines")
    rows: list[Row] = []
    console = Console()
    for name in options.sections or SECTIONS:
        with console.status(f"measuring {name}"):
            rows += SECTIONS[name](options.n)
    console.print(table(rows))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    host = {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    options.json.write_text(
        json.dumps({"host": host, "rows": [attrs.asdict(row) for row in rows]}, indent=2) + "\n"
    )
    console.print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
