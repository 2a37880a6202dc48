"""Settings under ``[hosts.HOST.hypervisor.NAME]``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import attrs

from vmcloner_core.units import Size


def _bounded(default: int, *, most: int) -> int:
    limits = [attrs.validators.ge(1), attrs.validators.le(most)]
    return attrs.field(default=default, validator=limits)


@attrs.frozen(kw_only=True)
class KvmSettings:
    """Settings of the backend ``kvm``.

    :param uri: libvirt's connection URI, of a daemon on this host.
    :param accel: ``auto`` uses KVM where a test guest runs on it, and emulation elsewhere.
    :param tb_cache: bytes of translated code that QEMU keeps for each emulated guest. QEMU's own
        default is an eighth of the host's memory, up to 1 GiB.
    :param connections: most connections to the daemon, which by default serves 5 calls of each at
        once (``max_client_requests`` in libvirtd.conf).
    """

    uri: str = "qemu:///system"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    tb_cache: Size = 128 * 1024**2
    connections: int = _bounded(4, most=16)


@attrs.frozen(kw_only=True)
class XenSettings:
    """Settings of the backend ``xen``.

    :param uri, connections: as for ``kvm``.
    :param starts: guests that are started in parallel. Each start runs scripts for disks and
        network cards in Domain-0, one after the other: more than a few gain nothing.
    :param stops: guests that are shut down, or destroyed, in parallel. libvirtd doesn't answer
        while it runs the scripts of many guests that end together.
    :param console_logs: folder of xenconsoled's logs (its option ``--log-dir``).
    :param dom0_memory: bytes that Domain-0 keeps where it gives memory to guests (ballooning).
    """

    uri: str = "xen:///system"
    connections: int = _bounded(4, most=16)
    starts: int = _bounded(2, most=16)
    stops: int = _bounded(8, most=1000)
    console_logs: Path = Path("/var/log/xen/console")
    dom0_memory: Size = 1024**3
