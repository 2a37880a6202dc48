"""Where libvirt's QEMU driver keeps what a guest's firmware and TPM write, and swtpm's logs.

libvirt chooses these places itself, of the system or of a user's session. Firmware that it selects
at each start is in no stored definition, and neither is the file with its variables.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vmcloner_libvirt.metadata import nvram

SYSTEM = Path("/var")
_SUFFIXES = (".fd", ".raw", ".qcow2")


def variables(root: Any, uri: str) -> tuple[Path, ...]:
    """Return the files in which a domain may have firmware variables, existing or not."""
    named = nvram(root)
    if named is not None:
        return (named,)
    if root.find("os[@firmware='efi']") is None or not _is_qemu(uri):
        return ()
    folder = _folder(uri, "lib/libvirt/qemu/nvram", "XDG_CONFIG_HOME", "~/.config", "nvram")
    return tuple(folder / f"{root.findtext('name')}_VARS{suffix}" for suffix in _SUFFIXES)


def tpm(uuid: str, uri: str) -> Path | None:
    """Return where a domain's emulated TPM has its state; None if the hypervisor isn't QEMU."""
    if not _is_qemu(uri):
        return None
    return _folder(uri, "lib/libvirt/swtpm", "XDG_CONFIG_HOME", "~/.config", "swtpm") / uuid


def tpm_log(name: str, uri: str) -> Path | None:
    """Return the log of a domain's emulated TPM; None if the hypervisor isn't QEMU."""
    if not _is_qemu(uri):
        return None
    folder = _folder(uri, "log/swtpm/libvirt/qemu", "XDG_CACHE_HOME", "~/.cache", "log")
    return folder / f"{name}-swtpm.log"


def _is_qemu(uri: str) -> bool:
    return urlsplit(uri).scheme.partition("+")[0] == "qemu"


def _folder(uri: str, system: str, variable: str, default: str, kind: str) -> Path:
    if urlsplit(uri).path != "/session":
        return SYSTEM / system
    return Path(os.environ.get(variable) or default).expanduser() / "libvirt/qemu" / kind
