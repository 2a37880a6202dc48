"""A domain's XML for one start that differs from its definition.

Elements: https://libvirt.org/formatdomain.html#operating-system-booting
"""

from __future__ import annotations

from lxml import etree

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import BootConfig
from vmcloner_libvirt.metadata import parse


def once(definition: str, boot: BootConfig) -> str:
    """Return a domain's definition, changed to boot what ``boot`` names.

    :param definition: the domain's whole XML, as libvirt gives it for its next start.
    :raises InvalidRequest: libvirt can't do that for a single start.
    """
    if boot.bootloader is not None:
        raise InvalidRequest(f"{boot.bootloader}: a boot loader can't be run for one start only")
    root = parse(definition)
    system = root.find("os")
    for tag in ("kernel", "initrd", "cmdline", "boot"):
        for element in system.findall(tag):
            system.remove(element)
    for element in root.iterfind("devices/*/boot"):  # libvirt allows only one of these and <os>
        element.getparent().remove(element)
    if boot.kernel is not None:
        _add(system, "kernel", str(boot.kernel))
        _add(system, "initrd", None if boot.initrd is None else str(boot.initrd))
        _add(system, "cmdline", boot.cmdline)
    else:
        for device in boot.devices:
            etree.SubElement(system, "boot", dev=device)
    if boot.on_reboot == "destroy":  # else the definition decides
        reboot = root.find("on_reboot")
        if reboot is None:
            reboot = etree.SubElement(root, "on_reboot")
        reboot.text = boot.on_reboot
    return str(etree.tostring(root, encoding="unicode"))


def _add(parent: object, tag: str, text: str | None) -> None:
    if text:
        etree.SubElement(parent, tag).text = text
