"""Running labs: for a single command, or kept running until they are stopped."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import attrs

from contrib.lab import cache, machine, tree
from contrib.lab.channel import CONNECTION_LOST, Channel
from contrib.lab.errors import LabError, LabLost
from contrib.lab.image import Image, image
from contrib.lab.machine import MODES, Machine, Mode, Start
from contrib.lab.proc import run, say
from contrib.lab.states import BOOTS_WITHIN, state
from contrib.lab.supplies import TOP, supplies

RECORD = "lab.json"
_BOOTED = "LAB-READY"
"""Text on the console once all services are up."""
_GONE = ".gone-"
"""Prefix of the names of folders that are being removed."""
_KEY = "/opt/vmcloner/tree"
"""File inside with the key of the installed vmcloner."""


@attrs.frozen(kw_only=True)
class Record:
    """What the host knows about a lab. Times are seconds since the epoch."""

    mode: str
    checkout: str
    lasting: bool
    pid: int
    port: int
    memory: int
    image: str
    begun: float
    until: float


@attrs.frozen
class Lab:
    """A running lab."""

    record: Record
    channel: Channel

    def prepare(self) -> None:
        """Set the clock, and install this checkout's vmcloner if it is not installed."""
        key, archive = tree.vmcloner()
        site = f"/{tree.SITE}"
        there = self.channel.call(
            f"date -s @{time.time():.0f} >/dev/null;"
            " mountpoint -q /opt/lab || mount -r /dev/vdd /opt/lab;"
            f" cat {_KEY} 2>/dev/null || :"
        )
        if there.decode() != key:
            self.channel.call(
                f"rm -rf {site}/vmcloner*; tar -x -C / -f -; printf %s {key} >{_KEY}",
                archive.read_bytes(),
            )

    def run(
        self,
        argv: Sequence[str],
        seconds: float,
        folder: str = "/root",
        variables: Sequence[str] = (),
    ) -> int:
        """Run a command inside; see :meth:`Channel.run`.

        :raises LabLost: the lab itself is gone.
        """
        code = self.channel.run(argv, seconds, folder, variables)
        if code == CONNECTION_LOST:
            try:  # distinguishes a lost lab from a command that exits with 255
                self.channel.call(":", timeout=30)
            except LabError as error:
                raise LabLost(f"the {self.record.mode} lab no longer answers: {error}") from error
        return code


def _top() -> Path:
    path = cache.folder() / "run"
    path.mkdir(exist_ok=True)
    return path


def lasting_name(mode: Mode) -> str:
    """Return the name of this checkout's persistent lab of a mode."""
    return f"{mode.name}-up-{cache.digest(str(TOP))}"


@contextlib.contextmanager
def _folder(name: str) -> Iterator[tuple[Path, int]]:
    """Create a lab's folder; yield it with the descriptor of its lock, which is held."""
    top = _top()
    with contextlib.ExitStack() as stack:
        with cache.locked(top / "lock"):
            sweep()
            path = top / name
            if path.exists():
                raise LabError(f"{name} is running already; see: contrib/lab/lab status")
            path.mkdir(mode=0o700)
            descriptor = stack.enter_context(cache.locked(path / "lock"))
            assert descriptor is not None
        yield path, descriptor


def sweep() -> None:
    """Remove the folders of dead labs: their locks are not held."""
    for path in _top().iterdir():
        if path.name.startswith(_GONE):
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_dir() and not _is_held(path):
            _remove(path)


def _is_held(folder: Path) -> bool:
    """Return whether a lab's lock is held. Creates no file: the lab may be ending right now."""
    try:
        with cache.locked(folder / "lock", wait=False, create=False) as descriptor:
            return descriptor is None
    except FileNotFoundError:
        return False


