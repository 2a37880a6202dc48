"""An xl.cfg file, or a token template with its values, as a template."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from vmcloner_core.errors import InvalidRequest, VmclonerError
from vmcloner_core.model import Template
from vmcloner_core.names import check_template
from vmcloner_core.tomlfile import structure
from vmcloner_legacy import xl_disk
from vmcloner_legacy.xl_cfg import Assignment, Note, Value, is_xl, read_conf, read_xl
from vmcloner_legacy.xl_disk import Disk

# Tokens of a template, and the keys of its conf file that stand for them.
TOKENS = {
    "KERNEL": "kernel",
    "INITRD": "initrd",
    "LOADER": "loader",
    "CPU": "cpu",
    "MEM": "mem",
}
_CONF = {
    *TOKENS.values(), "vmname", "swap", "sourcevg", "targetvg", "source", "imagepath", "imagefile",
    "thinpool",
}  # fmt: skip
_TAKEN = {"vmname", "swap", "source", "thinpool", "targetvg"}
# Keys that say what is so anyway, and those that every clone has of its own.
_AS_IT_IS = {
    "boot": {"c"},
    "on_poweroff": {"destroy"},
    "on_reboot": {"restart"},
    "dhcp": {"dhcp", "off", ""},
}
_OWN = {"name", "uuid"}


@attrs.define
class Made:
    """A template as it comes about: its keys, and what couldn't be carried over."""

    name: str = ""
    table: dict[str, Any] = attrs.field(factory=dict)
    notes: list[Note] = attrs.field(factory=list)
    sources: list[str] = attrs.field(factory=list)

    def put(self, path: str, value: object) -> None:
        """Set ``kernel.cmdline`` and the like."""
        *tables, key = path.split(".")
        table = self.table
        for name in tables:
            table = table.setdefault(name, {})
        table[key] = value


def convert(xl: Path, conf: Path | None, name: str | None = None) -> Made:
    """Return the template that an xl.cfg file, or a token template with its conf file, describes.

    :param name: the template's name; None for the machine's.
    :raises InvalidRequest: it describes no machine, or what it says makes no template.
    """
    assignments, notes = read_xl(xl)
    pairs, repeated = read_conf(conf) if conf is not None else ([], [])
    values = {a.key: a for a in pairs}
    made = Made(
        notes=notes + repeated, sources=[str(xl), *([str(conf)] if conf is not None else [])]
    )
    tokens = _tokens(values)
    keys = {a.key: attrs.evolve(a, value=_filled(a.value, tokens)) for a in assignments}
    if not keys:
        raise InvalidRequest(f"{xl}: no assignment in it", hint="is it an xl.cfg file?")
    made.name = _name(name, keys, xl, made)
    made.put("description", f"Imported from {xl.name}")
    made.put("hypervisors", ["xen"])
    _boot(keys, made)
    for key, convert_key in _KEYS.items():
        if key in keys:
            _each(keys.pop(key), made, convert_key)
    for assignment in keys.values():
        _rest(assignment, made)
    _conf(values, _used(assignments, tokens), made)
    made.notes.sort(key=lambda note: (made.sources.index(note.file), note.line))
    _check(made, xl)
    return made


def _name(name: str | None, keys: Mapping[str, Assignment], xl: Path, made: Made) -> str:
    """Return the template's name: a machine's own in lower case, as templates have it."""
    said = name or _text(keys, "name") or xl.stem
    if name is None and said != said.lower():
        check_template(said.lower())
        reason = f"templates have names in lower case: {said.lower()}"
        made.notes.append(
            keys["name"].note(reason) if "name" in keys else Note(str(xl), 0, "", reason)
        )
        return said.lower()
    return check_template(said)


def _check(made: Made, xl: Path) -> None:
    """Check that what was made can be read back as a template."""
    if "image" not in made.table:
        made.put("image.path", f"{made.name}.raw")
        made.notes.append(Note(str(xl), 0, "", f"no disk: put the image at {made.name}.raw"))
    try:
        structure({**made.table, "name": made.name}, Template, where=str(xl))
    except VmclonerError as error:
        raise InvalidRequest(error.message, hint="mend that line, and import it again") from error


# --- tokens -------------------------------------------------------------------------------------


def _tokens(values: Mapping[str, Assignment]) -> dict[str, str]:
    """Return what a template's words in capitals stand for."""
    said = {key: str(a.value) for key, a in values.items()}
    tokens = {token: said[key] for token, key in TOKENS.items() if key in said}
    tokens |= {key.upper(): value for key, value in said.items() if re.fullmatch(r"bridge\d+", key)}
    if "vmname" in said:
        tokens["VMNAME"] = said["vmname"]
    if said.get("source", "lvm") == "lvm" and "sourcevg" in said:
        tokens["PATH"] = f"/dev/{said['sourcevg']}"
    elif "imagepath" in said:
        tokens["PATH"] = said["imagepath"]
    return tokens


