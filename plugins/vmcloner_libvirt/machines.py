"""Domains apart from their disks, kept in folders: for snapshots.

``machine.json``  what the domain was like, and how long the memory's file is; written last
``memory``        libvirt's save image, the one of "managed save" (virDomainManagedSave)
``variables-N``   the firmware's variables, N the number of the file among those possible
``tpm``           the folder of the emulated TPM

libvirt has no call to keep a managed save image, which it removes when the domain continues. So the
file gets a second name, or is copied where that isn't possible. Nobody writes to such an image.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vmcloner_core.drivers import MachineInterface
from vmcloner_core.errors import BackendError, NotFound, WrongState
from vmcloner_core.model import Outcome, State
from vmcloner_core.os_errors import of_state
from vmcloner_libvirt import firmware, memory, operations, renewing
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.conditions import state_of
from vmcloner_libvirt.errors import is_code
from vmcloner_libvirt.metadata import parse, path_of
from vmcloner_libvirt.whereabouts import freeze, thaw

Each = Callable[[Sequence[str], Callable[[Any, str], bool]], Iterator[Outcome[None]]]
MANIFEST = "machine.json"
MEMORY = "memory"
VARIABLES = "variables-"
TPM = "tpm"
MAX_MANIFEST = 1024**2
MAGIC = (b"LibvirtQemudSave", b"libvirt-xml\n \0")
"""How complete save images of libvirt's drivers for QEMU and for Xen begin."""
SAVING, SAVING_PAUSE = 60.0, 0.1
"""Seconds in which a save that nobody wants ends, and between two looks."""