def _remove(folder: Path) -> None:
    """Remove a lab's folder. It is renamed first, so that it is no longer listed."""
    gone = folder.with_name(f"{_GONE}{folder.name}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def running() -> list[tuple[Path, Record]]:
    """Return the running labs of all checkouts and modes, with their folders."""
    labs = []
    for path in sorted(_top().iterdir()):
        if path.name.startswith(_GONE) or not path.is_dir() or not _is_held(path):
            continue
        # It is starting or ending, or belongs to another checkout with a different record format.
        with contextlib.suppress(OSError, ValueError, TypeError):
            labs.append((path, Record(**json.loads((path / RECORD).read_text()))))
    return labs


def _start(
    mode: Mode,
    folder: Path,
    lock: int,
    seconds: float,
    *,
    lasting: bool = False,
    boot: bool = False,
) -> tuple[Machine, Lab]:
    """Start a machine: from the saved state with pristine disks, or by booting its own disks."""
    built = image()
    saved = state(mode, built)
    disk = supplies(guest=mode.has_guest)
    tree.vmcloner()
    if not boot:
        machine.make_overlays(folder, saved.disks())
    begun = time.time()
    host = Machine(
        Start(
            mode=mode,
            image=built,
            folder=folder,
            supplies=disk,
            seconds=seconds,
            state=None if boot else saved.memory,
            lasting=lasting,
            lock=lock,
        )
    )
    record = Record(
        mode=mode.name,
        checkout=str(TOP),
        lasting=lasting,
        pid=host.pid,
        port=host.port,
        memory=mode.memory,
        image=str(built.folder),
        begun=begun,
        until=begun + seconds,
    )
    lab = Lab(record, Channel(built, folder, host.port))
    try:
        draft = folder / f".{RECORD}"
        draft.write_text(json.dumps(attrs.asdict(record)))
        draft.rename(folder / RECORD)
        if boot:
            host.wait_for_console(_BOOTED, BOOTS_WITHIN)
        lab.prepare()
    except BaseException:
        host.kill()
        raise
    return host, lab


@contextlib.contextmanager
def lab(mode: Mode, seconds: float) -> Iterator[Lab]:
    """Yield this checkout's persistent lab if it is up; otherwise one that ends with the block.

    :param seconds: time limit of a lab that ends with the block.
    """
    attached = attach(mode)
    if attached is not None:
        attached.prepare()
        yield attached
        return
    with _folder(f"{mode.name}-{secrets.token_hex(4)}") as (folder, lock):
        try:
            host, fresh = _start(mode, folder, lock, seconds)
            with host:
                try:
                    yield fresh
                except LabLost as error:
                    raise LabLost(f"{error}\n{host.describe()}", host.console()) from error
        finally:
            _remove(folder)


class Breakable:
    """A lab whose power can be cut. Its disks keep their contents, except the root disk.

    The file system of the root disk has no journal, so each boot gets a new root disk.
    """

    def __init__(self, mode: Mode, folder: Path, lock: int, seconds: float) -> None:
        self._mode, self._folder, self._lock, self._seconds = mode, folder, lock, seconds
        self._host, self.lab = _start(mode, folder, lock, seconds)

    def cut(self) -> None:
        """Cut the power immediately."""
        pid = self._host.pid  # the process that enforces its time limit, and ends after it
        if self._host.alive():
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        while self._host.alive():
            time.sleep(0.02)
        self._host.kill()
        self.lab.channel.close()

    def boot(self) -> None:
        """Boot from the disks after a power cut."""
        overlay = ["-b", str(image().disk), "-F", "qcow2", str(self._folder / "root.qcow2")]
        run(["qemu-img", "create", "-q", "-f", "qcow2", *overlay, machine.DISKS["root"]])
        self._host, self.lab = _start(
            self._mode, self._folder, self._lock, self._seconds, boot=True
        )


@contextlib.contextmanager
def breakable(mode: Mode, seconds: float) -> Iterator[Breakable]:
    """Yield a new lab whose power can be cut; remove it afterwards.

    :param seconds: time limit after each boot.
    """
    name = f"{mode.name}-{secrets.token_hex(4)}"
    with _folder(name) as (folder, lock), contextlib.ExitStack() as stack:
        stack.callback(_remove, folder)
        power = Breakable(mode, folder, lock, seconds)
        stack.callback(power.cut)
        yield power


def attach(mode: Mode) -> Lab | None:
    """Return this checkout's persistent lab of a mode, or None if it is not up."""
    for path, record in running():
        if path.name == lasting_name(mode):
            return Lab(record, Channel(Image(Path(record.image)), path, record.port))
    return None


def up(mode: Mode, seconds: float) -> None:
    """Start a persistent lab, unless it is already up."""
    if attach(mode) is not None:
        return
    with _folder(lasting_name(mode)) as (folder, lock):
        host, _ = _start(mode, folder, lock, seconds, lasting=True)
        host.release()


def down(mode: Mode) -> None:
    """Stop the persistent lab, if it is up."""
    attached = attach(mode)
    if attached is None:
        return
    attached.channel.close()
    machine.kill(attached.record.pid)
    path = _top() / lasting_name(mode)
    with cache.locked(path / "lock"):  # the machine is gone
        _remove(path)


def status() -> None:
    """List running labs."""
    found = running()
    if not found:
        say("no lab is running")
    for path, record in found:
        until = datetime.fromtimestamp(record.until).strftime("%H:%M:%S")
        kind = "up" if record.lasting else "one use"
        print(
            f"{path.name}  {record.mode}  {kind}  pid {record.pid}  memory {record.memory} MiB"
            f"  until {until}  {record.checkout}"
        )


def mode_named(name: str) -> Mode:
    """Return the mode with this name."""
    return MODES[name]