def _filled(value: Value, tokens: Mapping[str, str]) -> Value:
    if isinstance(value, list):
        return [_filled(item, tokens) for item in value]
    if isinstance(value, str) and tokens:
        pattern = "|".join(sorted(map(re.escape, tokens), key=len, reverse=True))
        return re.sub(rf"(?<![A-Za-z0-9])({pattern})(?![A-Za-z0-9])", lambda m: tokens[m[1]], value)
    return value


def _used(assignments: Sequence[Assignment], tokens: Mapping[str, str]) -> set[str]:
    """Return the keys of the conf file whose tokens the template has."""
    text = " ".join(str(assignment.value) for assignment in assignments)
    used = {
        token for token in tokens if re.search(rf"(?<![A-Za-z0-9]){token}(?![A-Za-z0-9])", text)
    }
    keys = {TOKENS.get(token, token.lower()) for token in used}
    return keys | ({"sourcevg", "imagepath"} if "PATH" in used else set())


def _conf(values: Mapping[str, Assignment], used: set[str], made: Made) -> None:
    """Carry over what only the conf file says, and name what nothing takes."""
    swap = values.get("swap")
    if swap is not None and str(swap.value).lower() not in ("off", ""):
        size = re.fullmatch(r"(\d+)\s*([kKmMgG]?)[bB]?", str(swap.value))
        if size is None:
            made.notes.append(swap.note("not a size"))
        else:
            made.put("swap", f"{size[1]}{size[2].upper() or 'M'}iB")
    for key in ("thinpool", "targetvg"):
        if key in values:
            hint = "settings, not templates, say where clones are: [hosts.local.storage.lvm-thin]"
            made.notes.append(values[key].note(hint))
    by_lvm = "source" not in values or values["source"].value == "lvm"
    unused = {"sourcevg"} if not by_lvm else {"imagepath", "imagefile"}
    for key, assignment in values.items():
        if key not in _CONF and not re.fullmatch(r"bridge\d+", key):
            made.notes.append(assignment.note("isn't known"))
        elif key in unused:
            made.notes.append(assignment.note(f"source is {'lvm' if by_lvm else 'file'}"))
        elif key not in used | _TAKEN:
            made.notes.append(assignment.note("the template doesn't use it"))


# --- keys ---------------------------------------------------------------------------------------


def _text(keys: Mapping[str, Assignment], key: str) -> str:
    value = keys[key].value if key in keys else ""
    return value.strip() if isinstance(value, str) else str(value)


def _each(assignment: Assignment, made: Made, convert_key: Convert) -> None:
    try:
        reason = convert_key(assignment.value, made)
    except ValueError as error:
        reason = str(error)
    if reason:
        made.notes.append(assignment.note(reason))


def _boot(keys: dict[str, Assignment], made: Made) -> None:
    """Take the keys that say how the guest is booted, and what kind it is."""
    kind = _kind(keys, made)
    _firmware(keys, kind, made)
    loader = _loader(keys, kind, made)
    kernel = _given(keys, "kernel")
    ramdisk = _given(keys, "ramdisk") or _given(keys, "initrd")
    if kernel is not None and Path(str(kernel.value)).name == "hvmloader":
        made.notes.append(kernel.note("hvmloader is the firmware of HVM guests, not a kernel"))
        kernel = None
    if loader is not None:
        made.put("boot", loader)
        why = f"boot = {loader!r} finds the kernel by itself"
    elif kernel is not None:
        made.put("boot", "kernel")
        made.put("kernel.path", str(kernel.value))
        if ramdisk is not None:
            made.put("kernel.initrd", str(ramdisk.value))
        kernel = ramdisk = None
        why = ""
    else:
        made.put("boot", "disk" if kind == "hvm" else "pygrub")
        why = "there is no kernel to go with it"
    made.notes += [other.note(why) for other in (kernel, ramdisk) if other is not None]
    _cmdline(keys, made)


def _given(keys: dict[str, Assignment], key: str) -> Assignment | None:
    """Take a key whose value isn't empty."""
    found = keys.pop(key, None)
    return found if found is not None and found.value != "" else None


