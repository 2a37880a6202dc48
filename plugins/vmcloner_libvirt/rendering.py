"""Domain XML from a jinja2 template: the shipped one, or a template's own."""

from __future__ import annotations

import importlib.resources
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from jinja2 import FunctionLoader, StrictUndefined, TemplateError, TemplateSyntaxError
from lxml import etree
from markupsafe import Markup, escape

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import DomainSpec, clone_generation
from vmcloner_core.placeholders import clone_values, fill
from vmcloner_core.sandbox import Sandbox, TooMuch, bounded_work
from vmcloner_core.trusted_files import read_file
from vmcloner_libvirt import forwarding
from vmcloner_libvirt.disk_sources import source_of
from vmcloner_libvirt.metadata import add_labels, parse

MAX_XML = 1024**2
"""Most characters of a template, and of its output."""
_HINT = "the shipped template is documented in docs/templates.md"
# libvirt derives a disk's position from its name, whose prefix depends on the bus.
_DISK_PREFIX = {"virtio": "vd", "ide": "hd", "xen": "xvd"}


@attrs.frozen(kw_only=True)
class Rendered:
    """A clone's domain XML, and its shape: the same without values that differ between clones."""

    xml: str
    shape: str


class Renderer:
    """Renders domain XML. Thread-safe; reads each template file once.

    :param shipped: file name of the backend's template in this package.
    """

    def __init__(self, shipped: str) -> None:
        self._shipped = shipped
        self._readable = {shipped}
        self._environment = Sandbox(
            autoescape=True,
            undefined=StrictUndefined,
            loader=FunctionLoader(self._load),
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def render(self, spec: DomainSpec, values: Mapping[str, object]) -> Rendered:
        """Return a clone's domain XML, with its labels.

        :param values: the backend's own, beside those of :func:`domain_values`.
        :raises InvalidRequest: names the template's file and line, and the reason.
        """
        source = self._shipped
        if spec.options.xml is not None:
            source = str(spec.options.xml)
            self._readable.add(source)
        text = self._text(source, domain_values(spec) | dict(values))
        return Rendered(xml=_labelled(source, text, spec), shape=_shape(text, spec))

    def _load(self, name: str) -> tuple[str, str, None] | None:
        # A template may extend the shipped one, but not include files of the host.
        if name not in self._readable:
            return None
        if name == self._shipped:
            file = importlib.resources.files(__package__) / name
            return file.read_text(encoding="utf-8"), name, None
        try:
            text = read_file(Path(name), trusted=False, limit=MAX_XML).decode()
        except ValueError as error:
            raise InvalidRequest(f"domain.xml: can't read {name}: not a text file") from error
        except InvalidRequest as error:
            raise InvalidRequest(f"domain.xml: can't read {error.message}") from error
        return text, name, None

    def _text(self, source: str, values: dict[str, object]) -> str:
        try:
            with bounded_work():
                text = self._environment.get_template(source).render(values).strip()
        except TemplateError as error:
            raise InvalidRequest(f"{_place(error, source)}: {error.message}", hint=_HINT) from error
        except TooMuch as error:
            raise InvalidRequest(
                f"{_place(error, source)}: renders to more than {MAX_XML} characters, or takes as "
                f"much work: {error}",
                hint=_HINT,
            ) from error
        except (ArithmeticError, LookupError, TypeError, ValueError, MemoryError) as error:
            raise InvalidRequest(f"{_place(error, source)}: {error}", hint=_HINT) from error
        if len(text) > MAX_XML:
            raise InvalidRequest(f"{source}: renders to more than {MAX_XML} characters")
        return text


def domain_values(spec: DomainSpec) -> dict[str, Any]:
    """Return the values for every domain template.

    Only texts and numbers: templates aren't trusted with objects that have methods.
    """
    boot = spec.boot
    prefix = _DISK_PREFIX.get(spec.options.disk_bus, "sd")
    return {
        **clone_values(spec.labels, spec.nics, spec.values),
        "uuid": str(spec.uuid),
        "genid": _generation(spec),
        "memory": spec.memory,
        "vcpus": spec.vcpus,
        "firmware": spec.options.firmware,
        "disk_bus": spec.options.disk_bus,
        "on_crash": spec.options.on_crash,
        "boot": {
            "kernel": None if boot.kernel is None else str(boot.kernel),
            "initrd": None if boot.initrd is None else str(boot.initrd),
            "cmdline": boot.cmdline,
            "devices": list(boot.devices),
            "bootloader": None if boot.bootloader is None else str(boot.bootloader),
            "bootloader_args": list(boot.bootloader_args),
            "on_reboot": boot.on_reboot if spec.options.on_reboot == "restart" else "destroy",
        },
        "disks": [
            {
                "kind": volume.kind,
                "path": str(volume.path),
                "source": Markup(  # noqa: S704 - it is XML, written by lxml
                    etree.tostring(source_of(volume), encoding="unicode")
                ),
                "format": volume.format,
                "backing": None if volume.backing is None else str(volume.backing),
                "target": f"{prefix}{chr(ord('a') + number)}",
            }
            for number, volume in enumerate(spec.volumes)
        ],
        "agent": spec.options.agent,
        "graphics": spec.options.graphics,
        "more_devices": _devices(spec),
        "seed": {
            "path": str(spec.seed),
            "target": f"{prefix}{chr(ord('a') + len(spec.volumes))}",
        }
        if spec.seed is not None
        else None,
        "nics": [
            {
                "kind": nic.spec.kind,
                "source": nic.spec.source,
                "mac": nic.mac,
                "model": nic.spec.model,
            }
            for nic in spec.nics
        ],
    }


def _devices(spec: DomainSpec) -> Markup:
    """Return the devices that a template adds, with escaped values.

    :raises InvalidRequest: they aren't well-formed XML.
    """
    if spec.options.devices is None:
        return Markup("")
    what = f"template {spec.labels.template}: domain.devices"
    values = clone_values(spec.labels, spec.nics, spec.values)
    text = fill(spec.options.devices, values, what=what, escape=lambda text: str(escape(text)))
    try:
        parse(f"<devices>{text}</devices>")
    except InvalidRequest as error:
        raise InvalidRequest(f"{what}: {error.message}", hint=_HINT) from error
    return Markup(text)  # noqa: S704 - it is XML, and its values were escaped


def _place(error: BaseException, source: str) -> str:
    """Return ``FILE:LINE`` of the template at an error."""
    if isinstance(error, TemplateSyntaxError):
        return f"{error.filename or source}:{error.lineno}"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source
    ]
    return f"{source}:{frames[-1].lineno}" if frames else source


