"""What the settings file may say under ``[hosts.HOST.hypervisor.NAME]``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import attrs

from vmcloner_core.units import Size


@attrs.frozen(kw_only=True)
class KvmSettings:
    """Settings of the backend ``kvm``.

    :param uri: libvirt's connection URI, of a daemon on this host.
    :param accel: ``auto`` uses KVM where a test guest runs on it, and emulation elsewhere.
    :param tb_cache: bytes in which QEMU keeps the code that it has translated for one guest, where
        guests are emulated. Left to itself it takes an eighth of the host's memory, up to 1 GiB.
    :param connections: upper bound of connections to the daemon, which by default serves 5 calls
        of each at once (``max_client_requests`` in libvirtd.conf).
    """

    uri: str = "qemu:///system"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    tb_cache: Size = 128 * 1024**2
    connections: int = attrs.field(
        default=4, validator=[attrs.validators.ge(1), attrs.validators.le(16)]
    )


@attrs.frozen(kw_only=True)
class XenSettings:
    """Settings of the backend ``xen``.

    :param uri, connections: as for ``kvm``.
    :param starts: guests that are started at once. Each start runs its scripts for disks and
        network cards in Domain-0, one after the other: more than a few gain nothing.
    :param stops: guests that are shut down, or destroyed, at once. libvirtd answers nobody while
        the scripts of many that end together run.
    :param console_logs: folder of xenconsoled's logs (its option ``--log-dir``).
    :param dom0_memory: bytes that Domain-0 keeps where it gives memory up to guests (ballooning).
    """

    uri: str = "xen:///system"
    connections: int = attrs.field(
        default=4, validator=[attrs.validators.ge(1), attrs.validators.le(16)]
    )
    starts: int = attrs.field(
        default=2, validator=[attrs.validators.ge(1), attrs.validators.le(16)]
    )
    stops: int = attrs.field(
        default=8, validator=[attrs.validators.ge(1), attrs.validators.le(1000)]
    )
    console_logs: Path = Path("/var/log/xen/console")
    dom0_memory: Size = 1024**3