def _loader(keys: dict[str, Assignment], kind: str, made: Made) -> str | None:
    """Return the boot provider that a boot loader on the host is."""
    loader = _given(keys, "bootloader")
    if loader is None:
        return None
    program = Path(str(loader.value)).name
    if kind == "hvm":
        made.notes.append(loader.note("an HVM guest boots by its firmware"))
    elif program not in ("pygrub", "pypxeboot"):
        made.notes.append(loader.note("only pygrub and pypxeboot are known"))
    else:
        return program
    return None


def _kind(keys: dict[str, Assignment], made: Made) -> str:
    kind, builder, pvh = keys.pop("type", None), keys.pop("builder", None), keys.pop("pvh", None)
    named = str(kind.value if kind is not None else "pv").lower()
    if kind is None and builder is not None and builder.value == "hvm":
        named = "hvm"
    elif kind is None and pvh is not None and pvh.value in (1, "1"):
        named = "pvh"
    if builder is not None and builder.value not in ("hvm", "generic", "linux"):
        made.notes.append(builder.note("hvm, generic and linux are known"))
    if named in ("pv", "pvh", "hvm"):
        made.put("domain.type", named)
    elif kind is not None:
        made.notes.append(kind.note("pv, pvh and hvm are known"))
    return named


def _firmware(keys: dict[str, Assignment], kind: str, made: Made) -> None:
    """Take ``firmware`` and, where that doesn't say, ``bios``."""
    firmware, bios = keys.pop("firmware", None), keys.pop("bios", None)
    if firmware is not None and bios is not None:
        made.notes.append(bios.note("firmware= counts"))
    said = firmware or bios
    if said is None:
        return
    if kind == "hvm" and said.value in ("ovmf", "uefi"):
        made.put("domain.firmware", "efi")
    elif kind != "hvm":
        made.notes.append(said.note("only HVM guests have firmware here"))
    elif Path(str(said.value)).name not in ("bios", "seabios", "hvmloader"):
        made.notes.append(said.note("SeaBIOS (bios) and OVMF (efi) are known"))


def _cmdline(keys: dict[str, Assignment], made: Made) -> None:
    """Take the command line: ``cmdline``, or else ``root`` and ``extra``."""
    cmdline, root, extra = (keys.pop(key, None) for key in ("cmdline", "root", "extra"))
    if cmdline is not None:
        words = str(cmdline.value)
        lost = [(other, "cmdline= counts") for other in (root, extra) if other is not None]
        said = [cmdline]
    else:
        said = [item for item in (root, extra) if item is not None]
        words = " ".join(f"root={item.value}" if item is root else str(item.value) for item in said)
        lost = []
    if made.table["boot"] == "disk":
        lost += [(item, "boot = 'disk' takes no command line") for item in said]
    elif words:
        made.put("kernel.cmdline", words)
    made.notes += [item.note(reason) for item, reason in lost]


def _memory(value: Value, made: Made) -> str:
    made.put("memory", f"{_number(value)}MiB")
    return ""


def _vcpus(value: Value, made: Made) -> str:
    made.put("vcpus", _number(value))
    return ""


def _number(value: Value) -> int:
    if isinstance(value, int):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,9}\s*", value):
        return int(value)
    raise ValueError("not a number")


def _on_crash(value: Value, made: Made) -> str:
    if value in ("destroy", "restart", "preserve"):
        made.put("domain.on_crash", value)
        return ""
    return "destroy, restart or preserve are known"


def _on_reboot(value: Value, made: Made) -> str:
    if value in ("destroy", "restart"):
        if value == "destroy":
            made.put("domain.on_reboot", value)
        return ""
    return "destroy or restart are known"


def _vif(value: Value, made: Made) -> str:
    """Each network card: ``bridge=BRIDGE,mac=…`` (xl-network-configuration(5))."""
    nics, lost = [], []
    for item in value if isinstance(value, list) else [value]:
        said = {
            key.strip().lower(): text.strip()
            for key, _, text in (part.partition("=") for part in str(item).split(","))
            if key.strip()
        }
        bridge, vlan = _bridge(said)
        nic = {"kind": "bridge", "source": bridge}
        lost += [f"VLAN {vlan} isn't carried over"] if vlan else []
        lost += _card(said, nic, made.table.get("domain", {}).get("type"))
        if said.pop("mac", ""):
            lost.append("each clone has a MAC address of its own")
        if said.get("script", "").endswith("vif-bridge"):
            del said["script"]  # what is so anyway
        lost += [f"{key}= isn't carried over" for key in said]
        nics.append(nic)
    made.table["nics"] = nics
    return "; ".join(dict.fromkeys(lost))


def _bridge(said: dict[str, str]) -> tuple[str, str]:
    """Take a card's bridge; Open vSwitch's may have a VLAN and trunks: ``ovsbr0.42:43:44``."""
    bridge = said.pop("bridge", "") or "xenbr0"
    if not said.get("script", "").endswith("openvswitch"):
        return bridge, ""
    name, *vlan = re.split("[.:]", bridge, maxsplit=1)
    return name, "".join(vlan)