def _labelled(source: str, text: str, spec: DomainSpec) -> str:
    try:
        root = parse(text)
    except InvalidRequest as error:
        raise InvalidRequest(f"{source}: {error.message}", hint=_HINT) from error
    if (root.tag, root.findtext("name"), root.findtext("uuid")) != (
        "domain",
        spec.name,
        str(spec.uuid),
    ):
        raise InvalidRequest(
            f"{source}: <domain> must have the clone's own name and uuid",
            hint="write <name>{{ name }}</name> and <uuid>{{ uuid }}</uuid>",
        )
    for devices in root.iterfind("devices"):
        _give_way(devices)
    add_labels(root, spec.labels)
    forwarding.describe(root, spec.nics)
    etree.indent(root)
    return str(etree.tostring(root, encoding="unicode")) + "\n"


def _give_way(devices: Any) -> None:
    """Remove those of the shipped template's devices that contradict a device that a user added.

    A domain has one memory balloon, one ISA panic device and one SCSI controller of number 0; and
    no USB device where there is no USB. The shipped one of two is the first.
    """
    for path in ("memballoon", "panic[@model='isa']"):
        for shipped in devices.findall(path)[:-1]:
            devices.remove(shipped)
    scsi = devices.findall("controller[@type='scsi']")
    if len(scsi) > 1 and scsi[0].attrib == _SCSI and scsi[-1].get("index", "0") == "0":
        devices.remove(scsi[0])
    for without in devices.findall("controller[@type='usb'][@model='none']"):
        if any(_needs_usb(device) for device in devices if device is not without):
            devices.remove(without)


_SCSI = {"type": "scsi", "model": "virtio-scsi"}


def _needs_usb(device: Any) -> bool:
    """Tell whether a device is a USB controller, or on one."""
    if device.tag in ("controller", "hostdev", "hub"):
        return device.get("type") in ("usb", "ccid") and device.get("model") != "none"
    words = [device.get("bus"), device.get("model")]
    for part in ("target", "model"):
        for element in device.iterfind(part):
            words += [element.get("bus"), element.get("type")]
    return any((word or "").partition("-")[0] == "usb" for word in words)


def _shape(text: str, spec: DomainSpec) -> str:
    own = [
        *(str(volume.path) for volume in spec.volumes),
        *([str(spec.seed)] if spec.seed is not None else []),
        *(nic.mac for nic in spec.nics),
        spec.boot.cmdline or "",
        _generation(spec),
        str(spec.uuid),
        spec.name,  # the last: the others may contain it
    ]
    for value in filter(None, own):
        text = text.replace(str(escape(value)), "*")
    return text


def _generation(spec: DomainSpec) -> str:
    return str(clone_generation(spec.uuid, spec.labels.run))