class Machines(MachineInterface):
    """The machines of one hypervisor's domains. Thread-safe.

    :param each: runs an operation on several domains; it tells whether it changed something.
    :param is_own: tells whether a file with firmware variables is the own one of a clone.
    """

    def __init__(self, each: Each, is_own: Callable[[str, Path], bool]) -> None:
        self._each = each
        self._is_own = is_own

    def quiesce(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`MachineInterface.quiesce`."""
        yield from self._each(names, quiesce)

    def release(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`MachineInterface.release`."""
        yield from self._each(names, release)

    def keep(self, folders: Mapping[str, Path], *, memory: bool) -> Iterator[Outcome[None]]:
        """See :meth:`MachineInterface.keep`."""

        def kept(connection: Any, name: str) -> bool:
            return keep(connection, name, folders[name], with_memory=memory)

        yield from self._each(list(folders), kept)

    def resume(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`MachineInterface.resume`."""
        yield from self._each(names, resume)

    def check(self, folders: Mapping[str, Path]) -> Iterator[Outcome[None]]:
        """See :meth:`MachineInterface.check`."""

        def right(connection: Any, name: str) -> bool:
            check(operations.ours(connection, name), name, folders[name])
            return False

        yield from self._each(list(folders), right)

    def put_back(self, folders: Mapping[str, Path]) -> Iterator[Outcome[None]]:
        """See :meth:`MachineInterface.put_back`."""

        def back(connection: Any, name: str) -> bool:
            return put_back(connection, name, folders[name], self._is_own)

        yield from self._each(list(folders), back)


# --- quiet disks ------------------------------------------------------------------------------


def quiesce(connection: Any, name: str) -> bool:
    """Freeze a guest's file systems, and pause it; QEMU writes what it holds when it pauses."""
    freeze(connection, name, otherwise=", or take the snapshot with --memory")
    try:
        operations.ours(connection, name).suspend()
    except (libvirt().libvirtError, NotFound):
        thaw(connection, name)
        raise
    return True


def release(connection: Any, name: str) -> bool:
    """Continue a guest that is quiesced; tell whether it was paused."""
    module = libvirt()
    domain = operations.active(connection, name)
    if domain is None:
        return False
    state, reason = domain.state()
    paused = (state, reason) == (module.VIR_DOMAIN_PAUSED, module.VIR_DOMAIN_PAUSED_USER)
    if paused:
        domain.resume()
    thaw(connection, name)
    return bool(paused)


# --- keeping ----------------------------------------------------------------------------------


def keep(connection: Any, name: str, folder: Path, *, with_memory: bool) -> bool:
    """Copy a domain's state into a folder; returns True."""
    domain = operations.ours(connection, name)
    state = state_of(*domain.state(), saved=domain.hasManagedSaveImage() == 1)
    if with_memory and state is not State.SAVED:
        raise WrongState(f"{name} is {state.value}, not saved", hint=f"vmcloner save {name}")
    root, uri = parse(operations.definition(domain)), connection.getURI()
    manifest: dict[str, Any] = {"like": described(root)}
    try:
        for number, file in enumerate(firmware.variables(root, uri)):
            if os.path.lexists(file):
                _copied(file, folder / f"{VARIABLES}{number}")
        tpm = _tpm(root, uri)
        if tpm is not None and tpm.is_dir():
            shutil.copytree(tpm, folder / TPM, symlinks=True, copy_function=_copied)
            _same_owner(tpm, folder / TPM)
        if with_memory:
            image = firmware.save_image(name, uri)
            if image is None:
                raise BackendError(f"{name}: {uri} keeps no memory in files")
            _linked(image, folder / MEMORY)
            manifest["memory"] = (folder / MEMORY).stat().st_size
        (folder / MANIFEST).write_text(json.dumps(manifest))
    except OSError as error:
        raise of_state(error, error.filename or folder) from error
    return True


def _copied(source: str | Path, target: str | Path) -> str:
    """Copy a file with its owner: libvirt gives these to the user of QEMU or swtpm."""
    shutil.copy2(source, target, follow_symlinks=False)
    _same_owner(source, target)
    return str(target)


def _same_owner(source: str | Path, target: str | Path) -> None:
    if os.geteuid() == 0:
        status = os.lstat(source)
        os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)


def _linked(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where its file system is another."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
        target.chmod(0o600)


def described(root: Any) -> dict[str, Any]:
    """Return what a machine's memory depends on, of its definition: as JSON has it."""
    devices = root.find("devices")
    kinds = sorted({child.tag for child in devices if isinstance(child.tag, str)})
    os_type = root.find("os/type")
    disks = [
        [
            (disk.find("target").get("dev") if disk.find("target") is not None else ""),
            disk.get("device", "disk"),
            (driver.get("type") if (driver := disk.find("driver")) is not None else ""),
            str(path_of(disk.find("source")) or ""),
        ]
        for disk in devices.iterfind("disk")
    ]
    cards = [
        [
            (mac.get("address", "") if (mac := card.find("mac")) is not None else ""),
            (model.get("type", "") if (model := card.find("model")) is not None else ""),
        ]
        for card in devices.iterfind("interface")
    ]
    return {
        "UUID": root.findtext("uuid"),
        "memory": root.findtext("memory"),
        "current memory": root.findtext("currentMemory"),
        "vcpus": root.findtext("vcpu"),
        "machine": dict(os_type.attrib) if os_type is not None else {},
        "disks": disks,
        "network cards": cards,
        "devices": {kind: len(devices.findall(kind)) for kind in kinds},
    }


# --- putting back -----------------------------------------------------------------------------


def check(domain: Any, name: str, folder: Path) -> dict[str, Any]:
    """Check that a folder is complete and fits a domain; returns its manifest."""
    manifest = _manifest(name, folder)
    size = manifest.get("memory")
    if size is None:
        return manifest
    image = folder / MEMORY
    try:
        with image.open("rb") as stream:
            found = os.fstat(stream.fileno()).st_size
            begins = stream.read(max(map(len, MAGIC)))
    except OSError as error:
        raise _damaged(name, image, error.strerror or str(error)) from error
    if found != size:
        raise _damaged(name, image, f"{found} bytes of {size}")
    if not begins.startswith(MAGIC):
        raise _damaged(name, image, "it isn't a complete save image of libvirt's")
    now, then = described(parse(operations.definition(domain))), manifest.get("like") or {}
    changed = [key for key in now if now[key] != then.get(key)]
    if changed:
        what = ", ".join(f"{key} {_said(then.get(key))} → {_said(now[key])}" for key in changed)
        raise WrongState(
            f"{name}: its devices have changed since the snapshot, whose memory knows the old "
            f"ones: {what}",
            hint=f"change them back (vmcloner set {name}), or delete the snapshot",
        )
    return manifest


def _said(value: object) -> str:
    """Return a value for a message, of bounded length."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _manifest(name: str, folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        with file.open("rb") as stream:
            found = json.loads(stream.read(MAX_MANIFEST))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else "not what vmcloner wrote"
        raise _damaged(name, file, why or "unreadable") from error
    if not isinstance(found, dict) or not isinstance(found.get("memory", 0), int):
        raise _damaged(name, file, "not what vmcloner wrote")
    return found


def _damaged(name: str, file: Path, why: str) -> WrongState:
    return WrongState(
        f"{name}: its snapshot is damaged: {file}: {why}",
        hint="vmcloner snapshot delete, and take it again",
    )


def put_back(connection: Any, name: str, folder: Path, is_own: Callable[[str, Path], bool]) -> bool:
    """Make a domain that is off what it was; returns True.

    Each part is replaced as a whole: after a crash at any moment, the same call does it again.
    """
    domain = operations.ours(connection, name)
    if domain.isActive():
        raise WrongState(f"{name}: still running", hint=f"vmcloner stop {name}")
    manifest = check(domain, name, folder)
    memory.discard(connection, name)
    root, uri = parse(operations.definition(domain)), connection.getURI()
    try:
        for number, file in enumerate(firmware.variables(root, uri)):
            if is_own(name, file):
                renewing.removed(name, file)
                kept = folder / f"{VARIABLES}{number}"
                if kept.exists():
                    _copied(kept, file)
        tpm = _tpm(root, uri)
        if tpm is not None:
            renewing.removed(name, tpm)
            if (folder / TPM).is_dir():
                shutil.copytree(folder / TPM, tpm, symlinks=True, copy_function=_copied)
                _same_owner(folder / TPM, tpm)
    except OSError as error:
        raise of_state(error, error.filename or folder) from error
    if manifest.get("memory") is not None:
        connection.restoreFlags(str(folder / MEMORY), None, 0)
    return True


def resume(connection: Any, name: str) -> bool:
    """Continue a saved domain as it was, or one that is being saved; tell whether it was."""
    domain = operations.find(connection, name)
    if domain is None:
        return False
    saving = bool(domain.isActive()) and _stop_saving(domain)
    if domain.isActive() or domain.hasManagedSaveImage() != 1:
        return saving
    try:
        domain.create()
    except libvirt().libvirtError as error:
        if is_code(error, "VIR_ERR_OPERATION_INVALID") and domain.isActive():
            return False  # another process started it at the same time
        raise
    return True


def _stop_saving(domain: Any) -> bool:
    """Stop a save that goes on after who asked for it was killed; tell whether there was one.

    libvirt lets the guest go on as it was before. Where that can't be, the save is waited for.
    """
    module = libvirt()
    saving, deadline = False, time.monotonic() + SAVING
    with operations.tolerate("VIR_ERR_OPERATION_INVALID", "VIR_ERR_NO_SUPPORT"):  # it is off
        while domain.jobInfo()[0] != module.VIR_DOMAIN_JOB_NONE:
            if time.monotonic() > deadline:
                raise WrongState(f"{domain.name()} is being saved", hint="virsh domjobabort")
            saving = True
            with operations.tolerate("VIR_ERR_OPERATION_INVALID", "VIR_ERR_NO_SUPPORT"):
                domain.abortJob()
            time.sleep(SAVING_PAUSE)
    return saving


def _tpm(root: Any, uri: str) -> Path | None:
    """Return the folder of a domain's emulated TPM, None if it has none."""
    if root.find("devices/tpm/backend[@type='emulator']") is None:
        return None
    return firmware.tpm(str(root.findtext("uuid")), uri)
