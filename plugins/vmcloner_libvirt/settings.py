"""What the settings file may say under ``[hosts.HOST.hypervisor.NAME]``."""

from __future__ import annotations

from typing import Literal

import attrs


@attrs.frozen(kw_only=True)
class KvmSettings:
    """Settings of the backend ``kvm``.

    :param uri: libvirt's connection URI. :param accel: ``auto`` uses KVM where a guest really
        runs on it, and emulation elsewhere.
    :param connections: upper bound of connections to the daemon, which by default serves 5 calls
        of each at once (``max_client_requests`` in libvirtd.conf).
    """

    uri: str = "qemu:///system"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    connections: int = attrs.field(
        default=4, validator=[attrs.validators.ge(1), attrs.validators.le(16)]
    )
