"""Where libvirt keeps what belongs to one domain: firmware, TPM, memory, logs.

libvirt chooses these places itself, of the system or of a user's session. Firmware that it selects
at each start is in no stored definition, and neither is the file with its variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vmcloner_libvirt.metadata import nvram

SYSTEM = Path("/var")
_LOGS = ("XDG_CACHE_HOME", "~/.cache", "log")
_SUFFIXES = (".fd", ".raw", ".qcow2")


def variables(root: Any, uri: str) -> tuple[Path, ...]:
    """Return the files in which a domain may have firmware variables, existing or not."""
    named = nvram(root)
    if named is not None:
        return (named,)
    if root.find("os[@firmware='efi']") is None or not _is_qemu(uri):
        return ()
    return _variables(str(root.findtext("name")), uri)


def _variables(name: str, uri: str) -> tuple[Path, ...]:
    return tuple(_kept("nvram", uri) / f"{name}_VARS{suffix}" for suffix in _SUFFIXES)


def left(name: str | None, uuid: object, uri: str, *, disks: bool = False) -> Iterator[Path]:
    """Yield what libvirt has of a domain that is gone, if it was told to keep it, or was killed.

    That are saved memory, descriptions of snapshots and checkpoints, the state of a TPM, and
    firmware variables.

    :param name, uuid: that it had, None if it isn't known, or another domain has it now.
    :param disks: its disks stay: so do the firmware's variables, which belong to them.
    """
    if urlsplit(uri).scheme == "xen" and name is not None:
        image = SYSTEM / "lib/libvirt/libxl/save" / f"{name}.save"
        yield from [image] if os.path.lexists(image) else []
    if not _is_qemu(uri):
        return
    paths: list[Path] = []
    if name is not None:
        paths += [] if disks else _variables(name, uri)
        paths += [_kept("save", uri) / f"{name}.save"]
        paths += [_kept(kind, uri) / name for kind in ("snapshot", "checkpoint")]
    state = tpm(str(uuid), uri) if uuid is not None else None
    paths += [state] if state is not None else []
    yield from (path for path in paths if os.path.lexists(path))


def tpm(uuid: str, uri: str) -> Path | None:
    """Return where a domain's emulated TPM has its state; None if the hypervisor isn't QEMU."""
    if not _is_qemu(uri):
        return None
    return _folder(uri, "lib/libvirt/swtpm", "XDG_CONFIG_HOME", "~/.config", "swtpm") / uuid


def tpm_log(name: str, uri: str) -> Path:
    """Return the log of a domain's emulated TPM."""
    return _folder(uri, "log/swtpm/libvirt/qemu", *_LOGS) / f"{name}-swtpm.log"


def logs(name: str, uri: str) -> tuple[Path, ...]:
    """Return the logs of a domain's QEMU and of its TPM; none if the hypervisor isn't QEMU."""
    if not _is_qemu(uri):
        return ()
    return _folder(uri, "log/libvirt/qemu", *_LOGS) / f"{name}.log", tpm_log(name, uri)


def save_image(name: str, uri: str) -> Path | None:
    """Return where libvirt puts a domain's managed save image; None if it makes no files."""
    driver = urlsplit(uri).scheme.partition("+")[0]
    if _is_qemu(uri):
        folder = _folder(uri, "lib/libvirt/qemu/save", "XDG_CONFIG_HOME", "~/.config", "save")
        return folder / f"{name}.save"
    return SYSTEM / f"lib/libvirt/libxl/save/{name}.save" if driver in ("xen", "libxl") else None


def _is_qemu(uri: str) -> bool:
    return urlsplit(uri).scheme.partition("+")[0] == "qemu"


def _kept(kind: str, uri: str) -> Path:
    return _folder(uri, f"lib/libvirt/qemu/{kind}", "XDG_CONFIG_HOME", "~/.config", kind)


def _folder(uri: str, system: str, variable: str, default: str, kind: str) -> Path:
    if urlsplit(uri).path != "/session":
        return SYSTEM / system
    return Path(os.environ.get(variable) or default).expanduser() / "libvirt/qemu" / kind