def _card(said: dict[str, str], nic: dict[str, str], guest: str | None) -> list[str]:
    """Take a card's type and model: only HVM guests have any but Xen's own."""
    kind, model = said.pop("type", ""), said.pop("model", "")
    if guest == "hvm" and kind not in ("vif", "netfront"):
        nic["model"] = model or "rtl8139"  # Xen's default
        return []
    return [f"model={model}: the card is Xen's own"] if model else []


def _disk(value: Value, made: Made) -> str:
    """The disks: one is the image, the others are named."""
    disks = [xl_disk.parse(str(item)) for item in (value if isinstance(value, list) else [value])]
    image = _boot_disk(
        [disk for disk in disks if disk.target and not disk.cdrom and not disk.foreign], made
    )
    lost = []
    for disk in disks:
        place = disk.vdev or disk.target or "a disk"
        if disk is image:
            _image(disk, made)
            lost += disk.lost
            if disk.vdev and disk.vdev[-1].isdigit():
                lost.append(_renamed(disk.vdev, made))
        elif disk.medium or not disk.target:
            lost.append(f"{place}: no disk of a clone, but a CD")
        elif disk.foreign:
            lost += disk.lost
        elif disk.swap:
            lost.append(f'{place}: give its size as swap = "…", each clone gets one (xvdb)')
        else:
            lost.append(f"{place}: give its size as a table [[disks]], each clone gets a new one")
    return "; ".join(part for part in lost if part)


def _boot_disk(disks: Sequence[Disk], made: Made) -> Disk | None:
    """Return the disk that the guest boots: the one that root= names, or the likeliest."""
    root = re.search(r"(?:^|\s)root=/dev/(\S+)", made.table.get("kernel", {}).get("cmdline", ""))
    for likely in (
        lambda disk: root is not None and disk.vdev == root[1],
        lambda disk: root is not None and disk.vdev == root[1].rstrip("0123456789"),
        lambda disk: not (disk.medium or disk.swap or disk.read_only),
        lambda disk: not (disk.medium or disk.swap),
        lambda disk: not disk.medium,
    ):
        if found := next(filter(likely, disks), None):
            return found
    return None


def _image(disk: Disk, made: Made) -> None:
    made.put("image.path", disk.target)
    if (disk.format or "raw") in ("raw", "qcow2"):
        made.put("image.format", disk.format or "raw")
    else:
        disk.lost.insert(
            0, f"format={disk.format} can't be cloned: qemu-img convert -O qcow2 makes one"
        )


def _renamed(vdev: str, made: Made) -> str:
    """Adapt the command line: a disk given as a partition (xvda2) is a disk of its own here."""
    cmdline = made.table.get("kernel", {}).get("cmdline", "")
    if f"/dev/{vdev}" in cmdline:
        made.put("kernel.cmdline", re.sub(rf"/dev/{re.escape(vdev)}\b", "/dev/xvda", cmdline))
        return f"the guest's {vdev} is xvda: root= is adapted, see to its /etc/fstab"
    return f"the guest's {vdev} is xvda: see to its /etc/fstab"


def _rest(assignment: Assignment, made: Made) -> None:
    """Name a key that nothing takes, but for those that say what is so anyway."""
    key, value = assignment.key, assignment.value
    if key in _OWN:
        if key == "uuid":
            made.notes.append(assignment.note("each clone has a UUID of its own"))
        return
    if str(value).lower() in _AS_IT_IS.get(key, ()):
        return
    made.notes.append(assignment.note("isn't carried over"))


Convert = Callable[[Value, Made], str]
_KEYS: Mapping[str, Convert] = {
    "memory": _memory,
    "vcpus": _vcpus,
    "vif": _vif,
    "disk": _disk,
    "on_crash": _on_crash,
    "on_reboot": _on_reboot,
}


def files(paths: Sequence[Path]) -> tuple[Path, Path | None]:
    """Tell which of one or two files is the template, and which has its values.

    :raises InvalidRequest: there is no template among them.
    """
    templates = [path for path in paths if is_xl(path)]
    others = [path for path in paths if path not in templates]
    if len(templates) != 1 or len(others) > 1:
        names = " and ".join(map(str, paths))
        raise InvalidRequest(
            f"{names}: one xl.cfg file or template is needed, and at most one conf file",
            hint="vmcloner template import-legacy etc/precise.template etc/precise.conf",
        )
    return templates[0], others[0] if others else None
